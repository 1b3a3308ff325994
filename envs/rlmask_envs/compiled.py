"""From the rules of a game to two compiled loops over N copies of it.

The loops are written once, against the names in `rules`. For each game they are made anew with the
functions of that game under these names, and compiled with the rules inside of them.
"""

import functools
import hashlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from numba import njit

from rlmask_envs.batch import Batch
from rlmask_envs.rules import RULES, check_game, observe, reset, step, valid_actions


def reset_some(
    batch: Batch, begin: np.ndarray, options_array: np.ndarray, start: int, stop: int
) -> None:
    """Write observation and mask of copies start .. stop - 1, of a new episode if `begin[i]`."""
    options = options_array[0]
    for i in range(start, stop):
        state = batch.states[i]
        if begin[i]:
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
    """Take a valid action in copies start .. stop - 1; where one ends, begin anew if `restart`."""
    options = options_array[0]
    for i in range(start, stop):
        state, rng = batch.states[i], batch.rngs[i]
        reward, terminated = step(state, actions[i], rng, options)
        batch.steps[i] += 1
        truncated = batch.steps[i] >= max_steps
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


@njit(nogil=True, cache=True)
def first_invalid(actions, masks):
    """Return the index of the first copy whose action is invalid, or -1."""
    for i in range(len(actions)):
        if not 0 <= actions[i] < masks.shape[1] or masks[i, actions[i]] == 0:
            return i
    return -1


@dataclass(frozen=True)
class CompiledGame:
    """A game with its loops; pickled by the name of its module."""

    module: ModuleType
    reset_some: Callable[..., None]
    step_some: Callable[..., None]

    @property
    def name(self) -> str:
        """Return the module's own name, without its package."""
        return self.module.__name__.rpartition(".")[2]

    def __reduce__(self) -> tuple[Callable[[str], "CompiledGame"], tuple[str]]:
        return compile_game, (self.module.__name__,)


def compile_game(name: str) -> CompiledGame:
    """Return the game that a module is; compiled at the first call, or found on disk.

    Raises:
        TypeError: if the module is no game.
    """
    module = importlib.import_module(name)
    check_game(module)
    rules = tuple(getattr(module, name) for name in RULES)
    return CompiledGame(module, *_loops(str(module.__file__), *rules))


@functools.cache
def _loops(file: str, *rules: Any) -> tuple[Any, Any]:
    """Return the loops with these rules in them; others, also after a reload, have other loops."""
    digest = hashlib.sha256()
    for part in (reset_some, step_some):
        digest.update(part.__code__.co_code)
    for part in what_it_is_made_of(rules):
        digest.update(part)
    name = digest.hexdigest()[:16]
    return _compiled(reset_some, rules, file, name), _compiled(step_some, rules, file, name)


def _compiled(template: Callable[..., Any], rules: Any, file: str, digest: str) -> Any:
    """Return a loop in which the names of `rules` mean the functions of one game."""
    code = template.__code__.replace(co_filename=file)
    names = {**globals(), **dict(zip(RULES, rules, strict=True))}
    loop = FunctionType(code, names, template.__name__)
    # Numba finds machine code on disk by file and name, and looks whether that file has changed;
    # what else the code is made of is in the name
    loop.__qualname__ = f"{template.__name__}_{digest}"
    try:
        return njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # nowhere to write to
        return njit(nogil=True)(loop)


def what_it_is_made_of(functions: Any) -> Iterator[bytes]:
    """Yield the code of compiled functions, of all that they call, and their global constants."""
    found, left = set(), list(functions)
    while left:
        function = left.pop(0)
        if function in found:
            continue
        found.add(function)
        code = function.py_func.__code__
        yield code.co_code
        yield repr((code.co_name, code.co_consts, code.co_names, code.co_varnames)).encode()
        for name in code.co_names:
            value = function.py_func.__globals__.get(name)
            if hasattr(value, "py_func"):
                left.append(value)
            elif isinstance(value, np.ndarray):
                yield f"{name} {value.dtype} {value.shape}".encode() + value.tobytes()
            elif not isinstance(value, ModuleType) and not callable(value):
                yield f"{name} {value!r}".encode()
