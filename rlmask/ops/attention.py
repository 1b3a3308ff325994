"""Attention over padded memories: weights, contexts and means that padding has no part in.

The mask says which places of a memory exist. What stands at the others, NaN and infinity included,
changes nothing and gets a gradient of exactly 0. A memory without any place is an error, or, with
`empty="zero"`, has weights and a context of exactly 0.

Dimension key: `*batch` any leading shape, `time` places of a memory, `dim` its depth.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmask.ops.checks import EmptyMaskError, check_choice
from rlmask.ops.masking import masked_argmax, masked_softmax
from rlmask.ops.rows import ZERO

Empty = Literal["error", "zero"]
EMPTY = get_args(Empty)


def length_mask(lengths: Int[Tensor, "*batch"], max_length: int) -> Bool[Tensor, "*batch time"]:
    """Return the mask of memories whose first `lengths` places exist, of `max_length` each.

    Raises:
        ValueError: if a length is negative or more than `max_length`.
    """
    if bool(((lengths < 0) | (lengths > max_length)).any()):
        raise ValueError(f"lengths must be in 0..{max_length}, the places that there are")
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(-1)


def attention_weights(
    scores: Float[Tensor, "*batch time"],
    mask: Bool[Tensor, "*batch time"],
    empty: Empty = "error",
) -> Float[Tensor, "*batch time"]:
    """Return α = softmax of the scores over the places that exist, exactly 0 elsewhere.

    The mask comes before the softmax. To take the softmax over all places and divide by what is
    left afterwards is the same on paper, but 0 / 0 as soon as a padded score is 100 above.

    Raises:
        EmptyMaskError: if a row has no place at all and `empty` is `error`.
        ValueError: if `empty` is neither `error` nor `zero`.
    """
    _check_places(mask, empty)
    if empty == "error":
        return masked_softmax(scores, mask)
    weights = masked_softmax(_where(mask, scores), _never_empty(mask))
    return _where(mask, weights)


def hard_attention_weights(
    scores: Float[Tensor, "*batch time"],
    mask: Bool[Tensor, "*batch time"],
    empty: Empty = "error",
) -> Float[Tensor, "*batch time"]:
    """Return 1 at the highest score among the places that exist, 0 elsewhere; no gradient.

    Of the same dtype as `attention_weights`, float32 at least.

    Raises:
        EmptyMaskError, ValueError: as `attention_weights`.
    """
    _check_places(mask, empty)
    best = masked_argmax(_where(mask, scores), _never_empty(mask))
    places = torch.arange(mask.shape[-1], device=mask.device)
    dtype = torch.promote_types(scores.dtype, torch.float32)  # as of a softmax
    return ((places == best.unsqueeze(-1)) & mask).to(dtype)


def attend(
    weights: Float[Tensor, "*batch time"],
    values: Float[Tensor, "*batch time dim"],
    mask: Bool[Tensor, "*batch time"],
) -> Float[Tensor, "*batch dim"]:
    """Return the context Σ_t α_t v_t over the places that exist."""
    # more places may change the order of the sum, and so its rounding; what they hold does not
    return (weights.unsqueeze(-1) * only_existing(values, mask)).sum(-2)


def masked_mean_pool(
    x: Float[Tensor, "*batch time dim"],
    mask: Bool[Tensor, "*batch time"],
    empty: Empty = "error",
) -> Float[Tensor, "*batch dim"]:
    """Return the mean over the places that exist; their order makes no difference but rounding.

    Raises:
        EmptyMaskError, ValueError: as `attention_weights`.
    """
    _check_places(mask, empty)
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    return only_existing(x, mask).sum(-2) / count


def only_existing(
    x: Float[Tensor, "*batch time dim"], mask: Bool[Tensor, "*batch time"]
) -> Float[Tensor, "*batch time dim"]:
    """Return x with 0 in place of padding: by choice, since 0 times NaN is NaN."""
    return _where(mask.unsqueeze(-1), x)


def _where(mask: Tensor, x: Tensor) -> Tensor:
    if x.is_cpu:
        return torch.where(mask, x, ZERO.to(x.dtype))
    return x.masked_fill(~mask, 0.0)


def _never_empty(mask: Tensor) -> Tensor:
    """Return the mask with rows that have no place made full."""
    return mask | ~mask.any(-1, keepdim=True)


def _check_places(mask: Tensor, empty: Empty) -> None:
    check_choice("empty", empty, EMPTY)
    if empty == "zero":
        return
    without = ~mask.any(-1)
    if bool(without.any()):
        row = without.nonzero()[0].tolist()
        raise EmptyMaskError(
            f"memory {row} of a mask of shape {tuple(mask.shape)} has no place to attend to; give "
            'it one, or choose empty="zero" for a context of 0'
        )
