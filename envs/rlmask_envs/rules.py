"""What a game is: a module with the functions below, and `setup`. This one only says what they are.

The functions are plain scalar Python, compiled by Numba, over arrays of fixed size: they allocate
nothing, make no objects, raise nothing, and call only each other and `rlmask_envs.rng`, so that
they compile for a GPU as well (`scripts/compile_for_gpu.py`). Their arguments:

- `state`: a record of the dtype that `setup` gives; its fields are numbers and arrays. It holds
  everything that the rest of the episode depends on.
- `rng`: the env's own source of randomness, for the functions of `rlmask_envs.rng`.
- `options`: a record of what `setup` gives under that name, the same for all envs; read only.

`docs/games.md` shows a whole game.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces


@dataclass(frozen=True)
class Setup:
    """What `setup(**sizes)` of a game returns: all that depends on its sizes, but on no episode.

    Attributes:
        state: the fields of `state`; rlmask_envs aligns them.
        options: what the rules may read besides: numbers and arrays by name.
        observation_space: a Box of uint8 or float32.
        num_actions: A.
    """

    state: np.dtype
    options: Mapping[str, Any]
    observation_space: spaces.Box
    num_actions: int


def setup(**sizes: Any) -> Setup:
    """Return the `Setup` of the game for these sizes; every one has a default.

    Raises:
        ValueError: for sizes that the game cannot be played in; says which can.
    """
    raise NotImplementedError


def reset(state: Any, rng: Any, options: Any) -> None:
    """Start an episode: set every field of `state`, which holds the end of the last one.

    At least one action is valid then.
    """
    raise NotImplementedError


def step(state: Any, action: Any, rng: Any, options: Any) -> tuple[float, bool]:
    """Take a valid action; return the reward and whether the episode terminated.

    Unless it did, at least one action is valid afterwards.
    """
    raise NotImplementedError


def observe(state: Any, obs: Any, options: Any) -> None:
    """Write the observation of `state` to `obs`, which is all 0."""
    raise NotImplementedError


def valid_actions(state: Any, mask: Any, options: Any) -> None:
    """Write 1 (or True) to the entries of `mask`, all 0, whose actions the rules allow."""
    raise NotImplementedError


def image(state: Any, options: Any) -> np.ndarray:
    """Return a picture of `state`, [height, width, 3] uint8; ordinary Python, see `drawing`."""
    raise NotImplementedError


def text(state: Any, options: Any) -> str:
    """Return `state` as lines of text; ordinary Python."""
    raise NotImplementedError


RULES = ("reset", "step", "observe", "valid_actions")  # compiled
OTHERS = ("setup", "image", "text")


def set_up(game: ModuleType, sizes: Mapping[str, Any]) -> Setup:
    """Return the `Setup` of a game for some keyword arguments.

    Raises:
        ValueError: if the game does not take one, or not this value of it.
        TypeError: as `check_setup`.
    """
    known = list(inspect.signature(game.setup).parameters)
    for name in sizes:
        if name not in known:
            short = game.__name__.rpartition(".")[2]
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise ValueError(f"{short} has no argument {name}; {hint}")
    return check_setup(game.setup(**sizes))


def check_setup(setup: Setup) -> Setup:
    """Return a setup if it can be played.

    Raises:
        TypeError: if a field is named like an attribute of NumPy's records, which would hide it, or
            the observation is neither uint8 nor float32.
    """
    hidden = {*(setup.state.names or ()), *setup.options} & set(dir(np.record))
    if hidden:
        raise TypeError(f"a record of NumPy has its own `{hidden.pop()}`; name the field otherwise")
    if setup.observation_space.dtype not in (np.uint8, np.float32):
        raise TypeError(f"observations are {setup.observation_space.dtype}, not uint8 or float32")
    return setup


def check_game(game: ModuleType) -> None:
    """Check that a module has what a game needs.

    Raises:
        TypeError: if not; names what is missing.
    """
    missing = [name for name in (*RULES, *OTHERS) if not callable(getattr(game, name, None))]
    if missing:
        raise TypeError(f"{game.__name__} is no game: it has no function {', '.join(missing)}")
