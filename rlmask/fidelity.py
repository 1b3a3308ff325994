"""How closely a student follows its teachers, on the states that the student itself visits."""

from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from rlmask.experts import load_teachers
from rlmask.ops import (
    action_gap,
    masked_argmax,
    masked_entropy,
    masked_log_softmax,
    masked_sample,
    teacher_figures,
)
from rlmask.runs import ALGORITHMS, RunError, read_run
from rlmask.scores import Fidelity
from rlmask.teachers import label
from rlmask.vector import game_names, make_vector

ENVS_PER_GAME = 16


@torch.inference_mode()
def compare(run_dir: Path, num_states: int, seed: int) -> dict[str, Fidelity]:
    """Return figures of each game of a distillation run, over states that its student visits.

    The student acts as in the run's evaluations (`eval_stochastic`), in episodes that training
    never sees.

    Args:
        num_states: of each game, rounded up to a multiple of 16.
        seed: of the episodes and draws.

    Raises:
        RunError: if it is no distillation, or has no checkpoint.
        TeacherError: if a teacher is missing.
    """
    config, state = read_run(run_dir)
    if config.algo != "distill":
        raise RunError(f"{run_dir} is no distillation")
    settings, games = config.settings, config.eval_games
    torch.set_num_threads(settings.num_threads)
    network = ALGORITHMS[config.algo].load_network(settings, state)
    teachers = load_teachers(settings)
    generator = torch.Generator().manual_seed(seed)
    envs = make_vector(
        games,
        ENVS_PER_GAME * len(games),
        seed,
        vectorization=config.eval_vectorization,
        num_actions=settings.num_actions,
        stream=1,
        max_episode_steps=config.options.eval_max_episode_steps,
    )
    seen = []
    with closing(envs):
        obs, mask = envs.reset()
        for _ in range(-(-num_states // ENVS_PER_GAME)):
            logits = network(obs)[0]
            seen.append((logits, label(teachers, obs, mask)))
            if config.options.eval_stochastic:
                action, _ = masked_sample(logits, mask, generator)
            else:
                action = masked_argmax(logits, mask)
            step = envs.step(action)
            obs, mask = step.obs, step.action_mask
    logits = torch.cat([step for step, _ in seen])
    scores, masks = (
        torch.cat([getattr(states, name) for _, states in seen])
        for name in ("scores", "action_mask")
    )
    count = len(games)
    return {
        name: figures(
            logits[game::count],
            scores[game::count],
            masks[game::count],
            float(state["temperatures"][game]),
        )
        for game, name in enumerate(game_names(games))
    }


def figures(logits: Tensor, scores: Tensor, mask: Tensor, temperature: float) -> Fidelity:
    """Return the figures of some states of one game.

    Args:
        logits: of the student [B, A].
        scores: of the teacher [B, A].
        mask: [B, A].
        temperature: of the teacher.
    """
    rows = teacher_figures(logits, scores, mask, temperature)
    gap = action_gap(scores, mask)
    gap = gap.where(gap.isfinite(), 0.0)  # where one action is valid there is nothing to agree on
    weighted = rows["agreement"] @ gap / gap.sum().clamp(min=1e-12)
    return Fidelity(
        **{name: of_name.mean().item() for name, of_name in rows.items()},
        weighted_agreement=weighted.item(),
        student_entropy=masked_entropy(masked_log_softmax(logits, mask), mask).mean().item(),
        states=len(logits),
    )
