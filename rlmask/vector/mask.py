"""Three mask conventions in, one out: flat bool bytes, checked and copied, or a `MaskError`.

Where an env keeps its mask (`mask_source`):

- `info`: `info["action_mask"]` of `reset` and `step` (Gymnasium's Taxi, AgileRL);
- `obs`: `obs["action_mask"]` of a Dict observation (PettingZoo, RLlib, TorchRL);
- `method`: a method `action_masks()` (sb3-contrib);
- `none`: the env has no mask, every action is valid;
- `auto`: the first of `info`, `obs`, `method` that the env uses, else `none`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

MaskSource = Literal["auto", "info", "obs", "method", "none"]
MASK_SOURCES: tuple[str, ...] = get_args(MaskSource)


class MaskError(ValueError):
    """A mask is missing, malformed or empty; names the env, the index, the step and the fix."""


@dataclass
class Where:
    """The place in a run that an error names; moved along by the env."""

    env_id: str
    index: int = 0
    episode: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"{self.env_id}, env {self.index}, episode {self.episode}, step {self.step}"

    def error(self, problem: str, fix: str) -> MaskError:
        """Return a `MaskError` about this place."""
        return MaskError(f"{self}: {problem}. {fix}.")


def resolve_source(
    wanted: MaskSource, obs: Any, info: Mapping[str, Any], has_method: bool, where: Where
) -> MaskSource:
    """Return where an env that was just reset keeps its mask.

    Args:
        wanted: `auto`, or the only source that will do.
        has_method: whether the env has a method `action_masks`.

    Raises:
        MaskError: if the mask is not where it is wanted; names where it is.
    """
    present: list[MaskSource] = []
    if "action_mask" in info:
        present.append("info")
    if isinstance(obs, Mapping) and "action_mask" in obs:
        present.append("obs")
    if has_method:
        present.append("method")
    found: MaskSource = present[0] if present else "none"
    if wanted == "auto" or wanted in (present or ["none"]):
        return found if wanted == "auto" else wanted
    if wanted == "none":
        raise where.error(
            f"the env has a mask in `{found}`, which `none` would ignore",
            f"Set mask_source to `{found}` or `auto`",
        )
    consequence = ", if every action is always valid" if found == "none" else " or `auto`"
    raise where.error(f"no mask in `{wanted}`", f"Set mask_source to `{found}`{consequence}")


def canonical_mask(mask: Any, nvec: tuple[int, ...], source: str, where: Where) -> bytes:
    """Return a mask as sum(nvec) bytes of 0 and 1, one for each action, in the order of nvec.

    Accepts a flat array of bool or of integers or floats that are all 0 or 1, and for MultiDiscrete
    a tuple with one such array a part. A list is accepted from `action_masks()` only, where it is
    the convention. Nothing is rounded, broadcast or filled in.

    Raises:
        MaskError: for anything else.
    """
    num_actions = sum(nvec)
    shape_fix = f"Give one entry for each of the {num_actions} actions, in a flat bool array"
    if isinstance(mask, tuple) and len(nvec) > 1:
        if len(mask) != len(nvec):
            problem = f"the mask has {len(mask)} parts, the action space {len(nvec)}"
            raise where.error(problem, "Give one array a part")
        return b"".join(
            canonical_mask(part, (n,), source, where) for part, n in zip(mask, nvec, strict=True)
        )
    if (
        isinstance(mask, list)
        and source == "method"
        and not any(hasattr(m, "__len__") for m in mask)
    ):
        mask = np.asarray(mask)
    if not isinstance(mask, np.ndarray) or isinstance(mask, np.ma.MaskedArray):
        problem = f"the mask is a {type(mask).__name__}, not an array"
        raise where.error(problem, "Return np.array(mask, dtype=bool)")
    if mask.shape != (num_actions,):
        raise where.error(f"the mask has shape {mask.shape}, not ({num_actions},)", shape_fix)
    if mask.dtype.kind not in "biuf":
        problem = f"the mask has dtype {mask.dtype}"
        raise where.error(problem, "Return np.array(mask, dtype=bool)")
    is_valid = mask == 1
    wrong = ~(is_valid | (mask == 0))
    if wrong.any():
        at = int(wrong.argmax())
        problem = f"entry {at} of the mask is {mask[at]}, neither 0 nor 1"
        raise where.error(problem, "A mask says valid (1) or not (0); put scores elsewhere")
    return is_valid.tobytes()


def check_not_empty(mask: bytes, nvec: tuple[int, ...], where: Where) -> None:
    """Raise `MaskError` if the mask, or its part for one sub-action, has no valid action."""
    start = 0
    for part, n in enumerate(nvec):
        if 1 not in mask[start : start + n]:
            which = "no action is valid" if len(nvec) == 1 else f"part {part} has no valid action"
            raise where.error(
                f"{which}, but the episode has not terminated",
                "End the episode there (terminated=True), or add an action that does nothing",
            )
        start += n
