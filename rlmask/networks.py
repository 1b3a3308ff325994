"""Networks: a torso for each kind of observation, and the actor-critic that PPO trains.

Dimension key: `B` batch, `A` union actions, `H` features, `G` networks side by side (policy,
value).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlmask.normalize import update_moments
from rlmask.ops import masked_argmax, masked_inverse_cdf, split_parts
from rlmask.types import ActionSpec, ObsSpec, Policy

Activation = Literal["tanh", "relu"]
SQRT_2 = math.sqrt(2)  # gain of hidden layers
MINUS_ONE = torch.tensor(-1.0)


def tanh(x: Tensor) -> Tensor:
    """Return tanh x, as 2 σ(2x) - 1 where that is quicker: to an absolute error of 2e-7.

    PyTorch's CPU kernel of the sigmoid is three to seven times as fast as that of tanh, which pays
    for the other two operations from some thousand entries on, and for their gradients later.
    """
    if x.is_cpu and x.numel() > (2**14 if x.requires_grad else 2**11):
        return torch.add(MINUS_ONE, torch.sigmoid(x * 2), alpha=2)
    return torch.tanh(x)


class GroupLinear(nn.Module):
    """G linear layers of the same shape in one batched product, [G, B, in] -> [G, B, out]."""

    def __init__(
        self, groups: int, in_features: int, out_features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        weights = [orthogonal(in_features, out_features, SQRT_2, generator) for _ in range(groups)]
        self.weight = nn.Parameter(torch.stack(weights))
        self.bias = nn.Parameter(torch.zeros(groups, 1, out_features))

    def forward(self, x: Float[Tensor, " G B inputs"]) -> Float[Tensor, " G B H"]:
        """Apply each layer to its own rows."""
        return torch.baddbmm(self.bias, x, self.weight)


class FirstLayer(nn.Module):
    """The first layer of G networks, that all see the same observation: [B, *obs] -> [B, G*H].

    A discrete observation picks its row of the weights: exactly the linear layer of its one-hot
    vector, without the product with all the zeros.
    """

    def __init__(self, groups: int, obs: ObsSpec, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.discrete = obs.kind == "discrete"
        inputs = obs.n if self.discrete else obs.shape[0]
        weights = [orthogonal(inputs, width, SQRT_2, generator) for _ in range(groups)]
        self.weight = nn.Parameter(torch.cat(weights, dim=1))
        self.bias = nn.Parameter(torch.zeros(groups * width))

    def forward(self, obs: Tensor) -> Float[Tensor, " B H"]:
        """Return the G networks' activations side by side."""
        if self.discrete:
            return self.weight.index_select(0, obs) + self.bias
        return torch.addmm(self.bias, obs, self.weight)


class ConvTorso(nn.Module):
    """Convolutions over images [B, height, width, channels]; uint8 is scaled to [0, 1].

    Images of 36 pixels and more get the three layers of Mnih et al. 2015 (doi:10.1038/nature14236),
    smaller boards one 3x3 layer of 16 filters, as in MinAtar (Young & Tian 2019, arXiv:1903.03176).
    """

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        height, width, channels = shape
        large = min(height, width) >= 36
        sizes = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if large else [(16, min(3, height, width), 1)]
        layers: list[nn.Module] = []
        for filters, kernel, stride in sizes:
            conv = nn.Conv2d(channels, filters, kernel, stride)
            nn.init.orthogonal_(conv.weight, SQRT_2, generator=generator)
            nn.init.zeros_(conv.get_parameter("bias"))
            layers += [conv, nn.ReLU()]
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            channels = filters
        self.layers = nn.Sequential(*layers)
        self.out_features = channels * height * width

    def forward(self, image: Tensor) -> Float[Tensor, " B H"]:
        """Return the filters, flat."""
        scaled = image.float() / 255 if image.dtype == torch.uint8 else image
        # [B, H, W, C] -> [B, C, H, W], a view that already is channels_last
        return self.layers(scaled.permute(0, 3, 1, 2)).flatten(1)


class Torso(nn.Module):
    """G networks side by side, from an observation to features [G, B, H]."""

    def __init__(
        self,
        groups: int,
        obs: ObsSpec,
        hidden_sizes: Sequence[int],
        activation: Activation,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.activation = tanh if activation == "tanh" else torch.relu
        if obs.kind == "image":
            convs = [ConvTorso(obs.shape, generator) for _ in range(groups)]
            self.convs = nn.ModuleList(convs)
            self.first = None
            sizes = [convs[0].out_features, *hidden_sizes]
        else:
            self.first = FirstLayer(groups, obs, hidden_sizes[0], generator)
            sizes = list(hidden_sizes)
        self.layers = nn.ModuleList(
            GroupLinear(groups, inputs, width, generator) for inputs, width in pairwise(sizes)
        )

    def forward(self, obs: Tensor) -> Float[Tensor, " G B H"]:
        """Return the features of each network."""
        if self.first is None:
            features = torch.stack([conv(obs) for conv in self.convs])
        else:
            features = self.activation(self.first(obs))
            # [B, G*H] -> [G, B, H]
            features = features.view(len(obs), self.groups, -1).transpose(0, 1)
        for layer in self.layers:
            features = self.activation(layer(features))
        return features


class ActorCritic(nn.Module):
    """Raw scores of the union actions, and a state value; of one shared torso or of two.

    Args:
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
        hidden_sizes: Sequence[int],
        activation: Activation,
        shared_torso: bool,
        normalize_obs: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.obs_spec, self.action_spec = obs, action
        groups = 1 if shared_torso else 2
        self.torso = Torso(groups, obs, hidden_sizes, activation, generator)
        self.actor_head = head(hidden_sizes[-1], action.num_actions, 0.01, generator)
        self.critic_head = head(hidden_sizes[-1], 1, 1.0, generator)
        self.normalize_obs = normalize_obs and obs.kind == "vector"
        if self.normalize_obs:
            self.register_buffer("obs_mean", torch.zeros(obs.shape, dtype=torch.float64))
            self.register_buffer("obs_var", torch.ones(obs.shape, dtype=torch.float64))
            self.register_buffer("obs_count", torch.full((), 1e-4, dtype=torch.float64))

    def forward(self, obs: Tensor) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"]]:
        """Return logits and value."""
        if self.normalize_obs:
            scaled = (obs - self.obs_mean) / (self.obs_var + 1e-8).sqrt()
            obs = scaled.clamp(-10, 10).float()
        features = self.torso(obs).unbind(0)  # one or two of [B, H]
        return self.actor_head(features[0]), self.critic_head(features[-1]).squeeze(-1)

    @torch.no_grad()
    def observe(self, obs: Float[Tensor, " B *obs"]) -> None:
        """Add observations to the statistics of `normalize_obs`."""
        moments = update_moments(self.obs_mean, self.obs_var, self.obs_count, obs)
        for buffer, new in zip((self.obs_mean, self.obs_var, self.obs_count), moments, strict=True):
            buffer.copy_(new)


def head(in_features: int, out_features: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with orthogonal weights and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def orthogonal(
    in_features: int, out_features: int, gain: float, generator: torch.Generator
) -> Float[Tensor, "inputs outputs"]:
    """Return a random orthogonal matrix times `gain`.

    Reference: Saxe et al. 2014, arXiv:1312.6120.
    """
    weight = torch.empty(out_features, in_features)
    return nn.init.orthogonal_(weight, gain, generator=generator).T.contiguous()


def actor_policy(
    network: ActorCritic, *, greedy: bool, generator: torch.Generator | None = None
) -> Policy:
    """Return a policy that takes the best valid action, or draws from the softmax over them.

    Observations and masks may be on any device; actions come back on the same.
    """
    nvec = network.action_spec.nvec
    device = next(network.parameters()).device

    @torch.inference_mode()
    def policy(obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B *parts"]:
        logits = split_parts(network(obs.to(device))[0], nvec)
        mask = split_parts(action_mask.to(device), nvec)
        if greedy:
            action = masked_argmax(logits, mask)
        else:  # drawn on the CPU, where the generator is
            uniform = torch.rand(mask.shape[:-1], generator=generator).to(device)
            action, _ = masked_inverse_cdf(logits, mask, uniform)
        return action.to(obs.device)

    return policy


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
