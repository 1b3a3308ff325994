"""The other players of a game, and what else the adapters to other libraries share.

An opponent is a function `(obs, mask, rng) -> action`. It is asked at each turn of every player but
the agent, with that player's observation and mask, which look as the agent's own would, and with
the env's random numbers: drawn from those, its choices are the same again for the same seed.
"""

import operator
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

from rlmask_envs.envs import InvalidActionError

Opponent = Callable[[np.ndarray, np.ndarray, np.random.Generator], Any]

EXTRA = "rlmask[games]"
SHOWN = 20  # of a list in a message
MAX_TRIES = 1000  # games begun in one reset


class OpponentError(ValueError):
    """An opponent chose an action that the rules do not allow; names the opponent."""


def random_action(obs: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> int:
    """Choose any valid action, each as likely as the others."""
    valid = mask.nonzero()[0]
    return int(valid[rng.integers(len(valid))])


def make_opponent(opponent: str | Opponent) -> Opponent:
    """Return an opponent: `random`, a `module:function`, or a function as it is.

    Raises:
        ValueError: if it is something else, or is not to be found.
    """
    if callable(opponent):
        return opponent
    if opponent == "random":
        return random_action
    if isinstance(opponent, str) and ":" in opponent:
        return load_function(opponent)
    raise ValueError(
        f"opponent is {opponent!r}; it takes 'random', 'module:function', or a function "
        "(obs, mask, rng) -> action"
    )


def load_function(path: str) -> Callable[..., Any]:
    """Return the function that `module:function` names.

    Raises:
        ValueError: if there is none.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be loaded: {error}") from error
    if not callable(function):
        raise ValueError(f"{path!r} is not a function")
    return function


def ask(
    opponent: Opponent,
    obs: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    player: str,
) -> int:
    """Return what an opponent does.

    Args:
        player: that it plays for, with the game's name; for the message.

    Raises:
        OpponentError: if that is invalid.
    """
    action = opponent(obs, mask.copy(), rng)
    index = valid_index(action, mask)
    if index < 0:
        raise OpponentError(
            f"opponent {name_of(opponent)} chose {action} for {player}, which is invalid; "
            f"valid: {list_valid(mask)}"
        )
    return index


def name_of(opponent: Opponent) -> str:
    """Return an opponent as `module:function`, as far as it has such a name."""
    name = getattr(opponent, "__qualname__", None)
    return repr(opponent) if name is None else f"{opponent.__module__}:{name}"


def check_action(action: Any, mask: np.ndarray, game: str) -> int:
    """Return the agent's action as an index.

    Raises:
        InvalidActionError: if it is invalid.
    """
    index = valid_index(action, mask)
    if index < 0:
        raise InvalidActionError(f"{game}: action {action} is invalid; valid: {list_valid(mask)}")
    return index


def valid_index(action: Any, mask: np.ndarray) -> int:
    """Return an action as an index, or -1 if it is invalid."""
    try:
        index = operator.index(action)
    except TypeError:
        return -1
    return index if 0 <= index < len(mask) and mask[index] else -1


def list_valid(mask: np.ndarray) -> str:
    """Return the valid actions as text, the first few of many."""
    valid = mask.nonzero()[0].tolist()
    return ", ".join(map(str, valid[:SHOWN])) + (", ..." if len(valid) > SHOWN else "")


def check_seat(seat: int | None, num_players: int, game: str) -> None:
    """Check that a game has a seat.

    Raises:
        ValueError: if not.
    """
    if seat is not None and not 0 <= seat < num_players:
        raise ValueError(
            f"seat is {seat}; {game} has {num_players} of them, 0 to {num_players - 1}, and None "
            "draws one for each episode"
        )


def no_turn(game: str, seat: int) -> RuntimeError:
    """Return the error for a seat that the game never comes to."""
    return RuntimeError(f"{game}: seat {seat} had no turn in {MAX_TRIES:,} games")


def require(module: str) -> ModuleType:
    """Import a module of the extra.

    Raises:
        DependencyNotInstalled: with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise not_installed(error, EXTRA) from error


def not_installed(error: ImportError, package: str) -> DependencyNotInstalled:
    """Return the error for a module that is missing."""
    what = f"no module named {error.name!r}" if error.name else str(error)
    return DependencyNotInstalled(f"{what}; pip install '{package}'")


def unknown_game(library: str, game: str, names: Iterable[str]) -> ValueError:
    """Return the error for a game that there is not."""
    names = sorted(names)
    near = get_close_matches(game.partition("(")[0], names)
    if near:
        return ValueError(f"{library} has no game {game!r}; did you mean {' or '.join(near)}?")
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return ValueError(f"{library} has no game {game!r}; it has {shown}")
