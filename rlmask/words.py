"""Figures as people read them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlmask.scores import Estimate, Played, mean_return, standard_error


def with_error(played: Sequence[Played]) -> str:
    """Return a mean return with its standard error."""
    return plus_minus(mean_return(played), standard_error(played))


def plus_minus(mean: float, error: float) -> str:
    """Return a mean with its standard error; alone if that is not defined."""
    return number(mean) + (f" ± {number(error)}" if math.isfinite(error) else "")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in r) + " |" for r in lines)


def with_interval(found: Estimate | None) -> str:
    """Return a score in percent, with its interval."""
    if found is None:
        return "–"
    return f"{100 * found.value:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def percent(found: Estimate | None) -> str:
    """Return a score in percent."""
    return "–" if found is None else f"{100 * found.value:.0f}"


def number(value: float) -> str:
    """Return a number with three figures that matter: 7,027; 13.4; 0.031."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Return a time as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min"


def text_of(value: Any) -> str:
    """Return any value as text."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(text_of(item) for item in value)
    return str(value)
