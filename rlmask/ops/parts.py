"""The parts of a MultiDiscrete action: independent, each with its own softmax.

Dimension key: `*batch` any leading shape, `actions` all parts one after the other.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def split_parts(
    scores: Float[Tensor, "*batch actions"] | Bool[Tensor, "*batch actions"], nvec: tuple[int, ...]
) -> Tensor:
    """Return [*batch, parts, max(nvec)] of a flat MultiDiscrete row; a single part stays as it is.

    The parts are independent: each has its own softmax, log-probabilities and entropies add up.
    Shorter parts are padded with zeros, which in a mask is invalid.

    Raises:
        ValueError: if the row is not sum(nvec) long.
    """
    if scores.shape[-1] != sum(nvec):
        raise ValueError(f"a row of {scores.shape[-1]} scores does not split into parts {nvec}")
    if len(nvec) == 1:
        return scores
    parts = scores.split(nvec, dim=-1)
    return torch.stack(
        [torch.nn.functional.pad(p, (0, max(nvec) - n)) for p, n in zip(parts, nvec, strict=True)],
        dim=-2,
    )


def join_parts(parts: Float[Tensor, "*batch actions"], nvec: tuple[int, ...]) -> Tensor:
    """Return flat rows [*batch, sum(nvec)] of what `split_parts` split, without the padding."""
    if len(nvec) == 1:
        return parts
    return torch.cat([parts[..., i, :n] for i, n in enumerate(nvec)], dim=-1)
