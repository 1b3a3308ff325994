"""Masked distributions and masked reductions over the last axis, the actions.

A mask is `torch.bool`, True = valid, of the same shape as the scores. Half-precision scores are
upcast to float32; float64 stays float64. Invalid scores are replaced by -inf *inside* an op, so
that no finite valid score can lose against them, and never leave it: an invalid log-probability is
the finite minimum of its dtype, an invalid probability exactly 0, and the gradient of an invalid
score exactly 0. A row without a valid entry is an error of the caller: checked in every op under
`set_debug(True)`, and otherwise once, where the mask enters the program (`rlmask.vector`).

Reference: Huang & Ontañón 2022, arXiv:2006.14171 (masking the softmax keeps the policy gradient
exact).

Dimension key: `*batch` any leading shape, `actions` the union action set.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmask.ops.checks import check_action, check_choice, check_rows
from rlmask.ops.rows import MINUS_INF, ZERO, fill_invalid, is_large, softmax_of_rows

_HALF = (torch.float16, torch.bfloat16)
_BLOCK_SIZE = 2**16  # entries whose intermediate results stay in the CPU's cache


def masked_scores(
    scores: Float[Tensor, "*batch actions"], mask: Bool[Tensor, "*batch actions"]
) -> Float[Tensor, "*batch actions"]:
    """Return scores in at least float32 with -inf where invalid; for use inside an op only."""
    check_rows(mask)
    return fill_invalid(_at_least_float32(scores), mask, MINUS_INF)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


def masked_log_softmax(
    logits: Float[Tensor, "*batch actions"], mask: Bool[Tensor, "*batch actions"]
) -> Float[Tensor, "*batch actions"]:
    """Return log-probabilities of the softmax over the valid actions.

    log π(a) = z_a - log Σ_{b valid} exp z_b; the dtype's finite minimum where `a` is invalid.
    """
    log_probs = softmax_of_rows(torch.log_softmax, masked_scores(logits, mask)).contiguous()
    # clamp, not a second where: it is vectorised, and its gradient below the bound is exactly 0
    return log_probs.clamp(min=torch.finfo(log_probs.dtype).min)


def masked_softmax(
    logits: Float[Tensor, "*batch actions"], mask: Bool[Tensor, "*batch actions"]
) -> Float[Tensor, "*batch actions"]:
    """Return the probabilities of the softmax over the valid actions; exactly 0 where invalid."""
    return softmax_of_rows(torch.softmax, masked_scores(logits, mask)).contiguous()


def masked_log_probs_and_probs(
    logits: Float[Tensor, "*batch actions"], mask: Bool[Tensor, "*batch actions"]
) -> tuple[Float[Tensor, "*batch actions"], Float[Tensor, "*batch actions"]]:
    """Return `masked_log_softmax` and `masked_softmax`, for a gradient in closed form.

    Not exp of the first, since exp takes ten times as long where it underflows.
    """
    masked = masked_scores(logits, mask)
    log_probs = softmax_of_rows(torch.log_softmax, masked)
    log_probs = log_probs.clamp(min=torch.finfo(masked.dtype).min)
    return log_probs, softmax_of_rows(torch.softmax, masked)


def masked_sample(
    logits: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Draw one valid action a row; return it and its log-probability."""
    uniform = torch.rand(logits.shape[:-1], generator=generator, device=logits.device)
    return masked_inverse_cdf(logits, mask, uniform)


def masked_inverse_cdf(
    logits: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
    uniform: Float[Tensor, "*batch"],
) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Map one uniform draw in [0, 1) a row to a valid action; return it and its log-probability.

    a = min {a : Σ_{b <= a} π(b) > u Σ_b π(b)}. An invalid action adds nothing to the cumulated
    sum, so it can never be the first to exceed; and u c < c holds in floating point for every
    u <= 1 - 2^-24, so the index never runs past the last valid action. The log-probability is
    exact to rounding down to probabilities of 1e-38; rarer actions are drawn at u = 0 only.
    """
    if is_large(mask, _BLOCK_SIZE) and mask.ndim > 1 and len(mask) > 1:
        rows = max(1, len(mask) * _BLOCK_SIZE // mask.numel())
        blocks = zip(logits.split(rows), mask.split(rows), uniform.split(rows), strict=True)
        action, log_prob = zip(*(masked_inverse_cdf(*block) for block in blocks), strict=True)
        return torch.cat(action), torch.cat(log_prob)
    probs = softmax_of_rows(torch.softmax, masked_scores(logits, mask)).contiguous()
    cumulated = probs.cumsum(-1)
    if not cumulated.is_cpu:
        cumulated = monotone(cumulated, probs)
    threshold = (uniform * cumulated.select(-1, -1)).unsqueeze(-1).contiguous()
    action = torch.searchsorted(cumulated, threshold, right=True)
    # scores that are not finite lead past the end, where a GPU must not read
    chosen = action if probs.is_cpu else action.clamp(max=probs.shape[-1] - 1)
    return action.squeeze(-1), probs.gather(-1, chosen).squeeze(-1).log_()


def monotone(cumulated: Tensor, probs: Tensor) -> Tensor:
    """Mend the cumulated sums of a parallel scan: an entry of probability 0 adds exactly 0.

    The scan groups the terms of each prefix differently, so that adding 0 can change the rounding.
    Every such entry gets the sum up to the last one before it that has a probability.
    """
    return cumulated.masked_fill(probs == 0, 0.0).cummax(-1).values


def masked_argmax(
    values: Float[Tensor, "*batch actions"], mask: Bool[Tensor, "*batch actions"]
) -> Int[Tensor, "*batch"]:
    """Return the valid action of the highest value, the lowest index among equals.

    Valid whatever the values: -inf counts as the dtype's finite minimum, NaN as the highest.
    """
    scores = _at_least_float32(values)
    return masked_scores(scores.clamp(min=torch.finfo(scores.dtype).min), mask).argmax(dim=-1)


def masked_max(
    values: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
    ties: Literal["split", "first"] = "split",
) -> Float[Tensor, "*batch"]:
    """Return the highest value among the valid actions.

    Args:
        ties: `split`, they share the gradient equally; `first`, the lowest index has all of it.

    Raises:
        ValueError: if `ties` is neither.
    """
    check_choice("ties", ties, ("split", "first"))
    scores = masked_scores(values, mask)
    if ties == "split":
        return scores.amax(dim=-1)
    return scores.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1)


def masked_mean(
    values: Float[Tensor, "*batch actions"], mask: Bool[Tensor, "*batch actions"]
) -> Float[Tensor, "*batch"]:
    """Return the mean of the values of the valid actions."""
    check_rows(mask)
    valid = fill_invalid(_at_least_float32(values), mask, ZERO)
    return valid.sum(dim=-1) / mask.sum(dim=-1)


def masked_entropy(
    log_probs: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
    *,
    normalized: bool = False,
) -> Float[Tensor, "*batch"]:
    """Return the entropy in nats, H = -Σ_{a valid} π(a) log π(a).

    Args:
        normalized: divide by log k, k the number of valid actions: 1 for the uniform policy in
            every state, so that one coefficient fits states and games of different k; 0 for k = 1.
    """
    check_rows(mask)
    # where on the input: a product with exp(log_prob) = 0 would meet the finite minimum instead
    log_probs = fill_invalid(_at_least_float32(log_probs), mask, ZERO)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return entropy * entropy_scale(mask, entropy.dtype) if normalized else entropy


def entropy_scale(
    mask: Bool[Tensor, "*batch actions"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch"]:
    """Return 1 / log k, k the number of valid actions: what brings an entropy to [0, 1]."""
    check_rows(mask)
    # the entropy of k = 1 is 0 on any scale
    return 1 / mask.sum(dim=-1).clamp(min=2).to(dtype).log()


def masked_kl(
    log_probs_p: Float[Tensor, "*batch actions"],
    log_probs_q: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
) -> Float[Tensor, "*batch"]:
    """Return KL(p || q) = Σ_{a valid} p(a) (log p(a) - log q(a)) in nats."""
    check_rows(mask)
    log_probs_p = fill_invalid(_at_least_float32(log_probs_p), mask, ZERO)
    log_probs_q = fill_invalid(_at_least_float32(log_probs_q), mask, ZERO)
    return (log_probs_p.exp() * (log_probs_p - log_probs_q)).sum(dim=-1)


def masked_epsilon_greedy(
    values: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
    epsilon: float,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "*batch"]:
    """Return the best valid action, or with probability `epsilon` a uniformly drawn valid one.

    The latter is the best by independent uniform scores: each valid one has the same chance to be.
    """
    num = values.shape[-1]
    draw = torch.rand((*values.shape[:-1], num + 1), generator=generator, device=values.device)
    explore, scores = draw.split((1, num), dim=-1)
    return masked_argmax(torch.where(explore < epsilon, scores, values), mask)


def boltzmann(
    q_values: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
    temperature: float | Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch actions"]:
    """Return the Boltzmann policy of action values, π(a) ∝ exp(Q(a) / τ) over the valid actions.

    Towards τ = 0 it is the greedy policy, its ties shared; exactly 0 where an action is invalid.

    Args:
        temperature: τ > 0, in units of value, of all rows or of each.

    Reference: Parisotto et al. 2016, arXiv:1511.06342, eq. 2 (the teacher of Actor-Mimic).

    Raises:
        ValueError: if a temperature is not a positive number.
    """
    return torch.softmax(tempered_scores(q_values, mask, temperature), -1)


def tempered_scores(
    scores: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
    temperature: float | Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch actions"]:
    """Return (scores - their best valid one) / τ, -inf where invalid; for use inside an op only."""
    if isinstance(temperature, Tensor):
        is_positive = bool(((temperature > 0) & temperature.isfinite()).all())
        divisor: float | Tensor = temperature.unsqueeze(-1)
    else:
        is_positive, divisor = 0 < temperature < float("inf"), temperature
    if not is_positive:
        raise ValueError(f"the temperature is {temperature}; it must be positive and finite")
    masked = masked_scores(scores, mask)
    # the best is moved to 0 first: nothing overflows, however cold
    return (masked - masked.amax(-1, keepdim=True)) / divisor


def masked_log_prob_and_entropy(
    logits: Float[Tensor, "*batch actions"],
    mask: Bool[Tensor, "*batch actions"],
    action: Int[Tensor, "*batch"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return log π(action) and the entropy of π, the softmax over the valid actions.

    The same as `masked_log_softmax`, a gather and `masked_entropy`, with the gradient written out:
    one pass over the mask instead of four. Differentiable to any order in reverse mode.

    Raises:
        InvalidActionError: under `set_debug(True)`, if an action is invalid. Otherwise its
            log-probability is the finite minimum, never a quiet 0.
    """
    check_action(mask, action)
    log_prob, entropy, _, _ = _LogProbAndEntropy.apply(logits, mask, action)
    return log_prob, entropy


class _LogProbAndEntropy(torch.autograd.Function):
    """Log-probability of an action and entropy, with one pass over the mask.

    With p the masked softmax of z and e = p log p (0 where p = 0), H = -Σ e:

        ∂ log p_a / ∂z = 1_a - p          ∂ H / ∂z = -(e + H p)

    Both are 0 where p is, so the gradient needs no mask. p and e are outputs too, so that a second
    derivative finds them in the graph.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor, mask: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [*batch], [*batch], 2 x [*batch, actions]
        log_probs, probs = masked_log_probs_and_probs(logits, mask)
        log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        e = log_probs.mul_(probs)
        return log_prob, e.sum(-1).neg_(), probs, e

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        logits, mask, action = inputs
        _, entropy, probs, e = output
        action_valid = mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(action, action_valid, entropy, probs, e)
        ctx.set_materialize_grads(False)
        ctx.logits_dtype = logits.dtype

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, None, None]:
        grad_log_prob, grad_entropy, grad_probs, grad_e = grad_outputs
        action, action_valid, entropy, probs, e = ctx.saved_tensors
        coefficient = torch.zeros_like(entropy)  # gathers every multiple of -p
        if grad_log_prob is not None:
            grad_log_prob = grad_log_prob * action_valid
            coefficient = coefficient + grad_log_prob
        if grad_entropy is not None:
            coefficient = coefficient + grad_entropy * entropy
        through = None  # only a second derivative comes through p and e
        if grad_probs is not None:
            through = probs * grad_probs
        if grad_e is not None:
            through_e = (e + probs) * grad_e
            through = through_e if through is None else through + through_e
        if through is not None:
            coefficient = coefficient + through.sum(-1)
        grad = probs * -coefficient.unsqueeze(-1)
        if grad_entropy is not None:
            grad = torch.addcmul(grad, e, -grad_entropy.unsqueeze(-1))
        if through is not None:
            grad = grad + through
        if grad_log_prob is not None:
            grad.scatter_add_(-1, action.unsqueeze(-1), grad_log_prob.unsqueeze(-1))
        return grad.to(ctx.logits_dtype), None, None
