"""Networks: the actor-critic that PPO trains, the Q-network of DQN and PQN, and their policies.

Dimension key: `B` batch, `A` union actions, `H` features, `G` torsos (one shared, or two), `Z`
numbers an action (one value, atoms, or quantiles).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlmask.normalize import update_moments
from rlmask.ops import (
    dueling_gradient,
    dueling_values,
    masked_argmax,
    masked_epsilon_greedy,
    masked_inverse_cdf,
    split_parts,
)
from rlmask.torso import Activation, Torso, find_quickly, grad_of
from rlmask.types import ActionSpec, ObsSpec, Policy


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

    obs_mean: Tensor
    obs_var: Tensor
    obs_count: Tensor

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
        self.normalize_obs = normalize_obs and obs.kind == "vector"
        if self.normalize_obs:
            self.register_buffer("obs_mean", torch.zeros(obs.shape, dtype=torch.float64))
            self.register_buffer("obs_var", torch.ones(obs.shape, dtype=torch.float64))
            self.register_buffer("obs_count", torch.full((), 1e-4, dtype=torch.float64))
        find_quickly(self)

    def forward(self, obs: Tensor) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"]]:
        """Return logits and value."""
        return self.heads(self.torso(self.scaled(obs)))

    def scaled(self, obs: Tensor) -> Tensor:
        """Return the observations as the torso sees them."""
        if not self.normalize_obs:
            return obs
        scaled = (obs - self.obs_mean) / (self.obs_var + 1e-8).sqrt()
        return scaled.clamp(-10, 10).float()

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

    @torch.no_grad()
    def observe(self, obs: Float[Tensor, " B *obs"]) -> None:
        """Add observations to the statistics of `normalize_obs`."""
        moments = update_moments(self.obs_mean, self.obs_var, self.obs_count, obs)
        for buffer, new in zip((self.obs_mean, self.obs_var, self.obs_count), moments, strict=True):
            buffer.copy_(new)


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
        )
        width = hidden_sizes[-1]
        self.num_actions, self.num_outputs = action.num_actions, num_outputs
        self.head = head(width, action.num_actions * num_outputs, 0.01, generator)
        self.value_head = head(width, num_outputs, 0.01, generator) if dueling else None
        self.register_buffer("support", support, persistent=False)
        find_quickly(self)

    def forward(self, obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Float[Tensor, " B A Z"]:
        """Return the numbers of each action, also of the invalid ones.

        The mask matters to a dueling network only.
        """
        return self.outputs(self.torso.forward(obs), action_mask)

    def values(self, obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Float[Tensor, " B A"]:
        """Return the expected return of each action."""
        return self.expected(self.forward(obs, action_mask))

    def expected(self, outputs: Float[Tensor, " B A Z"]) -> Float[Tensor, " B A"]:
        """Return the expectation of each action's distribution."""
        if self.support is not None:
            return torch.softmax(outputs, -1) @ self.support
        return outputs.squeeze(-1) if self.num_outputs == 1 else outputs.mean(-1)

    def outputs(
        self, features: Float[Tensor, " G B H"], action_mask: Bool[Tensor, " B A"]
    ) -> Float[Tensor, " B A Z"]:
        """Return the numbers of each action, of the features."""
        rows = self.head.forward(features[-1]).view(-1, self.num_actions, self.num_outputs)
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


def linear_pullback(
    layer: nn.Linear, x: Float[Tensor, " B H"], grad: Float[Tensor, " B Z"], out: Tensor
) -> None:
    """Write the gradient of a layer's parameters, and to `out` that of its input."""
    weight = layer.weight
    torch.mm(grad.mT, x, out=grad_of(weight))
    torch.sum(grad, 0, out=grad_of(layer.bias))
    torch.mm(grad, weight, out=out)


def head(in_features: int, out_features: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with orthogonal weights and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def actor_policy(
    network: ActorCritic, *, greedy: bool, generator: torch.Generator | None = None
) -> Policy:
    """Return a policy that takes the best valid action, or draws from the softmax over them.

    Observations and masks may be on any device; actions come back on the same.

    Raises:
        TypeError: in the policy, if observations are of another kind of number.
    """
    nvec, dtype = network.action_spec.nvec, network.obs_spec.torch_dtype
    device = next(network.parameters()).device

    @torch.inference_mode()
    def policy(obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B *parts"]:
        logits = split_parts(network(as_known(obs, dtype).to(device))[0], nvec)
        mask = split_parts(action_mask.to(device), nvec)
        if greedy:
            action = masked_argmax(logits, mask)
        else:  # drawn on the CPU, where the generator is
            uniform = torch.rand(mask.shape[:-1], generator=generator).to(device)
            action, _ = masked_inverse_cdf(logits, mask, uniform)
        return action.to(obs.device)

    return policy


def q_policy(
    network: QNetwork, *, epsilon: float = 0.0, generator: torch.Generator | None = None
) -> Policy:
    """Return a policy that takes the valid action of the highest value.

    Observations and masks may be on any device; actions come back on the same.

    Args:
        epsilon: with this probability a uniformly drawn valid action instead.
        generator: of the draws (CPU).

    Raises:
        TypeError: in the policy, if observations are of another kind of number.
    """
    dtype, device = network.obs_spec.torch_dtype, next(network.parameters()).device

    @torch.inference_mode()
    def policy(obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B"]:
        seen, mask = as_known(obs, dtype).to(device), action_mask.to(device)
        values = network.values(seen, mask)
        if epsilon == 0:
            return masked_argmax(values, mask).to(obs.device)
        action = masked_epsilon_greedy(values.cpu(), mask.cpu(), epsilon, generator)
        return action.to(obs.device)

    return policy


def as_known(obs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return observations as the numbers that a network knows.

    Raises:
        TypeError: if they are of another kind.
    """
    if obs.dtype == dtype:
        return obs
    if not (obs.is_floating_point() and dtype.is_floating_point):
        raise TypeError(f"observations are {obs.dtype}; this policy knows {dtype}")
    return obs.to(dtype)


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
