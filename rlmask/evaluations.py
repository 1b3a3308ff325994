"""Evaluations of an experiment: every player in the same episodes, in several processes."""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from rlmask import run
from rlmask.board import Board
from rlmask.checkpoint import replace_synced
from rlmask.experts import load_teachers
from rlmask.fidelity import compare
from rlmask.runs import parse_config
from rlmask.scores import Fidelity, Played, read_played
from rlmask.teachers import random_policy, teacher_policy
from rlmask.types import Episode
from rlmask.vector import game_names

FIDELITY_STATES = 4000  # of each game


@dataclass(frozen=True, kw_only=True)
class Task:
    """An evaluation: who plays, and where the figures go."""

    path: Path
    kind: Literal["teacher", "random", "student", "baseline"]
    run_dir: str
    settings: dict[str, Any]  # of the run whose games are played


def evaluate_all(wanted: Sequence[Task], num_workers: int, board: Board) -> None:
    """Evaluate whatever has no figures of the same protocol yet, in several processes."""
    missing = [task for task in wanted if not is_evaluated(task)]
    if not missing:
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(missing)), mp_context=context) as pool:
        futures = {pool.submit(evaluate_task, task): task for task in missing}
        for count, future in enumerate(as_completed(futures), 1):
            future.result()
            board.say(f"evaluated {futures[future].path.stem} ({count} of {len(missing)})")


def protocol_of(task: Task) -> dict[str, Any]:
    """Return what the figures of a task depend on beside the player."""
    names = ("games", "num_actions", "seed", "teachers", "temperature")
    names += ("eval_episodes", "eval_stochastic", "eval_max_episode_steps", "eval_env_kwargs")
    return json.loads(json.dumps({name: task.settings[name] for name in names}))


def is_evaluated(task: Task) -> bool:
    """Whether there are figures of the same protocol."""
    try:
        return json.loads(task.path.read_text())["protocol"] == protocol_of(task)
    except (OSError, ValueError, KeyError):
        return False


def evaluate_task(task: Task) -> None:
    """Play all games with a player, and write the figures.

    Raises:
        RunError, TeacherError, CheckpointError: if the player cannot be loaded.
    """
    config = parse_config(task.settings, str(task.path))
    seed, greedy = config.settings.seed, not config.options.eval_stochastic
    if task.kind == "teacher":
        policy = teacher_policy(load_teachers(config.settings), greedy=greedy, seed=seed)
    elif task.kind == "random":
        policy = random_policy(seed)
    else:
        policy = run.load(task.run_dir, greedy=greedy, seed=seed)
    episodes = run.play_games(config, policy, seed=seed)
    fidelity = {}
    if task.kind == "student":
        fidelity = compare(Path(task.run_dir), FIDELITY_STATES, seed)
    names = game_names(config.eval_games)
    figures = {
        "protocol": protocol_of(task),
        "played": {
            name: asdict(played([e for e in episodes if e.game == index]))
            for index, name in enumerate(names)
        },
        "fidelity": {name: asdict(one) for name, one in fidelity.items()},
    }
    task.path.parent.mkdir(parents=True, exist_ok=True)
    replace_synced(task.path, json.dumps(figures).encode())


def played(episodes: Sequence[Episode]) -> Played:
    """Return the figures of some episodes."""
    return Played(
        returns=tuple(episode.episode_return for episode in episodes),
        lengths=tuple(episode.episode_length for episode in episodes),
        invalid_actions=sum(episode.invalid_actions for episode in episodes),
    )


def read_figures(path: Path) -> tuple[dict[str, Played], dict[str, Fidelity]]:
    """Return what `evaluate_task` wrote, by the game's name."""
    figures = json.loads(path.read_text())
    episodes = {name: read_played(one) for name, one in figures["played"].items()}
    return episodes, {name: Fidelity(**one) for name, one in figures["fidelity"].items()}
