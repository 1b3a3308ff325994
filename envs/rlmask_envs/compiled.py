"""From the rules of a game to two compiled loops over N copies of it.

The loops are written once, against the names in `rules`. For each game they are made anew with the
functions of that game under these names, and compiled with the rules inside of them.
"""

import functools
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from rlmask_envs.rules import RULES, check_game, observe, reset, step, valid_actions


class Batch(NamedTuple):
    """N copies of a game, and what there is to tell of them after a reset or a step."""

    states: np.ndarray  # [N] records
    rngs: np.ndarray  # [N, 2] uint64, key and counter
    steps: np.ndarray  # [N] int64, since the episode began
    obs: np.ndarray  # [N, *obs]
    masks: np.ndarray  # [N, A] int8
    rewards: np.ndarray  # [N] float64
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    final_obs: np.ndarray  # [N, *obs], of those that ended and were restarted
    final_masks: np.ndarray  # [N, A] int8


class Loops(NamedTuple):
    """The two compiled loops of a game."""

    reset_all: Callable[..., None]
    step_all: Callable[..., int]


def reset_all(batch: Batch, options: Any, start: bool) -> None:
    """Write observation and mask of every copy, after it has started an episode if `start`."""
    for i in prange(len(batch.states)):
        state = batch.states[i]
        if start:
            reset(state, batch.rngs[i], options)
            batch.steps[i] = 0
        batch.obs[i] = 0
        batch.masks[i] = 0
        observe(state, batch.obs[i], options)
        valid_actions(state, batch.masks[i], options)


def step_all(
    batch: Batch, actions: np.ndarray, options: Any, max_steps: int, restart: bool
) -> int:
    """Take an action in every copy; start a new episode where one ended if `restart`.

    Returns the index of the first copy whose action is invalid, in which case nothing was done,
    or -1.
    """
    for i in range(len(actions)):
        if not 0 <= actions[i] < batch.masks.shape[1] or batch.masks[i, actions[i]] == 0:
            return i
    for i in prange(len(actions)):
        state, rng = batch.states[i], batch.rngs[i]
        reward, terminated = step(state, actions[i], rng, options)
        batch.steps[i] += 1
        truncated = not terminated and batch.steps[i] >= max_steps
        batch.rewards[i] = reward
        batch.terminated[i] = terminated
        batch.truncated[i] = truncated
        if restart and (terminated or truncated):
            batch.final_obs[i] = 0
            batch.final_masks[i] = 0
            observe(state, batch.final_obs[i], options)
            valid_actions(state, batch.final_masks[i], options)
            reset(state, rng, options)
            batch.steps[i] = 0
        batch.obs[i] = 0
        batch.masks[i] = 0
        observe(state, batch.obs[i], options)
        valid_actions(state, batch.masks[i], options)
    return -1


@functools.cache
def loops_of(game: ModuleType) -> Loops:
    """Return the compiled loops of a game; the machine code is kept on disk where possible.

    Raises:
        TypeError: if the module is no game.
    """
    check_game(game)
    return Loops(_compiled(reset_all, game), _compiled(step_all, game))


def load_game(name: str) -> ModuleType:
    """Import the module of a game.

    Raises:
        TypeError: if the module is no game.
    """
    game = importlib.import_module(name)
    check_game(game)
    return game


def _compiled(template: Callable[..., Any], game: ModuleType) -> Any:
    """Return a loop in which the names of `rules` mean the functions of one game."""
    code, file = template.__code__, str(game.__file__)
    rules = {name: getattr(game, name) for name in RULES}
    loop = FunctionType(code.replace(co_filename=file), {**globals(), **rules}, template.__name__)
    # Numba finds machine code on disk by file and name, and looks whether that file has changed;
    # what else the code is made of is in the name
    loop.__qualname__ = f"{template.__name__}_{_digest(file)}"
    try:
        return njit(parallel=True, cache=True)(loop)
    except RuntimeError:  # nowhere to write to
        return njit(parallel=True)(loop)


@functools.cache
def _digest(file: str) -> str:
    """Return a hash of the source of a game and of everything in this package."""
    sources = sorted({Path(file), *Path(__file__).parent.glob("*.py")})
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
