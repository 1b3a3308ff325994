"""From the rules of a game to two compiled loops over N copies of it.

The loops are written once, against the names in `rules`. For each game they are made anew with the
functions of that game under these names, and compiled with the rules inside of them.
"""

import functools
import hashlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
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


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that lets other threads run, and keep it on disk if that is possible."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere to write to
        return njit(nogil=True)(function)


@compiled
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
    for template in (reset_some, step_some):
        digest.update(repr(list(what_code_is(template.__code__))).encode())
    for part in what_it_is_made_of(rules):
        digest.update(part)
    name = digest.hexdigest()[:16]
    return _with_rules(reset_some, rules, file, name), _with_rules(step_some, rules, file, name)


def _with_rules(template: Callable[..., Any], rules: Any, file: str, digest: str) -> Any:
    """Return a loop in which the names of `rules` mean the functions of one game."""
    code = template.__code__.replace(co_filename=file)
    names = {**globals(), **dict(zip(RULES, rules, strict=True))}
    loop = FunctionType(code, names, template.__name__)
    # Numba finds machine code on disk by file and name, and looks whether that file has changed;
    # what else the code is made of is in the name
    loop.__qualname__ = f"{template.__name__}_{digest}"
    return compiled(loop)


def what_it_is_made_of(functions: Any) -> Iterator[bytes]:
    """Yield the code of compiled functions, of all that they call, and the constants they read."""
    found, left = set(), list(functions)
    while left:
        dispatcher = left.pop(0)
        if dispatcher in found:
            continue
        found.add(dispatcher)
        function = dispatcher.py_func
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        yield repr([*what_code_is(function.__code__), function.__defaults__]).encode()
        closed_over = zip(function.__code__.co_freevars, cells, strict=True)
        for name, value in [*named(function), *closed_over]:
            if hasattr(value, "py_func"):
                left.append(value)
            elif isinstance(value, np.ndarray):
                yield f"{name} {value.dtype} {value.shape}".encode() + value.tobytes()
            elif not callable(value):
                yield f"{name} {value!r}".encode()


def what_code_is(code: CodeType) -> Iterator[Any]:
    """Yield what tells a function's code from another's, wherever it is in memory."""
    yield code.co_name, code.co_code, code.co_names, code.co_varnames
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from what_code_is(constant)
        else:
            yield constant


def named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the globals that a function reads, those of modules too; NumPy's and such stay out."""
    names = function.__code__.co_names
    for name in names:
        value = function.__globals__.get(name)
        if not isinstance(value, ModuleType):
            yield name, value
        elif value.__name__.partition(".")[0] not in ("numpy", "numba", "math"):
            yield from ((f"{name}.{inner}", getattr(value, inner, None)) for inner in names)
