"""Actions as they come in: integers that a mask allows, or an error that says what it allows."""

import operator
from typing import Any

import numpy as np

SHOWN = 20  # of a list in a message


class InvalidActionError(ValueError):
    """An action that the rules do not allow; names the env, the action and the valid ones."""


def check_action(action: Any, mask: np.ndarray, game: str) -> int:
    """Return a single env's action as an index.

    Raises:
        InvalidActionError: if it is no integer, or invalid.
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


def check_integers(actions: Any, num_envs: int) -> np.ndarray:
    """Return the actions of a vector env, which may yet be invalid, as an array [N].

    Raises:
        ValueError: unless they are N integers.
    """
    actions = np.asarray(actions)
    if actions.shape != (num_envs,):
        raise ValueError(f"actions have shape {actions.shape}, not ({num_envs},)")
    if actions.dtype.kind not in "iu":
        raise ValueError(f"actions are {actions.dtype}; they have to be integers")
    return actions


def refusal(game: str, index: int, action: Any, mask: np.ndarray) -> InvalidActionError:
    """Return the error for the invalid action of one copy in a vector env."""
    return InvalidActionError(
        f"{game}, env {index}: action {action} is invalid; valid: {list_valid(mask)}"
    )


def list_valid(mask: np.ndarray) -> str:
    """Return the valid actions as text, the first few of many."""
    valid = mask.nonzero()[0].tolist()
    return ", ".join(map(str, valid[:SHOWN])) + (", ..." if len(valid) > SHOWN else "")
