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
from numba import njit

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

    reset_some: Callable[..., None]
    step_some: Callable[..., None]


def reset_some(batch: Batch, options_array: np.ndarray, begin: bool, start: int, stop: int) -> None:
    """Write observation and mask of the copies start .. stop - 1; if `begin`, of a new episode."""
    options = options_array[0]
    for i in range(start, stop):
        state = batch.states[i]
        if begin:
            reset(state, batch.rngs[i], options)
            batch.steps[i] = 0
        batch.obs[i] = 0
        batch.masks[i] = 0
        observe(state, batch.obs[i], options)
        valid_actions(state, batch.masks[i], options)


def step_some(
    batch: Batch,
    actions: np.ndarray,
    options_array: np.ndarray,
    max_steps: int,
    restart: bool,
    start: int,
    stop: int,
) -> None:
    """Take a valid action in the copies start .. stop - 1; if `restart`, go on after an end."""
    options = options_array[0]
    for i in range(start, stop):
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


@njit(nogil=True)
def first_invalid(actions: np.ndarray, masks: np.ndarray) -> int:
    """Return the index of the first copy whose action is invalid, or -1."""
    for i in range(len(actions)):
        if not 0 <= actions[i] < masks.shape[1] or masks[i, actions[i]] == 0:
            return i
    return -1


@functools.cache
def loops_of(game: ModuleType) -> Loops:
    """Return the compiled loops of a game; the machine code is kept on disk where possible.

    Raises:
        TypeError: if the module is no game.
    """
    check_game(game)
    return Loops(_compiled(reset_some, game), _compiled(step_some, game))


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
        return njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # nowhere to write to
        return njit(nogil=True)(loop)


@functools.cache
def _digest(file: str) -> str:
    """Return a hash of the source of a game and of everything in this package."""
    sources = sorted({Path(file), *Path(__file__).parent.glob("*.py")})
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
