"""Networks: the actor-critic that PPO trains, and the Q-network of DQN and PQN.

Dimension key: `B` batch, `A` union actions, `H` features, `G` torsos (one shared, or two), `Z`
numbers an action (one value, atoms, or quantiles).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlmask.layers import apply_head, grad_of, head, linear_pullback
from rlmask.normalize import ObsScaler
from rlmask.ops import (
    dueling_gradient,
    dueling_values,
)
from rlmask.torso import Activation, Torso, find_quickly
from rlmask.types import ActionSpec, ObsSpec


class ActorCritic(nn.Module):
    """Raw scores of the union actions, and a state value; of one shared torso or of two.

    Args:
        conv_filters: see `rlmask.torso.ConvTorso`; for images only.
        hidden_sizes: widths of the fully connected layers, at least one.
        shared_torso: policy and value share all layers but the last.
        normalize_obs: subtract the running mean of vector observations and divide by the running
            standard deviation, clipped to ±10; the statistics are part of the weights.
        generator: of the initial weights (CPU).
    """

    def __init__(
        self,
        obs: ObsSpec,
        action: ActionSpec,
        *,
        conv_filters: Sequence[int] = (),
        hidden_sizes: Sequence[int],
        activation: Activation,
        shared_torso: bool,
        normalize_obs: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.obs_spec, self.action_spec = obs, action
        groups = 1 if shared_torso else 2
        self.torso = Torso(
            groups, obs, hidden_sizes, activation, generator, conv_filters=conv_filters
        )
        self.actor_head = head(hidden_sizes[-1], action.num_actions, 0.01, generator)
        self.critic_head = head(hidden_sizes[-1], 1, 1.0, generator)
        self.obs_scaler = ObsScaler(obs) if normalize_obs and obs.kind == "vector" else None
        find_quickly(self)

    def forward(
        self, obs: Tensor, game: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"]]:
        """Return logits and value; of which game a row is makes no difference here."""
        return self.heads(self.torso(self.scaled(obs)))

    def scores(
        self,
        obs: Tensor,
        action_mask: Bool[Tensor, " B A"],
        game: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B H"]]:
        """Return logits, and the features that they are of."""
        features = self.torso(self.scaled(obs))
        return self.actor_head(features[0]), features[0]

    def scaled(self, obs: Tensor) -> Tensor:
        """Return the observations as the torso sees them."""
        return obs if self.obs_scaler is None else self.obs_scaler(obs)

    def heads(
        self, features: Float[Tensor, " G B H"]
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"]]:
        """Return logits and value, of one shared row of features or of one each."""
        return self.actor_head(features[0]), self.critic_head(features[-1]).squeeze(-1)

    def vjp(
        self, obs: Tensor
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"], Callable[[Tensor, Tensor], None]]:
        """Return logits, value, and the pullback of their gradients (vector-Jacobian product).

        `pullback(∂L/∂logits, ∂L/∂value)` writes ∂L/∂w to `w.grad` of every parameter w. Call both
        under `torch.inference_mode()`, or `torch.no_grad()`.

        Raises:
            RuntimeError: in the pullback, if a parameter has no `grad` to write to.
        """
        features, torso_pullback = self.torso.vjp(self.scaled(obs))
        actor, critic = self.actor_head, self.critic_head

        def pullback(grad_logits: Tensor, grad_value: Tensor) -> None:  # [B, A], [B]
            torch.mm(grad_logits.mT, features[0], out=grad_of(actor.weight))
            torch.sum(grad_logits, 0, out=grad_of(actor.bias))
            torch.mv(features[-1].mT, grad_value, out=grad_of(critic.weight)[0])
            torch.sum(grad_value, 0, keepdim=True, out=grad_of(critic.bias))
            grad = torch.empty_like(features)
            torch.mm(grad_logits, actor.weight, out=grad[0])
            if len(features) == 1:
                grad[0].addr_(grad_value, critic.weight[0])
            else:
                torch.outer(grad_value, critic.weight[0], out=grad[1])
            torso_pullback(grad)

        return *self.heads(features), pullback


class QNetwork(nn.Module):
    """Z numbers for each of the union actions: a value, or a distribution of the return.

    Args:
        conv_filters: see `rlmask.torso.ConvTorso`; for images only.
        hidden_sizes: widths of the fully connected layers, at least one.
        dueling: the last of these layers is two, one for a state value and one for advantages
            (Wang et al. 2016, arXiv:1511.06581); their mean runs over the valid actions.
        layer_norm: before each activation.
        num_outputs: Z.
        support: atoms [Z] whose probabilities the numbers are the logits of; None: the numbers are
            values, all equally likely.
        num_games: whose rows come in turn, if they have parts of their own.
        game_stems: each game has a first layer of its own.
        game_heads: each game has a last layer of its own.
        generator: of the initial weights (CPU).
    """

    support: Tensor | None

    def __init__(
        self,
        obs: ObsSpec,
        action: ActionSpec,
        *,
        conv_filters: Sequence[int] = (),
        hidden_sizes: Sequence[int],
        activation: Activation,
        dueling: bool,
        layer_norm: bool,
        num_outputs: int,
        support: Float[Tensor, " Z"] | None,
        num_games: int = 1,
        game_stems: bool = False,
        game_heads: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.obs_spec, self.action_spec = obs, action
        self.torso = Torso(
            1,
            obs,
            hidden_sizes,
            activation,
            generator,
            conv_filters=conv_filters,
            last_groups=2 if dueling else 1,
            layer_norm=layer_norm,
            num_stems=num_games if game_stems else 1,
        )
        width = hidden_sizes[-1]
        self.num_actions, self.num_outputs = action.num_actions, num_outputs
        num_heads = num_games if game_heads else 1
        self.head = head(width, action.num_actions * num_outputs, 0.01, generator, num_heads)
        self.value_head = head(width, num_outputs, 0.01, generator) if dueling else None
        self.register_buffer("support", support, persistent=False)
        find_quickly(self)

    def forward(self, obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Float[Tensor, " B A Z"]:
        """Return the numbers of each action, also of the invalid ones.

        The mask matters to a dueling network only.
        """
        return self.outputs(self.torso.forward(obs), action_mask)

    def scores(
        self,
        obs: Tensor,
        action_mask: Bool[Tensor, " B A"],
        game: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B H"]]:
        """Return the expected return of each action, and the features that it is of.

        Args:
            game: of each row; None: row i is of game i modulo the number of games.
        """
        features = self.torso.forward(obs, game)
        return self.expected(self.outputs(features, action_mask, game)), features[-1]

    def values(self, obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Float[Tensor, " B A"]:
        """Return the expected return of each action."""
        return self.expected(self.forward(obs, action_mask))

    def expected(self, outputs: Float[Tensor, " B A Z"]) -> Float[Tensor, " B A"]:
        """Return the expectation of each action's distribution."""
        if self.support is not None:
            return torch.softmax(outputs, -1) @ self.support
        return outputs.squeeze(-1) if self.num_outputs == 1 else outputs.mean(-1)

    def outputs(
        self,
        features: Float[Tensor, " G B H"],
        action_mask: Bool[Tensor, " B A"],
        game: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, " B A Z"]:
        """Return the numbers of each action, of the features."""
        rows = apply_head(self.head, features[-1], game).view(
            -1, self.num_actions, self.num_outputs
        )
        if self.value_head is None:
            return rows
        return dueling_values(self.value_head.forward(features[0]), rows, action_mask)

    def vjp(
        self, obs: Tensor, action_mask: Bool[Tensor, " B A"]
    ) -> tuple[Float[Tensor, " B A Z"], Callable[[Tensor], None]]:
        """Return the numbers of each action, and the pullback of their gradient.

        `pullback(∂L/∂outputs)` is as that of `ActorCritic.vjp`.
        """
        features, torso_pullback = self.torso.vjp(obs)
        outputs = self.outputs(features, action_mask)
        head, value_head = self.head, self.value_head

        def pullback(grad: Tensor) -> None:  # [B, A, Z]
            grad_features = torch.empty_like(features)
            if value_head is not None:
                grad_value, grad = dueling_gradient(grad, action_mask)
                linear_pullback(value_head, features[0], grad_value, grad_features[0])
            linear_pullback(head, features[-1], grad.flatten(1), grad_features[-1])
            torso_pullback(grad_features)

        return outputs, pullback


class DeviceError(ValueError):
    """The device that is asked for does not exist here."""


def choose_device(device: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`.

    Raises:
        DeviceError: if `cuda` is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device is cuda, but torch sees no GPU; set it to cpu or auto")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
