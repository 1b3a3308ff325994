"""The maximum, its smooth bound, and what rewards it: the confidence bonus of a cross entropy.

Dimension key: `*batch` any leading shape, `actions` the union action set, `B` rows, `A` actions.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlmask.ops.checks import check_choice
from rlmask.ops.distillation import DistillTerms
from rlmask.ops.masking import (
    masked_log_probs_and_probs,
    masked_log_softmax,
    masked_max,
    masked_scores,
    masked_softmax,
)
from rlmask.ops.rows import ZERO, fill_invalid

Confidence = Literal["log_probs", "probs", "logits"]


def masked_logsumexp(
    values: Float[Tensor, "*batch actions"], mask: Bool[Tensor, "*batch actions"]
) -> Float[Tensor, "*batch"]:
    """Return log Σ_{a valid} exp x_a, whose gradient is the softmax over the valid actions.

    With k valid actions it is at least `masked_max`, and at most log k more.
    """
    return masked_scores(values, mask).logsumexp(-1)


def soft_cross_entropy(
    logits: Float[Tensor, "*batch actions"],
    target_probs: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
) -> Float[Tensor, "*batch"]:
    """Return -Σ_{a valid} p(a) log π(a), π the softmax over the valid actions.

    Its least is the entropy of p; its gradient π - p. 0 log 0 is 0.

    Args:
        target_probs: p, which sums to 1 over the valid actions; elsewhere it does not matter.
    """
    log_probs = fill_invalid(masked_log_softmax(logits, mask), mask, ZERO)
    target = fill_invalid(target_probs.to(log_probs.dtype), mask, ZERO)
    return -(target * log_probs).sum(-1)


def confident_cross_entropy(
    logits: Float[Tensor, "*batch actions"],
    target_probs: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
    alpha: float,
    of: Confidence = "log_probs",
) -> Float[Tensor, "*batch"]:
    """Return `soft_cross_entropy` - α max_{a valid} c(a), with c = log π (or π).

    Both are bounded below, at a policy sharper than p: -α max log π is α times the min-entropy.

    Raises:
        ValueError: if the maximum is to be of the logits, see `check_confidence`, or α < 0.
    """
    check_confidence(alpha, of)
    of_probs = masked_softmax if of == "probs" else masked_log_softmax
    highest = masked_max(of_probs(logits, mask), mask)
    return soft_cross_entropy(logits, target_probs, mask) - alpha * highest


@torch.no_grad()
def confidence_bonus(
    logits: Float[Tensor, " B A"],
    mask: Bool[Tensor, " B A"],
    alpha: float,
    of: Confidence = "log_probs",
) -> DistillTerms:
    """Return -α max_{a valid} c(a) of `confident_cross_entropy`, and its gradient by the logits.

    With m the best valid action (equals share) and e_m its one-hot vector, the gradient is

        -α (e_m - π)  of log-probabilities          -α π_m (e_m - π)  of probabilities

    Raises:
        ValueError: as of `confident_cross_entropy`.
    """
    check_confidence(alpha, of)
    log_probs, probs = masked_log_probs_and_probs(logits, mask)
    best = log_probs.amax(-1, keepdim=True)
    is_best = ((log_probs == best) & mask).to(probs.dtype)
    gradient = alpha * (probs - is_best / is_best.sum(-1, keepdim=True))
    if of == "log_probs":
        return DistillTerms(-alpha * best.squeeze(-1), gradient.to(logits.dtype))
    highest = probs.amax(-1, keepdim=True)
    return DistillTerms(-alpha * highest.squeeze(-1), (gradient * highest).to(logits.dtype))


def check_confidence(alpha: float, of: Confidence) -> None:
    """Raise unless a cross entropy less α times this maximum has a least value.

    Raises:
        ValueError: says why there is none.
    """
    check_choice("of", of, get_args(Confidence))
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"the confidence bonus is {alpha}: it must be finite, and not negative")
    if of == "logits":
        raise ValueError(
            "the confidence of logits is unbounded: adding c to all logits of a state leaves the "
            "cross entropy as it is and lowers the loss by α c, so that it has no least value; "
            "take that of log_probs or probs"
        )
