"""The other players of a game, and what else the adapters to other libraries share.

An opponent is a function `(obs, mask, rng) -> action`. It is asked at each turn of every player but
the agent, with that player's observation and mask, which look as the agent's own would, and with
the env's random numbers: drawn from those, its choices are the same again for the same seed. Named
as `module:function` it has to be in a module that Python finds: installed, on PYTHONPATH, or, for
the command `rlmask`, in the working directory.
"""

import operator
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled, Error

from rlmask_envs.actions import SHOWN, list_valid, valid_index

Opponent = Callable[[np.ndarray, np.ndarray, np.random.Generator], Any]

EXTRA = "rlmask[games]"
MAX_TRIES = 1000  # games begun in one reset


class OpponentError(Error):
    """An opponent chose an action that the rules do not allow; names the opponent."""


class GameError(Error):
    """A game of another library does not keep to what it is played by; names the game."""


def random_action(obs: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> int:
    """Choose any valid action, each as likely as the others."""
    valid = mask.nonzero()[0]
    return int(valid[rng.integers(len(valid))])


def make_opponent(opponent: str | Opponent) -> Opponent:
    """Return an opponent: `random`, a `module:function`, or a function as it is.

    Python has to find the module: installed, on PYTHONPATH, or in the working directory.

    Raises:
        ValueError: if it is something else, or is not to be found.
    """
    if callable(opponent):
        return opponent
    if opponent == "random":
        return random_action
    if isinstance(opponent, str) and ":" in opponent:
        function = load_named(opponent)
        if not callable(function):
            raise ValueError(f"{opponent!r} is not a function")
        return function
    raise ValueError(
        f"opponent is {opponent!r}; it takes 'random', 'module:function', or a function "
        "(obs, mask, rng) -> action"
    )


def load_named(path: str) -> Any:
    """Return what `module:name` names, or the module; nothing is called.

    Raises:
        ValueError: if there is no such thing.
    """
    module, colon, name = path.partition(":")
    try:
        found = import_module(module)
        return getattr(found, name) if colon else found
    except AttributeError as error:
        raise ValueError(f"{path!r} cannot be loaded: {error}") from error
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path!r} cannot be loaded: {error}; its module has to be installed or on PYTHONPATH"
        ) from error


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
        GameError: if everything would be.
    """
    if not mask.any():
        raise GameError(f"{player} has no valid action, though the game goes on")
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


def check_seat(seat: int | None, num_players: int, game: str) -> None:
    """Check that a game has a seat.

    Raises:
        ValueError: if not, or if it is no integer.
    """
    if seat is None:
        return
    try:
        index = -1 if isinstance(seat, bool) else operator.index(seat)
    except TypeError:
        index = -1
    if not 0 <= index < num_players:
        raise ValueError(
            f"seat is {seat!r}; {game} has {num_players} of them, the integers 0 to "
            f"{num_players - 1}, and None draws one for each episode"
        )


def no_turn(game: str, seat: int) -> GameError:
    """Return the error for a seat that the game never comes to."""
    return GameError(f"{game}: seat {seat} had no turn in {MAX_TRIES:,} games")


def require(module: str, extra: str = EXTRA) -> ModuleType:
    """Import a module of an extra of rlmask.

    Raises:
        DependencyNotInstalled: with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise not_installed(error, extra) from error


def not_installed(error: ImportError, package: str) -> DependencyNotInstalled:
    """Return the error for a module that is missing, or one that does not load."""
    is_missing = isinstance(error, ModuleNotFoundError) and error.name
    what = f"no module named {error.name!r}" if is_missing else str(error)
    return DependencyNotInstalled(f"{what}; pip install '{package}'")


def too_old(package: str, version: str, oldest: str, extra: str) -> DependencyNotInstalled:
    """Return the error for a package of an earlier version than will do."""
    return DependencyNotInstalled(
        f"{package} is {version}; it has to be {oldest} or later; pip install '{extra}'"
    )


def unknown_game(library: str, game: str, names: Iterable[str]) -> ValueError:
    """Return the error for a game that there is not."""
    names = sorted(names)
    near = get_close_matches(game.partition("(")[0], names)
    if near:
        return ValueError(f"{library} has no game {game!r}; did you mean {' or '.join(near)}?")
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return ValueError(f"{library} has no game {game!r}; it has {shown}")
