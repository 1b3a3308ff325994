"""Action values: dueling networks, targets, and losses with their gradient in closed form.

A prediction has Z numbers an action: one value; the logits of a distribution over fixed atoms
(C51); or the quantiles of the return (QR-DQN). A target is built from the prediction for one action
of the next state, chosen over the mask of that state; its mask may be empty where the episode
terminated.

Dimension key: `B` batch, `actions` the union action set, `Z` atoms, quantiles, or 1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmask.ops.losses import huber_loss
from rlmask.ops.masking import masked_argmax, masked_mean
from rlmask.ops.rows import ZERO


class QTerms(NamedTuple):
    """What a loss says of each sample.

    Attributes:
        loss: [B].
        error: [B], how far the prediction is from its target, not negative: a priority.
        grad: [B, Z], of the loss by the prediction.
    """

    loss: Tensor
    error: Tensor
    grad: Tensor


def dueling_values(
    value: Float[Tensor, " B Z"],
    advantage: Float[Tensor, " B actions Z"],
    mask: Bool[Tensor, " B actions"],
) -> Float[Tensor, " B actions Z"]:
    """Return Q(a) = V + A(a) - 1/k Σ_{b valid} A(b), k the number of valid actions.

    The mean runs over the valid actions only, so that what the network says of an invalid one moves
    no valid value. Invalid entries are as raw as those of any network.

    Reference: Wang et al. 2016, arXiv:1511.06581, eq. 9.
    """
    rows = advantage.transpose(1, 2)  # [B, A, Z] -> [B, Z, A]
    mean = masked_mean(rows, mask.unsqueeze(1).expand(rows.shape))
    return (value - mean).unsqueeze(1) + advantage


def dueling_gradient(
    grad: Float[Tensor, " B actions Z"], mask: Bool[Tensor, " B actions"]
) -> tuple[Float[Tensor, " B Z"], Float[Tensor, " B actions Z"]]:
    """Return the gradients by value and advantage, from that by `dueling_values`.

    ∂L/∂V = Σ_a g(a),   ∂L/∂A(a) = g(a) - 1{a valid}/k Σ_b g(b).
    """
    grad_value = grad.sum(1)
    share = mask.to(grad.dtype) / mask.sum(-1, keepdim=True)
    return grad_value, grad - share.unsqueeze(-1) * grad_value.unsqueeze(1)


def bootstrap_mask(
    mask: Bool[Tensor, " B actions"], discount: Float[Tensor, " B"]
) -> Bool[Tensor, " B actions"]:
    """Return the mask to choose the next action over: all valid where nothing follows.

    There the mask may be empty, and whatever is chosen is multiplied with a discount of 0.
    """
    return mask | torch.eq(discount.unsqueeze(-1), ZERO)


def choose_values(
    scores: Float[Tensor, " B actions"],
    mask: Bool[Tensor, " B actions"],
    predictions: Float[Tensor, " B actions Z"],
) -> Float[Tensor, " B Z"]:
    """Return the prediction for the valid action of the highest score.

    With scores of the online network and predictions of the target network: double Q-learning (van
    Hasselt et al. 2016, arXiv:1509.06461, eq. 4). With scores that are expectations of the
    predictions: the maximum over the valid actions.
    """
    return values_of(predictions, masked_argmax(scores, mask))


def values_of(
    predictions: Float[Tensor, " B actions Z"], action: Int[Tensor, " B"]
) -> Float[Tensor, " B Z"]:
    """Return the prediction for one action a row."""
    index = action.view(-1, 1, 1).expand(-1, 1, predictions.shape[-1])
    return predictions.gather(1, index).squeeze(1)


def values_of_gradient(
    grad: Float[Tensor, " B Z"],
    action: Int[Tensor, " B"],
    predictions: Float[Tensor, " B actions Z"],
) -> Float[Tensor, " B actions Z"]:
    """Return the gradient by `predictions`, from that by `values_of`: 0 at the other actions."""
    index = action.view(-1, 1, 1).expand(-1, 1, predictions.shape[-1])
    return torch.zeros_like(predictions).scatter_(1, index, grad.unsqueeze(1))


def discounted(
    reward: Float[Tensor, " B"], discount: Float[Tensor, " B"], next_value: Float[Tensor, " B Z"]
) -> Float[Tensor, " B Z"]:
    """Return r + d x, which is exactly r where d = 0; x must be finite there."""
    return torch.addcmul(reward.unsqueeze(-1), discount.unsqueeze(-1), next_value)


def td_loss(
    prediction: Float[Tensor, " B 1"],
    target: Float[Tensor, " B 1"],
    huber_delta: float | None,
) -> QTerms:
    """Return ½ δ², or Huber's loss of it, with δ = target - prediction.

    Args:
        huber_delta: beyond it the loss is linear; in units of value. None: never.
    """
    grad = error = prediction - target
    if huber_delta is not None:
        grad = error.clamp(-huber_delta, huber_delta)
    loss = grad * torch.add(error, grad, alpha=-0.5)  # as in `huber_loss`; ½ δ² if nothing clips
    return QTerms(loss.squeeze(-1), error.abs().squeeze(-1), grad)


def project_categorical(
    probs: Float[Tensor, " B Z"],
    reward: Float[Tensor, " B"],
    discount: Float[Tensor, " B"],
    support: Float[Tensor, " Z"],
) -> Float[Tensor, " B Z"]:
    """Return the distribution of r + d X, X on the atoms z_j with `probs`, on the same atoms.

    m_i = Σ_j p_j max(0, 1 - |clip(r + d z_j, z_1, z_Z) - z_i| / Δz).

    Args:
        support: the atoms, evenly spaced and rising.

    Reference: Bellemare et al. 2017, arXiv:1707.06887, eq. 7.
    """
    num = len(support)
    low, high = support[0], support[-1]
    moved = discounted(reward, discount, support.expand(len(reward), num))
    place = (moved.clamp(low, high) - low) * ((num - 1) / (high - low))
    place = place.clamp(max=num - 1)  # rounding can bring it past the last atom
    lower = place.floor().clamp(max=num - 2)
    above = probs * (place - lower)
    index = lower.long()
    projected = torch.zeros_like(probs)
    projected.scatter_add_(1, index, probs - above)
    return projected.scatter_add_(1, index + 1, above)


def categorical_loss(logits: Float[Tensor, " B Z"], target_probs: Float[Tensor, " B Z"]) -> QTerms:
    """Return the cross-entropy of a predicted distribution; the error is KL(target || prediction).

    The KL divergence as priority: Hessel et al. 2018, arXiv:1710.02298, section "The Integrated
    Agent".
    """
    log_probs = torch.log_softmax(logits, -1)
    loss = -(target_probs * log_probs).sum(-1)
    divergence = loss + torch.special.xlogy(target_probs, target_probs).sum(-1)
    return QTerms(loss, divergence.clamp(min=0), log_probs.exp() - target_probs)


def quantile_huber_loss(
    quantiles: Float[Tensor, " B Z"], targets: Float[Tensor, " B Y"], kappa: float
) -> QTerms:
    """Return Σ_i 1/Y Σ_j |τ_i - 1{u_ij < 0}| H_κ(u_ij) / κ, u_ij = target_j - quantile_i.

    τ_i = (i - ½) / Z are the midpoints, H_κ is Huber's loss. The error is the mean of |u_ij|.

    Reference: Dabney et al. 2018, arXiv:1710.10044, eq. 10 and algorithm 1.
    """
    num = quantiles.shape[-1]
    tau = (torch.arange(num, device=quantiles.device) + 0.5) / num
    u = targets.unsqueeze(1) - quantiles.unsqueeze(2)  # [B, Z, Y]
    weight = (tau.view(1, -1, 1) - (u < 0).to(u.dtype)).abs() / (kappa * targets.shape[-1])
    loss = (weight * huber_loss(u, kappa)).sum((1, 2))
    grad = -(weight * u.clamp(-kappa, kappa)).sum(2)
    return QTerms(loss, u.abs().mean((1, 2)), grad)
