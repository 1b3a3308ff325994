"""From an observation to features.

The gradient of the fully connected layers is written out (`vjp`): on a batch of some dozen rows,
building and walking a graph takes longer than the arithmetic. `forward` is ordinary PyTorch.

Dimension key: `B` batch, `H` features, `G` networks side by side (policy, value).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlmask.layers import (
    SQRT_2,
    FirstLayer,
    GameLinear,
    GroupLayerNorm,
    GroupLinear,
    grad_of,
    rows_of_games,
)
from rlmask.types import ObsSpec

Activation = Literal["tanh", "relu"]
After = Callable[[Tensor], Tensor]
MINUS_ONE = torch.tensor(-1.0)
tanh_backward = torch.ops.aten.tanh_backward.default
threshold_backward = torch.ops.aten.threshold_backward.default


class NetworkError(ValueError):
    """The settings describe no network for these observations."""


def tanh(x: Tensor) -> Tensor:
    """Return tanh x, as 2 σ(2x) - 1 where that is quicker: to an absolute error of 2e-7.

    PyTorch's CPU kernel of the sigmoid is three to seven times as fast as that of tanh, which pays
    for the other two operations from some thousand entries on, and for their gradients later.
    """
    is_traced = torch.compiler.is_compiling()  # of any size
    if not is_traced and x.is_cpu and x.numel() > (2**14 if x.requires_grad else 2**11):
        return torch.add(MINUS_ONE, torch.sigmoid(x * 2), alpha=2)
    return torch.tanh(x)


def tanh_derivative(grad: Tensor, y: Tensor) -> Tensor:
    """Return the gradient by x, from that by y = tanh x."""
    return tanh_backward(grad, y)


def relu_derivative(grad: Tensor, y: Tensor) -> Tensor:
    """Return the gradient by x, from that by y = max(x, 0)."""
    return threshold_backward(grad, y, 0)


ACTIVATIONS = {"tanh": (tanh, tanh_derivative), "relu": (torch.relu, relu_derivative)}


class ConvTorso(nn.Module):
    """Convolutions over images [B, height, width, channels]; uint8 is scaled to [0, 1].

    Images of 36 pixels and more get the three layers of Mnih et al. 2015 (doi:10.1038/nature14236),
    smaller boards one 3x3 layer of 16 filters, as in MinAtar (Young & Tian 2019, arXiv:1903.03176).

    Args:
        filters: of 3x3 layers in place of these.
        layer_norm: after each convolution, over all of its filters and places.
        num_stems: first layers, one a game; row i goes through that of its game.

    Raises:
        NetworkError: if so many layers leave nothing of the image.
    """

    def __init__(
        self,
        shape: Sequence[int],
        generator: torch.Generator,
        filters: Sequence[int] = (),
        layer_norm: bool = False,
        num_stems: int = 1,
    ) -> None:
        super().__init__()
        height, width, channels = shape
        large = min(height, width) >= 36
        sizes = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if large else [(16, min(3, height, width), 1)]
        if filters:
            sizes = [(count, 3, 1) for count in filters]
        if min(height, width) <= 2 * len(filters):
            raise NetworkError(
                f"conv_filters has {len(filters)} layers of 3x3, which leave nothing of an image "
                f"of {height}x{width}; an image of {min(height, width)} can have "
                f"{(min(height, width) - 1) // 2}"
            )
        layers: list[nn.Module] = []
        self.stems = nn.ModuleList()
        for count, kernel, stride in sizes:
            copies = 1 if layers else num_stems  # of the first
            convs = [convolution(channels, count, kernel, stride, generator) for _ in range(copies)]
            if copies > 1:
                self.stems.extend(convs)
            else:
                layers += convs
            layers += [*([nn.GroupNorm(1, count)] if layer_norm else []), nn.ReLU()]
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            channels = count
        self.layers = nn.Sequential(*layers)
        self.out_features = channels * height * width

    def forward(
        self, image: Tensor, game: Int[Tensor, " B"] | None = None, after: After | None = None
    ) -> Float[Tensor, " B H"]:
        """Return the filters, flat; `game` and `after` are as in `Torso.forward`."""
        scaled = image.float() / 255 if image.dtype == torch.uint8 else image
        # [B, H, W, C] -> [B, C, H, W], a view that already is channels_last
        planes = scaled.permute(0, 3, 1, 2)
        if self.stems:
            planes = rows_of_games(list(self.stems), planes, game)
        for layer in self.layers:
            planes = layer(planes)
            if after is not None and isinstance(layer, nn.ReLU):
                planes = after(planes)
        return planes.flatten(1)


def convolution(
    channels: int, filters: int, kernel: int, stride: int, generator: torch.Generator
) -> nn.Conv2d:
    """Return a convolution with orthogonal weights and zero bias."""
    conv = nn.Conv2d(channels, filters, kernel, stride)
    nn.init.orthogonal_(conv.weight, SQRT_2, generator=generator)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


class Torso(nn.Module):
    """From an observation to features [G, B, H].

    Args:
        groups: networks side by side, G, that share nothing but the observation.
        conv_filters: see `ConvTorso`; for images only.
        last_groups: layers side by side at the end, G, where the rest is one network.
        layer_norm: before each activation.
        num_stems: first layers, one a game, where the rest is one network; discrete observations
            need none, as each game's are rows of their own.

    Raises:
        NetworkError: if there are `conv_filters` that do not fit the observation.
    """

    def __init__(
        self,
        groups: int,
        obs: ObsSpec,
        hidden_sizes: Sequence[int],
        activation: Activation,
        generator: torch.Generator,
        *,
        conv_filters: Sequence[int] = (),
        last_groups: int | None = None,
        layer_norm: bool = False,
        num_stems: int = 1,
    ) -> None:
        super().__init__()
        if conv_filters and obs.kind != "image":
            raise NetworkError(
                f"conv_filters is {tuple(conv_filters)}, but the observations are no images"
            )
        self.activation, self.derivative = ACTIVATIONS[activation]
        counts = [groups] * len(hidden_sizes)
        counts[-1] = groups if last_groups is None else last_groups
        widths = list(hidden_sizes)
        layers: list[FirstLayer | GameLinear | GroupLinear] = []
        self.convs = nn.ModuleList()
        if obs.kind == "image":
            convs = [
                ConvTorso(obs.shape, generator, conv_filters, layer_norm, num_stems)
                for _ in range(groups)
            ]
            self.convs.extend(convs)
            widths.insert(0, convs[0].out_features)
        elif num_stems > 1 and obs.kind == "vector":
            layers = [GameLinear(num_stems, obs.shape[0], widths[0], SQRT_2, generator)]
        else:
            layers = [FirstLayer(counts[0], obs, widths[0], generator)]
        for count, (inputs, width) in zip(counts[len(layers) :], pairwise(widths), strict=True):
            layers.append(GroupLinear(count, inputs, width, generator))
        norms = [
            GroupLayerNorm(count, width) if layer_norm else None
            for count, width in zip(counts, hidden_sizes, strict=True)
        ]
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(norm for norm in norms if norm is not None)
        # `forward` is called on them as it is: nn.Module's search for hooks takes as long
        self._stack = list(zip(layers, norms, strict=True))

    def forward(
        self, obs: Tensor, game: Int[Tensor, " B"] | None = None, after: After | None = None
    ) -> Float[Tensor, " G B H"]:
        """Return the features of each network.

        Args:
            game: as in `GameLinear`.
            after: what to make of that which comes out of each activation function, in order.
        """
        x = self._convolved(obs, game, after) if self.convs else obs
        for layer, norm in self._stack:
            if isinstance(layer, GameLinear):
                x = layer.forward(x, game).unsqueeze(0)
            else:
                x = layer.forward(x)
            if norm is not None:
                x = norm.forward(x)
            x = self.activation(x)
            if after is not None:
                x = after(x)
        return x

    def vjp(self, obs: Tensor) -> tuple[Float[Tensor, " G B H"], Callable[[Tensor], None]]:
        """Return the features, and the pullback of their gradient; see `ActorCritic.vjp`."""
        x, convolved = obs, None
        if self.convs:  # they are left to autograd, which takes no tensor of inference mode
            with torch.inference_mode(False), torch.enable_grad():
                convolved = self._convolved(obs.clone())
            x = convolved.detach()
        passed = []
        for layer, norm in self._stack:
            rows, seen = layer.forward(x), None
            if isinstance(layer, GameLinear):
                rows = rows.unsqueeze(0)
            if norm is not None:
                rows, seen = norm.vjp(rows)
            y = self.activation(rows)
            passed.append((layer, norm, x, seen, y))
            x = y

        def pullback(grad: Tensor) -> None:  # [G, B, H]; a shape in brackets costs at every call
            for layer, norm, x, seen, y in reversed(passed):
                grad = self.derivative(grad, y)
                if norm is not None:
                    grad = norm.pullback(seen, grad)
                grad = layer.pullback(x, grad[0] if isinstance(layer, GameLinear) else grad)
            if convolved is not None:
                self._pull_back_convs(convolved, grad)

        return x, pullback

    def _convolved(
        self, obs: Tensor, game: Tensor | None = None, after: After | None = None
    ) -> Float[Tensor, " G B H"]:
        return torch.stack([conv(obs, game, after) for conv in self.convs])

    def _pull_back_convs(self, output: Tensor, grad: Tensor) -> None:
        parameters = list(self.convs.parameters())
        gradients = torch.autograd.grad(output, parameters, grad)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            grad_of(parameter).copy_(gradient)


def find_quickly(network: nn.Module) -> None:
    """Let parameters and layers be found like any attribute; call it when the network is made.

    nn.Module keeps them in dictionaries of its own, and looks there last and in Python: dozens of
    times in a gradient step, for a tenth of its time if the network is small.
    """
    for module in network.modules():
        module.__dict__.update({**module._parameters, **module._modules})
