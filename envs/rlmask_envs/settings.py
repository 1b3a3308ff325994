"""Keyword arguments of games: checked where they come in."""

import operator
from collections.abc import Sequence
from typing import Any


def check_size(name: str, value: Any, low: int, high: int) -> int:
    """Return an integer, NumPy's included, as a plain one if it is within bounds.

    Raises:
        ValueError: if not; names it and the bounds.
    """
    try:
        size = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = None
    if size is None or not low <= size <= high:
        raise ValueError(f"{name} is {value!r}; it takes an integer of {low} to {high}")
    return size


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> int:
    """Return the index of a choice.

    Raises:
        ValueError: if it is none; names it and the choices.
    """
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} is {value!r}; it takes {', '.join(others)} or {last}")
    return choices.index(value)
