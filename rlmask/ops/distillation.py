"""Losses that draw a student's policy to a teacher's, with gradients written out.

Teacher scores are logits or action values over the union of actions; softmax(scores / τ) over the
valid ones is its policy π_E. The student's logits z give π_θ, without a temperature. Every loss is
one number a row; its gradient by z is exactly 0 where an action is invalid.

Dimension key: `B` rows, `A` union actions, `H` features.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlmask.ops.masking import (
    boltzmann,
    masked_argmax,
    masked_entropy,
    masked_log_probs_and_probs,
    masked_scores,
    tempered_scores,
)
from rlmask.ops.rows import ZERO, fill_invalid

LEAST_LOG_PROB = -30.0  # of a teacher, where a loss would otherwise be without bound


class DistillTerms(NamedTuple):
    """A loss of each row, and its gradient.

    Attributes:
        loss: [B].
        grad: ∂ loss_i / ∂ logits_i [B, A].
    """

    loss: Float[Tensor, " B"]
    grad: Float[Tensor, " B A"]


@torch.no_grad()
def policy_regression_loss(
    logits: Float[Tensor, " B A"],
    teacher_scores: Float[Tensor, " B A"],
    mask: Bool[Tensor, " B A"],
    temperature: float | Float[Tensor, " B"],
) -> DistillTerms:
    """Return KL(π_E || π_θ) = Σ_a π_E(a) (log π_E(a) - log π_θ(a)), and π_θ - π_E.

    The cross entropy of Actor-Mimic less the entropy of the teacher, so that 0 is the least in
    every game; the gradient is the same.

    Reference: Parisotto et al. 2016, arXiv:1511.06342, eq. 3; Rusu et al. 2016, arXiv:1511.06295,
    eq. 3.

    Raises:
        ValueError: if a temperature is not a positive number.
    """
    log_probs_e, probs_e = teacher_log_probs_and_probs(teacher_scores, mask, temperature)
    log_probs, probs = masked_log_probs_and_probs(logits, mask)
    # where invalid both are the same finite number
    loss = (probs_e * (log_probs_e - log_probs)).sum(-1)
    return DistillTerms(loss, (probs - probs_e).to(logits.dtype))


@torch.no_grad()
def unmasked_policy_regression_loss(
    logits: Float[Tensor, " B A"],
    teacher_scores: Float[Tensor, " B A"],
    mask: Bool[Tensor, " B A"],
    temperature: float | Float[Tensor, " B"],
) -> DistillTerms:
    """Return `policy_regression_loss` with the student's softmax over all actions, valid or not.

    Only to be compared with: capacity goes into pushing invalid logits down, and the gradient is
    not 0 there.

    Raises:
        ValueError: if a temperature is not a positive number.
    """
    log_probs_e, probs_e = teacher_log_probs_and_probs(teacher_scores, mask, temperature)
    everything = torch.ones_like(mask)
    log_probs, probs = masked_log_probs_and_probs(logits, everything)
    difference = fill_invalid(log_probs_e - log_probs, mask, ZERO)
    return DistillTerms((probs_e * difference).sum(-1), (probs - probs_e).to(logits.dtype))


@torch.no_grad()
def reverse_kl_loss(
    logits: Float[Tensor, " B A"],
    teacher_scores: Float[Tensor, " B A"],
    mask: Bool[Tensor, " B A"],
    temperature: float | Float[Tensor, " B"],
) -> DistillTerms:
    """Return KL(π_θ || π_E), with log π_E bounded below by -30, and its gradient.

    With d = log π_θ - log π_E, the gradient is π_θ (d - KL).

    Raises:
        ValueError: if a temperature is not a positive number.
    """
    log_probs_e, _ = teacher_log_probs_and_probs(teacher_scores, mask, temperature)
    log_probs, probs = masked_log_probs_and_probs(logits, mask)
    return _under_student(probs, log_probs - log_probs_e.clamp(min=LEAST_LOG_PROB), logits.dtype)


@torch.no_grad()
def expected_entropy_loss(
    logits: Float[Tensor, " B A"],
    teacher_scores: Float[Tensor, " B A"],
    mask: Bool[Tensor, " B A"],
    temperature: float | Float[Tensor, " B"],
) -> DistillTerms:
    """Return -Σ_a π_θ(a) log π_E(a), with log π_E bounded below by -30, and its gradient.

    By itself this cross entropy is least where all is on the teacher's best action. As the loss of
    each state and, less it, the reward of the step before, it is the expected-entropy-regularised
    distillation.

    Reference: Czarnecki et al. 2019, arXiv:1902.02186, table 1.

    Raises:
        ValueError: if a temperature is not a positive number.
    """
    log_probs_e, _ = teacher_log_probs_and_probs(teacher_scores, mask, temperature)
    _, probs = masked_log_probs_and_probs(logits, mask)
    return _under_student(probs, -log_probs_e.clamp(min=LEAST_LOG_PROB), logits.dtype)


def _under_student(probs: Tensor, cost: Tensor, dtype: torch.dtype) -> DistillTerms:
    """Return Σ_a π_θ(a) c(a), and its gradient π_θ (c - Σ π_θ c), as if c did not depend on z.

    For c = log π_θ - ... that is the whole gradient, since Σ π_θ ∂ log π_θ = 0.
    """
    loss = (probs * cost).sum(-1)
    return DistillTerms(loss, (probs * (cost - loss.unsqueeze(-1))).to(dtype))


@torch.no_grad()
def argmax_regression_loss(
    logits: Float[Tensor, " B A"], teacher_scores: Float[Tensor, " B A"], mask: Bool[Tensor, " B A"]
) -> DistillTerms:
    """Return -log π_θ(a*) of the teacher's best valid action a* (the lowest index among equals).

    Reference: Rusu et al. 2016, arXiv:1511.06295, eq. 1.
    """
    best = masked_argmax(teacher_scores, mask).unsqueeze(-1)
    log_probs, probs = masked_log_probs_and_probs(logits, mask)
    loss = log_probs.gather(-1, best).squeeze(-1).neg()
    grad = probs.contiguous().scatter_add(-1, best, probs.new_full(best.shape, -1.0))
    return DistillTerms(loss, grad.to(logits.dtype))


@torch.no_grad()
def q_regression_loss(
    values: Float[Tensor, " B A"], teacher_values: Float[Tensor, " B A"], mask: Bool[Tensor, " B A"]
) -> DistillTerms:
    """Return Σ_{a valid} (q_E(a) - q_θ(a))², and its gradient 2 (q_θ - q_E) on the valid actions.

    Reference: Rusu et al. 2016, arXiv:1511.06295, eq. 2.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    error = fill_invalid(values.to(dtype) - teacher_values.to(dtype), mask, ZERO)
    return DistillTerms(error.square().sum(-1), (2 * error).to(values.dtype))


@torch.no_grad()
def feature_regression_loss(
    mapped: Float[Tensor, " B H"], teacher_features: Float[Tensor, " B H"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B H"]]:
    """Return ||f(h) - h_E||², the sum over the units, and its gradient 2 (f(h) - h_E) by f(h).

    The equation as printed; the authors' released code uses half of this gradient.

    Reference: Parisotto et al. 2016, arXiv:1511.06342, eq. 4.
    """
    error = mapped - teacher_features
    return error.square().sum(-1), 2 * error


def teacher_log_probs_and_probs(
    scores: Float[Tensor, " B A"],
    mask: Bool[Tensor, " B A"],
    temperature: float | Float[Tensor, " B"],
) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B A"]]:
    """Return log π_E and π_E of softmax(scores / τ): finite minimum and exactly 0 where invalid.

    Args:
        temperature: τ > 0, of all rows or of each; in units of the scores.

    Raises:
        ValueError: if a temperature is not a positive number.
    """
    return masked_log_probs_and_probs(tempered_scores(scores, mask, temperature), mask)


@torch.no_grad()
def action_gap(scores: Float[Tensor, " B A"], mask: Bool[Tensor, " B A"]) -> Float[Tensor, " B"]:
    """Return the best score less the second best among the valid; infinite if only one is valid."""
    if scores.shape[-1] < 2:
        return scores.new_full(scores.shape[:-1], torch.inf)
    best, second = masked_scores(scores, mask).topk(2, dim=-1).values.unbind(-1)
    return best - second


def auto_temperature(gaps: Float[Tensor, " B"]) -> float:
    """Return a temperature that makes a teacher decided but not deaf: a quarter of the median gap.

    Then the best action is e^4 = 55 times as likely as the second in half of the states. The median
    is of the positive and finite gaps; states in which nothing is to be chosen do not count.

    Args:
        gaps: of states that the teacher visits, see `action_gap`.

    Raises:
        ValueError: if there is no such gap.
    """
    chosen = gaps[gaps.isfinite() & (gaps > 0)]
    if not len(chosen):
        raise ValueError(
            "the teacher values all valid actions alike wherever it was seen; set temperature to a "
            "number"
        )
    return chosen.median().item() / 4


@torch.no_grad()
def invalid_mass(logits: Float[Tensor, " B A"], mask: Bool[Tensor, " B A"]) -> Float[Tensor, " B"]:
    """Return the probability of invalid actions in the softmax of all logits, without a mask."""
    _, probs = masked_log_probs_and_probs(logits, torch.ones_like(mask))
    return fill_invalid(probs, ~mask, ZERO).sum(-1)


@torch.no_grad()
def teacher_figures(
    logits: Float[Tensor, " B A"],
    teacher_scores: Float[Tensor, " B A"],
    mask: Bool[Tensor, " B A"],
    temperature: float | Float[Tensor, " B"],
) -> dict[str, Float[Tensor, " B"]]:
    """Return how closely a student follows its teacher, by name, of each row.

    `kl`: KL(π_E || π_θ) in nats; `agreement`: 1 where both have the same best valid action, else 0;
    `teacher_entropy` in nats; `invalid_mass`: see `invalid_mass`.

    Raises:
        ValueError: if a temperature is not a positive number.
    """
    teacher = boltzmann(teacher_scores, mask, temperature)
    same = masked_argmax(logits, mask) == masked_argmax(teacher_scores, mask)
    return {
        "kl": policy_regression_loss(logits, teacher_scores, mask, temperature).loss,
        "agreement": same.float(),
        "teacher_entropy": masked_entropy(teacher.log(), mask),
        "invalid_mass": invalid_mass(logits, mask),
    }
