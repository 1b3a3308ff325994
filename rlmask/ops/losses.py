"""Losses as functions of tensors, one value a sample; the caller takes the mean.

Dimension key: `*batch` samples.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_surrogate_loss(
    log_prob: Float[Tensor, "*batch"],
    old_log_prob: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    clip_range: float,
) -> Float[Tensor, "*batch"]:
    """Return PPO's clipped policy loss, -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), ρ = π(a) / π_old(a).

    Reference: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    ratio = (log_prob - old_log_prob).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def value_loss(
    value: Float[Tensor, "*batch"],
    old_value: Float[Tensor, "*batch"],
    value_target: Float[Tensor, "*batch"],
    value_clip_range: float | None,
) -> Float[Tensor, "*batch"]:
    """Return half the squared error, optionally pessimistic about steps beyond the clip range.

    ½ max[(V - G)², (V_old + clip(V - V_old, -ε, ε) - G)²]; ½ (V - G)² if `value_clip_range` is None.

    Args:
        value_clip_range: ε, in units of value (so it depends on the scale of the rewards).

    Reference: Engstrom et al. 2020, arXiv:2005.12729, section 3.
    """
    squared = (value - value_target).square()
    if value_clip_range is not None:
        clipped = old_value + (value - old_value).clamp(-value_clip_range, value_clip_range)
        squared = torch.maximum(squared, (clipped - value_target).square())
    return 0.5 * squared


def huber_loss(error: Float[Tensor, "*batch"], delta: float = 1.0) -> Float[Tensor, "*batch"]:
    """Return ½ x² where |x| <= δ, and δ (|x| - ½ δ) beyond.

    Reference: Huber 1964, doi:10.1214/aoms/1177703732.
    """
    magnitude = error.abs()
    quadratic = magnitude.clamp(max=delta)
    return quadratic * (magnitude - 0.5 * quadratic)


def approximate_kl(
    log_prob: Float[Tensor, "*batch"], old_log_prob: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return the sample estimate (ρ - 1) - log ρ of KL(π_old || π): unbiased and never negative.

    Reference: Schulman 2020, "Approximating KL divergence" (the estimator k3).
    """
    log_ratio = log_prob - old_log_prob
    return log_ratio.expm1() - log_ratio
