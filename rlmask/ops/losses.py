"""Losses as functions of tensors, one value a sample; the caller takes the mean.

`masked_ppo_loss` also returns the gradient of the whole loss of a minibatch, in closed form.

Dimension key: `*batch` samples, `B` minibatch, `actions` the union action set.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmask.ops.checks import check_action
from rlmask.ops.masking import entropy_scale, masked_log_probs_and_probs

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
    """Return ½ x² where |x| <= δ, and δ (|x| - ½ δ) beyond: c (x - ½ c), c = x clipped to ±δ.

    Reference: Huber 1964, doi:10.1214/aoms/1177703732.
    """
    clipped = error.clamp(-delta, delta)
    return clipped * torch.add(error, clipped, alpha=-0.5)


def approximate_kl(log_ratio: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return the sample estimate (ρ - 1) - log ρ of KL(π_old || π): unbiased and never negative.

    Args:
        log_ratio: log ρ = log π(a) - log π_old(a), of an action drawn from π_old.

    Reference: Schulman 2020, "Approximating KL divergence" (the estimator k3).
    """
    return log_ratio.clamp(max=MAX_LOG_RATIO).expm1() - log_ratio


class PPOTerms(NamedTuple):
    """What PPO's loss says of each sample of a minibatch, without gradient.

    Attributes:
        surrogate: the clipped objective, min(ρ A, clip(ρ, 1 - ε, 1 + ε) A).
        squared_error: of the value; the larger of two where its steps are clipped.
        entropy: of the policy in nats, or divided by log k.
        log_ratio: log ρ = log π(a) - log π_old(a).
    """

    surrogate: Float[Tensor, " B"]
    squared_error: Float[Tensor, " B"]
    entropy: Float[Tensor, " B"]
    log_ratio: Float[Tensor, " B"]


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
) -> tuple[PPOTerms, Float[Tensor, " B *parts actions"], Float[Tensor, " B"]]:
    """Return the terms of PPO's loss over the valid actions, and ∂L/∂logits and ∂L/∂value.

    L = E[clipped surrogate] + c_v E[value loss] - c_e E[entropy], the means of
    `clipped_surrogate_loss`, `value_loss` and the masked entropy. The gradient is written out, so
    that no graph is built over dozens of small tensors. MultiDiscrete parts (see `split_parts`) are
    independent: log-probabilities and entropies add.

    Args:
        normalize_entropy: divide each entropy by log k, k the number of valid actions.

    Reference: Schulman et al. 2017, arXiv:1707.06347, eq. 9.

    Raises:
        InvalidActionError, EmptyMaskError: under `set_debug(True)`.
    """
    check_action(mask, action)
    weight = 1 / max(len(value), 1)  # of a sample in the mean
    log_probs, probs = masked_log_probs_and_probs(logits, mask)
    log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    log_ratio = (log_prob.sum(-1) if action.ndim > 1 else log_prob) - old_log_prob
    surrogate, g = _surrogate(log_ratio, advantage, clip_range, weight)
    scale = entropy_scale(mask, probs.dtype) if normalize_entropy else None
    entropy, grad_logits = _entropy_and_gradient(
        log_probs, probs, mask, action, g, entropy_coef * weight, scale
    )
    squared_error, grad_value = _squared_error(
        value, old_value, value_target, value_clip_range, value_coef * weight
    )
    terms = PPOTerms(surrogate, squared_error, entropy, log_ratio)
    return terms, grad_logits.to(logits.dtype), grad_value.to(value.dtype)


def _surrogate(
    log_ratio: Tensor, advantage: Tensor, clip_range: float, weight: float
) -> tuple[Tensor, Tensor]:  # 2 x [B]
    """Return s = min(ρ A, clip(ρ) A) and g = -weight ∂s/∂log ρ.

    ∂s/∂log ρ is ρ A where the minimum is the unclipped term, else 0.
    """
    excess = log_ratio.clamp(max=MAX_LOG_RATIO).expm1()  # ρ - 1
    gain = advantage.addcmul(excess, advantage)  # ρ A
    clipped_gain = advantage.addcmul(excess.clamp(-clip_range, clip_range), advantage)
    # `not greater` is true of NaN too, which must reach the gradient to be noticed
    g = torch.where(gain > clipped_gain, 0.0, gain).mul_(-weight)
    return torch.minimum(gain, clipped_gain), g


def _entropy_and_gradient(
    log_probs: Tensor,  # [B, *parts, actions], overwritten
    probs: Tensor,
    mask: Tensor,
    action: Tensor,  # [B, *parts]
    g: Tensor,  # [B]
    coef: float,
    scale: Tensor | None,  # [B, *parts]
) -> tuple[Tensor, Tensor]:  # [B], [B, *parts, actions]
    """Return the entropy H and the gradient by the logits, with g = ∂L/∂log π(a) and ∂L/∂H = -coef.

    With p the masked softmax and e = p log p:  H = -Σ e,  ∂L/∂z = g (1_a - p) + coef (e + H p),
    which is 0 where p is. `scale` multiplies H, and so its gradient.
    """
    e = log_probs.mul_(probs)
    entropy = e.sum(-1).neg_()
    grad_logits = e.addcmul_(probs, entropy.unsqueeze(-1)).mul_(coef)
    if scale is not None:
        entropy = entropy * scale
        grad_logits *= scale.unsqueeze(-1)
    if action.ndim > 1:
        entropy, g = entropy.sum(-1), g.unsqueeze(-1)
    g, index = g.unsqueeze(-1), action.unsqueeze(-1)
    grad_logits.addcmul_(probs, g, value=-1)
    return entropy, grad_logits.scatter_add_(-1, index, g * mask.gather(-1, index))


def _squared_error(
    value: Tensor,
    old_value: Tensor,
    value_target: Tensor,
    value_clip_range: float | None,
    coef: float,
) -> tuple[Tensor, Tensor]:  # 2 x [B]
    """Return (V - G)², pessimistic as in `value_loss`, and coef (V - G), 0 where V is clipped."""
    error = value - value_target
    squared = error.square()
    gradient = error.mul_(coef)
    if value_clip_range is None:
        return squared, gradient
    step = value - old_value
    clipped_value = old_value + step.clamp(-value_clip_range, value_clip_range)
    clipped_squared = (clipped_value - value_target).square()
    is_flat = (clipped_squared > squared) & (step.abs() > value_clip_range)
    return torch.maximum(squared, clipped_squared), gradient.masked_fill_(is_flat, 0.0)


def ppo_metrics(minibatches: Sequence[PPOTerms], clip_range: float) -> dict[str, float]:
    """Return the means over all samples of some minibatches, by the name of the metric."""
    terms = PPOTerms(*(torch.cat(term) for term in zip(*minibatches, strict=True)))
    excess = terms.log_ratio.clamp(max=MAX_LOG_RATIO).expm1()
    means = {
        "loss/policy": -terms.surrogate.mean(),
        "loss/value": 0.5 * terms.squared_error.mean(),
        "loss/entropy": terms.entropy.mean(),
        "loss/approx_kl": approximate_kl(terms.log_ratio).mean(),
        "loss/clip_fraction": (excess.abs() > clip_range).float().mean(),
    }
    return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))


def explained_variance(
    value: Float[Tensor, "*batch"], value_target: Float[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    """Return 1 - Var[G - V] / Var[G]: 1 is a perfect value network, 0 a constant one."""
    return 1 - (value_target - value).var() / (value_target.var() + 1e-8)
