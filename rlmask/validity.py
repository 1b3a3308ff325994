"""A head that says which actions are valid, and how it learns from labels of taken actions.

Reference: Zahavy et al. 2018, arXiv:1809.02121 (action elimination).

Dimension key: `B` rows, `A` actions, `H` features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlmask.config import (
    check_at_least,
    check_finite,
    check_literals,
    check_positive,
    check_unit_interval,
)
from rlmask.layers import head, linear_pullback
from rlmask.ops import (
    Ridge,
    eliminated,
    f_beta_loss,
    precision_loss,
    recall_loss,
    rounded,
    soft_counts,
    validity_bce,
)
from rlmask.torso import Torso, find_quickly
from rlmask.types import ActionSpec, ObsSpec


@dataclass(frozen=True, kw_only=True)
class ValidityConfig:
    """Settings of a learned mask."""

    rule: Literal["threshold", "bound"] = "threshold"
    """threshold: eliminate where P(invalid) > threshold; bound: where the lower confidence bound
    of a linear regression on the head's features is (Zahavy et al. 2018)."""
    threshold: float | None = None
    """Above which an action is eliminated; for the head, valid and invalid are equally likely.
    None: 0.95, and 0.6 for a bound, which is lower than what it bounds."""
    bound_width: float = 0.1
    """β of the bound: the wider, the more often an action is tried before it is eliminated."""
    loss: Literal["bce", "precision", "recall", "f_beta"] = "bce"
    """Beside binary cross-entropy: 1 - precision, recall or F of "valid", over a minibatch."""
    loss_coef: float = 1.0
    """Weight of that loss."""
    f_beta: float = 2.0
    """β of F: how much more recall matters than precision."""
    binary: bool = False
    """Count rounded predictions in that loss, with a straight-through gradient."""
    precision: float = 0.99
    """Share of right ones among the predictions of "invalid" from which on the mask is used."""
    kept: float = 0.95
    """And the share of the valid actions that it has to leave."""
    least_predictions: int = 500
    """Held-out predictions of "invalid" that this takes."""
    explore: float = 0.02
    """Share of the steps at which one eliminated action, drawn at random, is tried again."""
    held_out: float = 0.1
    """Share of the steps that are never learned from, but predicted."""
    window: int = 4096
    """Held-out steps that are looked back on."""
    capacity: int = 32_768
    """Steps that are learned from: the last ones, as many of each action with each label."""
    period: int = 32
    """Env steps between two gradient steps of the head."""
    batch_size: int = 256
    """Steps of a gradient step, half of them with a valid action."""
    learning_rate: float = 3e-3
    """Of Adam."""
    hidden_sizes: tuple[int, ...] = (64, 32)
    """Widths of the head's fully connected layers."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the field and the remedy.
        """
        check_literals(self)
        check_unit_interval(self, "threshold", "precision", "kept", "explore", "held_out")
        check_at_least(self, 1, "least_predictions", "window", "period")
        check_at_least(self, 2, "capacity", "batch_size")
        check_positive(self, "bound_width", "f_beta", "learning_rate", "explore", "held_out")
        check_at_least(self, 0, "loss_coef")
        check_finite(self, "bound_width", "f_beta", "learning_rate", "loss_coef")
        if self.held_out == 1:
            raise ValueError("held_out is 1: nothing would be learned from; it must be < 1")
        if self.window < self.least_predictions:
            raise ValueError(
                f"window is {self.window}: the mask would never be used; it must be >= "
                f"least_predictions, {self.least_predictions}"
            )
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError("hidden_sizes needs at least one positive width")

    @property
    def eliminates_above(self) -> float:
        """The threshold, that of the rule if none is given."""
        if self.threshold is None:
            return 0.6 if self.rule == "bound" else 0.95
        return self.threshold


class ValidityHead(nn.Module):
    """A logit of being valid for each action, and which ones to eliminate.

    Args:
        generator: of the initial weights (CPU).
    """

    is_on: Tensor
    theta: Tensor
    inverse: Tensor

    def __init__(
        self,
        obs: ObsSpec,
        action: ActionSpec,
        config: ValidityConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.obs_spec, self.config = obs, config
        width, num_actions = config.hidden_sizes[-1], action.num_actions
        self.torso = Torso(1, obs, config.hidden_sizes, "tanh", generator)
        self.head = head(width, num_actions, 0.01, generator)
        self.register_buffer("is_on", torch.tensor(False))
        bound = config.rule == "bound"
        self.register_buffer("theta", torch.zeros(num_actions, width + 1) if bound else None)
        square = torch.zeros(num_actions, width + 1, width + 1) if bound else None
        self.register_buffer("inverse", square)
        find_quickly(self)

    def forward(self, obs: Tensor) -> Float[Tensor, " B A"]:
        """Return the logits."""
        return self.head(self.torso.forward(obs)[0])

    def vjp(self, obs: Tensor) -> tuple[Float[Tensor, " B A"], Callable[[Tensor], None]]:
        """Return the logits, and the pullback of their gradient, as `ActorCritic.vjp`."""
        features, torso_pullback = self.torso.vjp(obs)

        def pullback(grad: Tensor) -> None:  # [B, A]
            grad_features = torch.empty_like(features)
            linear_pullback(self.head, features[0], grad, grad_features[0])
            torso_pullback(grad_features)

        return self.head.forward(features[0]), pullback

    def features(self, obs: Tensor) -> Float[Tensor, " B H"]:
        """Return what the bound is of: the last features, and 1."""
        return nn.functional.pad(self.torso.forward(obs)[0], (0, 1), value=1.0)

    def eliminated(self, obs: Tensor) -> Bool[Tensor, " B A"]:
        """Return which actions the rule says are invalid."""
        threshold = self.config.eliminates_above
        if self.config.rule == "bound":
            ridge = Ridge(self.theta, self.inverse)
            width = self.config.bound_width
            return eliminated(self.features(obs), ridge, beta=width, threshold=threshold)
        return torch.sigmoid(-self.forward(obs)) > threshold

    def narrow(self, obs: Tensor, mask: Bool[Tensor, " B A"]) -> Bool[Tensor, " B A"]:
        """Return the mask without the eliminated actions; as it is where none would be left."""
        if not self.is_on or not len(obs):
            return mask
        kept = mask & ~self.eliminated(obs)
        return torch.where(kept.any(-1, keepdim=True), kept, mask)


def validity_gradient(
    logits: Float[Tensor, " B A"],
    action: Int[Tensor, " B"],
    valid: Bool[Tensor, " B"],
    config: ValidityConfig,
) -> Float[Tensor, " B A"]:
    """Return the gradient of the loss by the logits, of labels of the taken actions only."""
    labelled = torch.zeros_like(logits, dtype=torch.bool)
    labelled.scatter_(-1, action.unsqueeze(-1), True)
    label = valid.unsqueeze(-1).expand_as(labelled)
    with torch.enable_grad():
        z = logits.detach().requires_grad_()
        loss = validity_bce(z, label, labelled)
        if config.loss != "bce":
            prob = torch.sigmoid(z)
            counts = soft_counts(rounded(prob) if config.binary else prob, label, labelled)
            ratio_loss = {
                "precision": precision_loss,
                "recall": recall_loss,
                "f_beta": lambda c: f_beta_loss(c, beta=config.f_beta),
            }[config.loss]
            loss = loss + config.loss_coef * ratio_loss(counts)
        return torch.autograd.grad(loss, z)[0]
