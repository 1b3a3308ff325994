"""Checks of masks and actions inside the ops, for looking for a fault: off unless switched on.

Dimension key: `*batch` any leading shape, `actions` the union action set.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from jaxtyping import Bool, Int
from torch import Tensor

_debug = False


class EmptyMaskError(ValueError):
    """A row of a mask has no valid entry, so there is no distribution over it."""


class InvalidActionError(ValueError):
    """An action was used that its mask rules out."""


def set_debug(enabled: bool) -> bool:
    """Check every mask in every op: empty rows and invalid actions raise. Forces a device sync.

    Returns what was set before.
    """
    global _debug
    before, _debug = _debug, enabled
    return before


@contextmanager
def debugging(enabled: bool) -> Iterator[None]:
    """`set_debug(True)` for a while, if `enabled`; otherwise leave it as it is."""
    before = set_debug(enabled or _debug)
    try:
        yield
    finally:
        set_debug(before)


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise `ValueError` unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def check_mask(mask: Bool[Tensor, "*batch actions"]) -> None:
    """Raise `EmptyMaskError` if a row has no valid entry."""
    empty = ~mask.any(dim=-1)
    if bool(empty.any()):
        row = empty.nonzero()[0].tolist()
        raise EmptyMaskError(
            f"mask row {row} of shape {tuple(mask.shape)} has no valid action; a state in which "
            "the episode goes on needs at least one"
        )


def check_rows(mask: Tensor) -> None:
    """`check_mask` under `set_debug(True)`."""
    if _debug:
        check_mask(mask)


def check_action(mask: Bool[Tensor, "*batch actions"], action: Int[Tensor, "*batch"]) -> None:
    """Raise under `set_debug(True)` if a row is empty, or a mask rules its action out."""
    if not _debug:
        return
    check_mask(mask)
    chosen_valid = mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    if not bool(chosen_valid.all()):
        row = (~chosen_valid).nonzero()[0].tolist()
        raise InvalidActionError(
            f"action {int(action[tuple(row)])} in row {row} is ruled out by its mask; "
            "its log-probability does not exist"
        )
