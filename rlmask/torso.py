"""From an observation to features: layers and torsos.

The gradient of the fully connected layers is written out (`vjp`): on a batch of some dozen rows,
building and walking a graph takes longer than the arithmetic. `forward` is ordinary PyTorch.

Dimension key: `B` batch, `H` features, `G` networks side by side (policy, value).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmask.types import ObsSpec

Activation = Literal["tanh", "relu"]
SQRT_2 = math.sqrt(2)  # gain of hidden layers
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
    if x.is_cpu and x.numel() > (2**14 if x.requires_grad else 2**11):
        return torch.add(MINUS_ONE, torch.sigmoid(x * 2), alpha=2)
    return torch.tanh(x)


def tanh_derivative(grad: Tensor, y: Tensor) -> Tensor:
    """Return the gradient by x, from that by y = tanh x."""
    return tanh_backward(grad, y)


def relu_derivative(grad: Tensor, y: Tensor) -> Tensor:
    """Return the gradient by x, from that by y = max(x, 0)."""
    return threshold_backward(grad, y, 0)


ACTIVATIONS = {"tanh": (tanh, tanh_derivative), "relu": (torch.relu, relu_derivative)}


def grad_of(parameter: Tensor) -> Tensor:
    """Return the tensor that holds a parameter's gradient."""
    if parameter.grad is None:
        raise RuntimeError("the parameters have no grad to write to; make a FlatAdam of them first")
    return parameter.grad


class GroupLinear(nn.Module):
    """G linear layers of the same shape in one batched product, [G, B, in] -> [G, B, out].

    Rows of one network, [X, B, in] with X = 1, go to all of the layers.
    """

    def __init__(
        self, groups: int, in_features: int, out_features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.groups = groups
        weights = [orthogonal(in_features, out_features, SQRT_2, generator) for _ in range(groups)]
        self.weight = nn.Parameter(torch.stack(weights))
        self.bias = nn.Parameter(torch.zeros(groups, 1, out_features))

    def forward(self, x: Float[Tensor, " X B inputs"]) -> Float[Tensor, " G B H"]:
        """Apply each layer to its own rows, or all of them to the same."""
        return torch.baddbmm(self.bias, self._rows(x), self.weight)

    def pullback(
        self, x: Float[Tensor, " X B inputs"], grad: Float[Tensor, " G B H"]
    ) -> Float[Tensor, " X B inputs"]:
        """Write the gradient of the parameters from that of the output; return the input's."""
        weight = self.weight
        torch.bmm(self._rows(x).mT, grad, out=grad_of(weight))
        torch.sum(grad, 1, keepdim=True, out=grad_of(self.bias))
        grad = torch.bmm(grad, weight.mT)
        return grad if x.shape[0] == self.groups else grad.sum(0, keepdim=True)

    def _rows(self, x: Tensor) -> Tensor:
        return x if x.shape[0] == self.groups else x.expand(self.groups, -1, -1)


class GroupLayerNorm(nn.Module):
    """Layer norm of G networks side by side, [G, B, H], each with a scale and shift of its own.

    Reference: Ba et al. 2016, arXiv:1607.06450.
    """

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, 1, width))
        self.bias = nn.Parameter(torch.zeros(groups, 1, width))

    def forward(self, x: Float[Tensor, " G B H"]) -> Float[Tensor, " G B H"]:
        """Bring each row to mean 0 and variance 1, then scale and shift it."""
        return self.vjp(x)[0]

    def vjp(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return the output, and what `pullback` needs."""
        rows, mean, scale = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
        return torch.addcmul(self.bias, rows, self.weight), (x, rows, mean, scale)

    def pullback(self, seen: tuple[Tensor, Tensor, Tensor, Tensor], grad: Tensor) -> Tensor:
        """Write the gradient of the parameters from that of the output; return the input's."""
        x, rows, mean, scale = seen
        torch.sum(grad, 1, keepdim=True, out=grad_of(self.bias))
        torch.sum(grad * rows, 1, keepdim=True, out=grad_of(self.weight))
        return torch.ops.aten.native_layer_norm_backward(
            grad * self.weight, x, x.shape[-1:], mean, scale, None, None, [True, False, False]
        )[0]


class FirstLayer(nn.Module):
    """The first layer of G networks, that all see the same observation: [B, *obs] -> [G, B, H].

    A discrete observation picks its row of the weights: exactly the linear layer of its one-hot
    vector, without the product with all the zeros.
    """

    def __init__(self, groups: int, obs: ObsSpec, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.groups, self.width, self.discrete = groups, width, obs.kind == "discrete"
        inputs = obs.n if self.discrete else obs.shape[0]
        weights = [orthogonal(inputs, width, SQRT_2, generator) for _ in range(groups)]
        self.weight = nn.Parameter(torch.cat(weights, dim=1))
        self.bias = nn.Parameter(torch.zeros(groups * width))

    def forward(self, obs: Tensor) -> Float[Tensor, " G B H"]:
        """Apply each layer to the same rows."""
        if self.discrete:
            rows = self.weight.index_select(0, obs) + self.bias
        else:
            rows = torch.addmm(self.bias, obs, self.weight)
        return rows.view(-1, self.groups, self.width).transpose(0, 1)  # of [B, G*H]

    def pullback(self, obs: Tensor, grad: Float[Tensor, " G B H"]) -> Tensor:
        """Write the gradient of the parameters from that of the output; return the latter."""
        rows, weight = grad.transpose(0, 1).flatten(1), self.weight  # [B, G*H]
        torch.sum(rows, 0, out=grad_of(self.bias))
        if self.discrete:
            grad_of(weight).zero_().index_add_(0, obs, rows)
        else:
            torch.mm(obs.mT, rows, out=grad_of(weight))
        return grad


class ConvTorso(nn.Module):
    """Convolutions over images [B, height, width, channels]; uint8 is scaled to [0, 1].

    Images of 36 pixels and more get the three layers of Mnih et al. 2015 (doi:10.1038/nature14236),
    smaller boards one 3x3 layer of 16 filters, as in MinAtar (Young & Tian 2019, arXiv:1903.03176).

    Args:
        filters: of 3x3 layers in place of these.
        layer_norm: after each convolution, over all of its filters and places.

    Raises:
        NetworkError: if so many layers leave nothing of the image.
    """

    def __init__(
        self,
        shape: Sequence[int],
        generator: torch.Generator,
        filters: Sequence[int] = (),
        layer_norm: bool = False,
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
        for count, kernel, stride in sizes:
            conv = nn.Conv2d(channels, count, kernel, stride)
            nn.init.orthogonal_(conv.weight, SQRT_2, generator=generator)
            nn.init.zeros_(conv.get_parameter("bias"))
            layers += [conv, *([nn.GroupNorm(1, count)] if layer_norm else []), nn.ReLU()]
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            channels = count
        self.layers = nn.Sequential(*layers)
        self.out_features = channels * height * width

    def forward(self, image: Tensor) -> Float[Tensor, " B H"]:
        """Return the filters, flat."""
        scaled = image.float() / 255 if image.dtype == torch.uint8 else image
        # [B, H, W, C] -> [B, C, H, W], a view that already is channels_last
        return self.layers(scaled.permute(0, 3, 1, 2)).flatten(1)


class Torso(nn.Module):
    """From an observation to features [G, B, H].

    Args:
        groups: networks side by side, G, that share nothing but the observation.
        conv_filters: see `ConvTorso`; for images only.
        last_groups: layers side by side at the end, G, where the rest is one network.
        layer_norm: before each activation.

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
        layers: list[FirstLayer | GroupLinear] = []
        self.convs = nn.ModuleList()
        if obs.kind == "image":
            convs = [
                ConvTorso(obs.shape, generator, conv_filters, layer_norm) for _ in range(groups)
            ]
            self.convs.extend(convs)
            widths.insert(0, convs[0].out_features)
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

    def forward(self, obs: Tensor) -> Float[Tensor, " G B H"]:
        """Return the features of each network."""
        x = self._convolved(obs) if self.convs else obs
        for layer, norm in self._stack:
            x = layer.forward(x)
            if norm is not None:
                x = norm.forward(x)
            x = self.activation(x)
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
                grad = layer.pullback(x, grad)
            if convolved is not None:
                self._pull_back_convs(convolved, grad)

        return x, pullback

    def _convolved(self, obs: Tensor) -> Float[Tensor, " G B H"]:
        return torch.stack([conv(obs) for conv in self.convs])

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


def orthogonal(
    in_features: int, out_features: int, gain: float, generator: torch.Generator
) -> Float[Tensor, "inputs outputs"]:
    """Return a random orthogonal matrix times `gain`.

    Reference: Saxe et al. 2014, arXiv:1312.6120.
    """
    weight = torch.empty(out_features, in_features)
    return nn.init.orthogonal_(weight, gain, generator=generator).T.contiguous()
