"""A student of few bits: its weights and activations on grids, already while it learns.

The forward pass rounds, the gradient goes straight through. Biases, the value head and the logits
stay in float32; what the mask rules out is never seen here, since masks come after the logits.

Reference: Jacob et al. 2018, arXiv:1712.05877 (fake quantisation); Lam et al. 2019,
arXiv:1910.01055 (QuaRL: quantised policies, float training first).

Dimension key: `B` batch, `A` union actions, `H` features, `G` games, `P` places of activations.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.layers import FirstLayer, GameLinear, GroupLinear, apply_head, grad_of
from rlmask.ops import BITS, Grid, fake_quant, grid_of, round_straight_through
from rlmask.torso import find_quickly

RATE = 0.01  # of the moving averages of the ranges, a batch; the first ones count as in a mean
LEAST = 1e-6  # width of a range: that of a dead unit or channel still has a step
Layer = nn.Conv2d | nn.Linear | FirstLayer | GroupLinear | GameLinear
# axes of a weight over which the inputs of one output lie
INPUTS = {
    nn.Conv2d: (1, 2, 3),
    nn.Linear: (1,),
    FirstLayer: (0,),
    GroupLinear: (1,),
    GameLinear: (1,),
}


def layers_of(module: nn.Module) -> list[Layer]:
    """Return the layers whose weights are quantised, in order."""
    kinds = (nn.Conv2d, nn.Linear, FirstLayer, GroupLinear, GameLinear)
    return [layer for layer in module.modules() if isinstance(layer, kinds)]


def weight_scale(layer: Layer, num_bits: int) -> Tensor:
    """Return the step of each output's grid, in a shape that fits the weight.

    The grid is symmetric: whole multiples of max |w| / (2^(num_bits - 1) - 1), up to max |w|.
    """
    weight = layer.weight.detach()
    highest = weight.abs().amax(INPUTS[type(layer)], keepdim=True)
    return highest.clamp(min=LEAST) / (2 ** (num_bits - 1) - 1)


def weight_steps(layer: Layer, num_bits: int) -> Tensor:
    """Return the weight of a layer in steps of its grid: whole numbers, at most 2^(b - 1) - 1."""
    return round_straight_through(layer.weight / weight_scale(layer, num_bits))


def quantized_weight(layer: Layer, num_bits: int) -> Tensor:
    """Return the weight of a layer on its grid: `fake_quant` of the narrow range ±max |w|.

    But for one thing: the highest weight cannot fall off the end of the range by a rounding error,
    and so keeps its gradient, which is that of the weight everywhere.
    """
    return weight_steps(layer, num_bits) * weight_scale(layer, num_bits)


@contextmanager
def using(layers: Sequence[Layer], weights: Sequence[Tensor]) -> Iterator[None]:
    """Let layers have other weights for a while.

    `rlmask.torso.find_quickly` has put each weight where any attribute is, which is looked at
    before the parameters.
    """
    own = [layer.__dict__.get("weight") for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            layer.__dict__["weight"] = weight
        yield
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.__dict__["weight"] = weight


class QuantizedNetwork(nn.Module):
    """An Actor-Mimic network whose weights and activations are on grids, once `quantize` says so.

    It takes over the layers of the network that is given, under the same names. The ranges of the
    activations are moving averages of what `vjp_features` sees, extended to 0, and part of the
    weights. Activations are quantised after each activation function, and observations if they are
    float32; discrete ones and images of bytes are whole numbers as it is.

    Args:
        weight_bits: see `quantized_weight`, 2 to 16; None: float32.
        activation_bits: see `rlmask.ops.fake_quant`, one range for each place; None: float32.

    Raises:
        ValueError: if there are no numbers of so many bits.
    """

    activation_ranges: Tensor
    num_observed: Tensor
    is_quantized: Tensor

    def __init__(
        self, network: ActorMimicNetwork, weight_bits: int | None, activation_bits: int | None
    ) -> None:
        super().__init__()
        for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
            if bits not in (None, *BITS):
                raise ValueError(f"{name} is {bits}: it must be 2 to 16, or None")
        self.obs_spec, self.action_spec = network.obs_spec, network.action_spec
        self.weight_bits, self.activation_bits = weight_bits, activation_bits
        self.torso, self.actor_head = network.torso, network.actor_head
        self.critic_head, self.feature_maps = network.critic_head, network.feature_maps
        self.obs_scaler = network.obs_scaler
        relus = [m for conv in self.torso.convs for m in conv.modules() if isinstance(m, nn.ReLU)]
        num_places = 1 + len(relus) + len(self.torso.layers)
        self.register_buffer("activation_ranges", torch.zeros(num_places, 2))
        self.register_buffer("num_observed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_quantized", torch.zeros((), dtype=torch.bool))
        find_quickly(self)
        self._layers = [*layers_of(self.torso), *layers_of(self.actor_head)]
        parts = [self.torso, self.actor_head, self.critic_head]
        self._parameters_of_pass = [p for m in parts if m is not None for p in m.parameters()]

    def quantize(self, is_quantized: bool) -> None:
        """Compute on the grids from now on, or in float32."""
        self.is_quantized.fill_(is_quantized)

    def forward(
        self, obs: Tensor, game: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"]]:
        """Return logits and value; see `ActorMimicNetwork.forward`."""
        logits, features = self.run(obs, game, self.weights(), self.rounded)
        return logits, self.value(features, game)

    def scores(
        self,
        obs: Tensor,
        action_mask: Bool[Tensor, " B A"],
        game: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B H"]]:
        """Return logits, and the features that they are of."""
        return self.run(obs, game, self.weights(), self.rounded)

    def vjp(
        self, obs: Tensor
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B"], Callable[[Tensor, Tensor], None]]:
        """Return logits, value, and the pullback of their gradients; see `ActorCritic.vjp`."""
        logits, value, _, pullback = self.vjp_features(obs)
        return logits, value, pullback

    def vjp_features(
        self, obs: Tensor
    ) -> tuple[
        Float[Tensor, " B A"], Float[Tensor, " B"], Float[Tensor, " B H"], Callable[..., None]
    ]:
        """Return logits, value, features and the pullback of their gradients, rows in turn.

        As of `ActorMimicNetwork.vjp_features`, but by autograd; the ranges see the activations.
        """
        with torch.inference_mode(False), torch.enable_grad():
            logits, features = self.observe(obs.clone())
            value = self.value(features)

        def pullback(
            grad_logits: Tensor, grad_value: Tensor | None = None, more: Tensor | None = None
        ) -> None:  # [B, A], [B], [B, H]
            given = [(logits, grad_logits)]
            if grad_value is not None and self.critic_head is not None:
                given.append((value, grad_value))
            if more is not None:
                given.append((features, more))
            of, gradients = zip(*given, strict=True)
            parameters = self._parameters_of_pass
            found = torch.autograd.grad(of, parameters, gradients, allow_unused=True)
            for parameter, gradient in zip(parameters, found, strict=True):
                if gradient is None:  # the value head, without a gradient of the value
                    grad_of(parameter).zero_()
                else:
                    grad_of(parameter).copy_(gradient)

        return logits.detach(), value.detach(), features.detach(), pullback

    def value(
        self, features: Float[Tensor, " B H"], game: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B"]:
        """Return the value of features, in float32; 0 without a value head."""
        if self.critic_head is None:
            return features.new_zeros(len(features))
        return apply_head(self.critic_head, features, game).squeeze(-1)

    def weights(self) -> list[Tensor]:
        """Return the weights that a forward pass computes with."""
        if self.weight_bits is None or not self.is_quantized:
            return [layer.weight for layer in self._layers]
        return [quantized_weight(layer, self.weight_bits) for layer in self._layers]

    def grids(self) -> list[Grid] | None:
        """Return the grid of each place's activations; None if they are in float32."""
        bits = self.activation_bits
        if bits is None or not self.is_quantized or not self.num_observed:
            return None
        low, high = self._range_ends()
        return [grid_of(*ends, bits) for ends in zip(low, high, strict=True)]

    def observe(self, obs: Tensor) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B H"]]:
        """Add the activations of a batch, rows in turn, to the ranges; return logits, features."""
        self.num_observed += 1
        return self.run(obs, None, self.weights(), self.observed)

    def rounded(self, place: int, x: Tensor) -> Tensor:
        """Return activations on the grid of their place."""
        if self.activation_bits is None or not self.is_quantized or not self.num_observed:
            return x
        low, high = self._range_ends()
        return fake_quant(x, low[place], high[place], self.activation_bits)

    def observed(self, place: int, x: Tensor) -> Tensor:
        """Add activations to the range of their place; return them on its grid.

        Raises:
            FloatingPointError: if they are not finite; the range is then as before.
        """
        if self.activation_bits is None:
            return x
        with torch.no_grad():
            seen = torch.stack([x.min().clamp(max=0), x.max().clamp(min=0)])
            if not seen.isfinite().all():
                raise FloatingPointError(
                    "an activation is not finite. Look for huge observations, or lower "
                    "learning_rate"
                )
            rate = max(RATE, 1 / int(self.num_observed))
            self.activation_ranges[place].lerp_(seen, rate)
        return self.rounded(place, x)

    def run(
        self,
        obs: Tensor,
        game: Int[Tensor, " B"] | None,
        weights: Sequence[Tensor],
        rounded: Callable[[int, Tensor], Tensor],
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B H"]]:
        """Return logits and features, of these weights and with activations as `rounded` has them.

        Args:
            weights: of the torso's layers and the actor's head, in order.
        """
        with using(self._layers, weights):
            x = obs if self.obs_scaler is None else self.obs_scaler(obs)
            x = rounded(0, x) if x.is_floating_point() else x
            places = count(1)
            features = self.torso(x, game, lambda y: rounded(next(places), y))[0]
            return apply_head(self.actor_head, features, game), features

    def _range_ends(self) -> tuple[Tensor, Tensor]:  # [P], [P]
        low, high = self.activation_ranges.unbind(1)
        return low, torch.maximum(high, low + LEAST)


@torch.no_grad()
def quantized(
    network: ActorMimicNetwork,
    weight_bits: int | None,
    activation_bits: int | None,
    batches: Iterable[Tensor],
) -> QuantizedNetwork:
    """Return a copy of a trained network on grids, without any training there.

    Args:
        batches: of observations, rows of the games in turn, for the ranges of the activations: the
            mean of the least and of the highest of each batch.

    Raises:
        ValueError: if there are no numbers of so many bits, or no batches to find ranges of.
    """
    student = QuantizedNetwork(copy.deepcopy(network), weight_bits, activation_bits)
    for obs in batches:
        student.observe(obs)
    if activation_bits is not None and not student.num_observed:
        raise ValueError(
            "batches is empty: activation_bits needs observations, for the ranges of activations"
        )
    student.quantize(True)
    return student
