"""Losses as functions of tensors, one value a sample; the caller takes the mean.

`masked_ppo_loss` is the exception: the whole loss of a minibatch and its gradient, in closed form.

Dimension key: `*batch` samples, `B` minibatch, `actions` the union action set.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmask.ops.masking import check_action, entropy_scale, masked_scores

MAX_LOG_RATIO = 80.0  # e^80 is finite in float32; e^89 is not, and 0 times it is NaN


def clipped_surrogate_loss(
    log_prob: Float[Tensor, "*batch"],
    old_log_prob: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    clip_range: float,
) -> Float[Tensor, "*batch"]:
    """Return PPO's clipped policy loss, -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), ρ = π(a) / π_old(a).

    Reference: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    log_ratio = log_prob - old_log_prob
    # bounded in value, not in gradient: a bad action is still pushed down
    overshoot = (log_ratio.detach() - MAX_LOG_RATIO).clamp(min=0)
    ratio = (log_ratio - overshoot).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def value_loss(
    value: Float[Tensor, "*batch"],
    old_value: Float[Tensor, "*batch"],
    value_target: Float[Tensor, "*batch"],
    value_clip_range: float | None,
) -> Float[Tensor, "*batch"]:
    """Return half the squared error, optionally pessimistic about steps beyond the clip range.

    ½ max[(V - G)², (V_old + clip(V - V_old, -ε, ε) - G)²]; ½ (V - G)² if `value_clip_range` is
    None.

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


class PPOLosses(NamedTuple):
    """The parts of a PPO loss, and what they say of the step; scalars without gradient."""

    policy: Tensor
    value: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


@torch.no_grad()
def masked_ppo_loss(
    logits: Float[Tensor, " B *parts actions"],
    value: Float[Tensor, " B"],
    mask: Bool[Tensor, " B *parts actions"],
    action: Int[Tensor, " B *parts"],
    old_log_prob: Float[Tensor, " B"],
    old_value: Float[Tensor, " B"],
    advantage: Float[Tensor, " B"],
    value_target: Float[Tensor, " B"],
    *,
    clip_range: float,
    value_clip_range: float | None,
    value_coef: float,
    entropy_coef: float,
    normalize_entropy: bool,
) -> tuple[PPOLosses, Float[Tensor, " B *parts actions"], Float[Tensor, " B"]]:
    """Return the parts of PPO's loss over the valid actions, and ∂L/∂logits and ∂L/∂value.

    L = E[clipped surrogate] + c_v E[value loss] - c_e E[entropy], the means of
    `clipped_surrogate_loss`, `value_loss` and the masked entropy. The gradient is written out, so
    that no graph is built over dozens of small tensors. With ρ the ratio, p the masked softmax,
    e = p log p, H = -Σ e:

        ∂L/∂log p_a = -ρ A / B where the minimum is the unclipped term, else 0   (= g)
        ∂L/∂H       = -c_e / B                                                    (= h)
        ∂L/∂z       = g (1_a - p) - h (e + H p), 0 where p is
        ∂L/∂V       = c_v (V - G) / B, or 0 where the value is clipped

    MultiDiscrete parts (see `split_parts`) are independent: log-probabilities and entropies add.

    Args:
        normalize_entropy: divide each entropy by log k, k the number of valid actions.

    Reference: Schulman et al. 2017, arXiv:1707.06347, eq. 9.

    Raises:
        InvalidActionError, EmptyMaskError: under `set_debug(True)`.
    """
    check_action(mask, action)
    size = value.shape[0]
    has_parts = action.ndim > 1
    masked = masked_scores(logits, mask)
    log_probs = torch.log_softmax(masked, -1).clamp_(min=torch.finfo(masked.dtype).min)
    probs = torch.softmax(masked, -1)
    index = action.unsqueeze(-1)
    log_prob = log_probs.gather(-1, index).squeeze(-1)
    e = log_probs.mul_(probs)
    entropy = e.sum(-1).neg_()  # [B, *parts]

    log_ratio = (log_prob.sum(-1) if has_parts else log_prob) - old_log_prob
    excess = log_ratio.clamp(max=MAX_LOG_RATIO).expm1()  # ρ - 1
    gain = advantage.addcmul(excess, advantage)  # ρ A
    clipped_gain = advantage.addcmul(excess.clamp(-clip_range, clip_range), advantage)
    # `not greater` is true of NaN too, which must reach the gradient to be noticed
    g = torch.where(gain > clipped_gain, 0.0, gain).mul_(-1 / size)
    if has_parts:
        g = g.unsqueeze(-1)

    h = -entropy_coef / size
    bonus = entropy
    if normalize_entropy:
        scale = entropy_scale(mask, entropy.dtype)
        bonus, h = entropy * scale, (h * scale).unsqueeze(-1)
    # e + H p as a tensor, times -h, plus g (1_a - p)
    grad_logits = e.addcmul_(probs, entropy.unsqueeze(-1)).mul_(-h)
    grad_logits.addcmul_(probs, g.unsqueeze(-1), value=-1)
    grad_logits.scatter_add_(-1, index, g.unsqueeze(-1) * mask.gather(-1, index))

    error = value - value_target
    squared = error.square()
    grad_value = error.mul_(value_coef / size)
    if value_clip_range is not None:
        step = value - old_value
        clipped_value = old_value + step.clamp(-value_clip_range, value_clip_range)
        clipped_squared = (clipped_value - value_target).square()
        is_flat = (clipped_squared > squared) & (step.abs() > value_clip_range)
        grad_value.masked_fill_(is_flat, 0.0)
        squared = torch.maximum(squared, clipped_squared)

    losses = PPOLosses(
        policy=-torch.minimum(gain, clipped_gain).mean(),
        value=0.5 * squared.mean(),
        entropy=bonus.sum() / size,
        approx_kl=(excess - log_ratio).mean(),
        clip_fraction=(excess.abs() > clip_range).float().mean(),
    )
    return losses, grad_logits.to(logits.dtype), grad_value


def explained_variance(
    value: Float[Tensor, "*batch"], value_target: Float[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    """Return 1 - Var[G - V] / Var[G]: 1 is a perfect value network, 0 a constant one."""
    return 1 - (value_target - value).var() / (value_target.var() + 1e-8)
