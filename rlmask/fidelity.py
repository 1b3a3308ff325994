"""How closely a student follows its teachers, on the states that the student itself visits."""

import sys
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from rlmask.experts import load_teachers
from rlmask.ops import (
    action_gap,
    boltzmann,
    invalid_mass,
    masked_argmax,
    masked_entropy,
    masked_log_softmax,
    masked_sample,
    policy_regression_loss,
)
from rlmask.runs import ALGORITHMS, RunError, newest_checkpoint, read_config
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
        RunError: if there is no checkpoint.
        TeacherError: if a teacher is missing.
    """
    config = read_config(run_dir)
    state, _ = newest_checkpoint(run_dir, lambda text: print(text, file=sys.stderr))
    if state is None or config.algo != "distill":
        raise RunError(f"{run_dir} is no distillation with a checkpoint")
    settings, games = config.settings, config.eval_games
    torch.set_num_threads(settings.num_threads)
    network = ALGORITHMS[config.algo].load_network(settings, state)
    teachers = load_teachers(settings)
    generator = torch.Generator().manual_seed(seed)
    envs = make_vector(
        games,
        ENVS_PER_GAME * len(games),
        seed,
        vectorization="native" if settings.vectorization == "native" else "sync",
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
    agrees = (masked_argmax(logits, mask) == masked_argmax(scores, mask)).float()
    gap = action_gap(scores, mask)
    gap = gap.where(gap.isfinite(), 0.0)  # where one action is valid there is nothing to agree on
    teacher = boltzmann(scores, mask, temperature)
    kl = policy_regression_loss(logits, scores, mask, temperature).loss
    return Fidelity(
        agreement=agrees.mean().item(),
        weighted_agreement=(agrees @ gap / gap.sum().clamp(min=1e-12)).item(),
        kl=kl.mean().item(),
        teacher_entropy=masked_entropy(teacher.log(), mask).mean().item(),
        student_entropy=masked_entropy(masked_log_softmax(logits, mask), mask).mean().item(),
        invalid_mass=invalid_mass(logits, mask).mean().item(),
        states=len(logits),
    )
