"""Learning which actions are valid: precision, recall and F-beta as losses, and elimination.

A head gives each action a probability p of being valid; y says whether it is. As a rule only the
taken action has a label. Precision and recall here are those of "valid", of counts over a batch:
TP = Σ y p, FP = Σ (1 - y) p, FN = Σ y (1 - p), over labelled entries.

Dimension key: `B` rows, `A` union actions, `F` features, `C` 1 or A: counted together or by action.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmask.ops.rows import ZERO


class Counts(NamedTuple):
    """True positives, false positives and false negatives, and how many labels they are of.

    Attributes:
        num_valid: labels that say valid, by weight.
        num_invalid: labels that say invalid, by weight.
    """

    tp: Float[Tensor, " C"]
    fp: Float[Tensor, " C"]
    fn: Float[Tensor, " C"]
    num_valid: Float[Tensor, " C"]
    num_invalid: Float[Tensor, " C"]


def soft_counts(
    prob: Float[Tensor, " B A"],
    valid: Bool[Tensor, " B A"],
    labelled: Bool[Tensor, " B A"],
    *,
    weight: Float[Tensor, " B A"] | None = None,
    per_action: bool = False,
) -> Counts:
    """Return the counts of probabilities, each a share of a prediction.

    Args:
        labelled: where `valid` says something; elsewhere the probability plays no part.
        weight: of each label, at least 0; None: 1.
        per_action: count each action by itself.
    """
    one = torch.ones_like(prob) if weight is None else weight

    def total(x: Tensor, where: Tensor) -> Tensor:
        kept = torch.where(where, x * one, ZERO.to(x.dtype))
        return kept.sum(0) if per_action else kept.sum().unsqueeze(0)

    is_valid, is_invalid = labelled & valid, labelled & ~valid
    # as a difference from 1 only where it is counted: p may be anything elsewhere
    return Counts(
        tp=total(prob, is_valid),
        fp=total(prob, is_invalid),
        fn=total(1 - prob, is_valid),
        num_valid=total(torch.ones_like(prob), is_valid),
        num_invalid=total(torch.ones_like(prob), is_invalid),
    )


def rounded(
    prob: Float[Tensor, " B A"], *, threshold: float = 0.5, slope: float | None = None
) -> Float[Tensor, " B A"]:
    """Return 1 where p > threshold, else 0; with a gradient, which rounding itself has not.

    p = threshold is 0, as `torch.round` has it at 0.5.

    Args:
        slope: k of the gradient k σ'(k (p - threshold)), that of a sharp sigmoid in its place;
            None: 1, as if nothing had been rounded (straight through).

    Reference: Bengio et al. 2013, arXiv:1308.3432 (straight through).
    """
    smooth = prob if slope is None else torch.sigmoid(slope * (prob - threshold))
    hard = (prob > threshold).to(prob.dtype)
    return hard + (smooth - smooth.detach())  # the difference is exactly 0


def precision_loss(counts: Counts, *, smoothing: float = 1.0) -> Float[Tensor, ""]:
    """Return 1 - P, P = (TP + s) / (TP + FP + s); the mean over actions with an invalid label.

    An action whose labels are all valid has P = 1 whatever is predicted, and says nothing.

    Args:
        smoothing: s >= 0. With 1 the gradient is at most 1 however little is predicted; with 0 it
            is without bound, but 0 where nothing is predicted and P = 1 by definition.
    """
    ratio = ratio_of(counts.tp, counts.tp + counts.fp, smoothing)
    return mean_shortfall(ratio, counts.num_invalid > 0)


def recall_loss(counts: Counts, *, smoothing: float = 1.0) -> Float[Tensor, ""]:
    """Return 1 - R, R = (TP + s) / (TP + FN + s); the mean over actions with a valid label.

    By itself it is solved by calling everything valid.

    Args:
        smoothing: see `precision_loss`.
    """
    ratio = ratio_of(counts.tp, counts.tp + counts.fn, smoothing)
    return mean_shortfall(ratio, counts.num_valid > 0)


def f_beta_loss(counts: Counts, *, beta: float = 1.0, smoothing: float = 1.0) -> Float[Tensor, ""]:
    """Return 1 - F, F = ((1 + β²) TP + s) / ((1 + β²) TP + β² FN + FP + s).

    The mean over actions that have a valid label. Its gradient is weak at first; mix it with
    `validity_bce`.

    Args:
        beta: how much more recall matters than precision.
        smoothing: see `precision_loss`.
    """
    hits = (1 + beta**2) * counts.tp
    ratio = ratio_of(hits, hits + beta**2 * counts.fn + counts.fp, smoothing)
    return mean_shortfall(ratio, counts.num_valid > 0)


def ratio_of(
    part: Float[Tensor, " C"], whole: Float[Tensor, " C"], smoothing: float
) -> Float[Tensor, " C"]:
    """Return (part + s) / (whole + s), and 1 without a gradient where that is 0 / 0."""
    is_empty = whole + smoothing <= 0
    # both are replaced before the division: the gradient of 0 / 0 is NaN even if it is not used
    one = torch.ones_like(whole)
    return torch.where(is_empty, one, part + smoothing) / torch.where(
        is_empty, one, whole + smoothing
    )


def mean_shortfall(ratio: Float[Tensor, " C"], counted: Bool[Tensor, " C"]) -> Float[Tensor, ""]:
    """Return the mean of 1 - ratio over what is counted; 0 if nothing is."""
    shortfall = torch.where(counted, 1 - ratio, ZERO.to(ratio.dtype))
    return shortfall.sum() / counted.sum().clamp(min=1)


def validity_bce(
    logits: Float[Tensor, " B A"],
    valid: Bool[Tensor, " B A"],
    labelled: Bool[Tensor, " B A"],
    *,
    weight: Float[Tensor, " B A"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of -y log σ(z) - (1 - y) log(1 - σ(z)) over labelled entries; 0 of none.

    Args:
        weight: of each label, at least 0; the mean is a weighted one.
    """
    zero = ZERO.to(logits.dtype)
    z = torch.where(labelled, logits, zero)
    share = labelled.to(logits.dtype) if weight is None else torch.where(labelled, weight, zero)
    # softplus(-z) = -log σ(z), softplus(z) = -log(1 - σ(z))
    loss = torch.nn.functional.softplus(torch.where(valid, -z, z))
    return (share * loss).sum() / share.sum().clamp(min=torch.finfo(logits.dtype).tiny)


class Ridge(NamedTuple):
    """A linear regression for each action.

    Attributes:
        theta: V⁻¹ Σ φ e [A, F].
        inverse: V⁻¹ [A, F, F], V = λ I + Σ φ φᵀ.
    """

    theta: Float[Tensor, " A F"]
    inverse: Float[Tensor, " A F F"]


def fit_ridge(
    features: Float[Tensor, " B F"],
    action: Int[Tensor, " B"],
    invalid: Bool[Tensor, " B"],
    num_actions: int,
    *,
    strength: float,
) -> Ridge:
    """Return the regression of e = 1 for invalid, 0 for valid, on the features where it was taken.

    Args:
        strength: λ > 0.

    Raises:
        ValueError: if the strength is not positive and finite.

    Reference: Zahavy et al. 2018, arXiv:1809.02121, section 4.
    """
    if not 0 < strength < math.inf:
        raise ValueError(
            f"strength is {strength}: it must be positive and finite, or V has no inverse"
        )
    width = features.shape[-1]
    gram = features.new_zeros(num_actions, width, width)
    gram.diagonal(dim1=1, dim2=2).fill_(strength)
    moment = features.new_zeros(num_actions, width)
    signal = invalid.to(features.dtype)
    for chosen in action.unique().tolist():
        rows = action == chosen
        own = features[rows]
        gram[chosen] += own.mT @ own
        moment[chosen] = own.mT @ signal[rows]
    inverse = torch.linalg.inv(gram)
    return Ridge((inverse @ moment.unsqueeze(-1)).squeeze(-1), inverse)


def eliminated(
    features: Float[Tensor, " B F"], ridge: Ridge, *, beta: float, threshold: float
) -> Bool[Tensor, " B A"]:
    """Return where even the lower bound says invalid: θᵀφ - √(β φᵀV⁻¹φ) > ℓ.

    Args:
        beta: width of the bound; the wider, the more often an action was tried before it goes.
        threshold: ℓ; what is at ℓ exactly is kept.

    Raises:
        ValueError: if beta is negative.

    Reference: Zahavy et al. 2018, arXiv:1809.02121, eq. 3 and 4.
    """
    if not beta >= 0:  # neither is NaN
        raise ValueError(f"beta is {beta}: it must not be negative")
    mean = features @ ridge.theta.mT
    spread = torch.einsum("bf,afg,bg->ba", features, ridge.inverse, features)
    return mean - (beta * spread.clamp(min=0)).sqrt() > threshold
