"""From an observation to features: layers and torsos.

The gradient of the fully connected layers is written out (`vjp`): on a batch of some dozen rows,
building and walking a graph takes longer than the arithmetic. `forward` is ordinary PyTorch.

Dimension key: `B` batch, `H` features, `G` networks side by side (policy, value).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmask.types import ObsSpec

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


def tanh_derivative(grad: Tensor, y: Tensor) -> Tensor:
    """Return the gradient by x, from that by y = tanh x."""
    return torch.addcmul(grad, grad * y, y, value=-1)


def relu_derivative(grad: Tensor, y: Tensor) -> Tensor:
    """Return the gradient by x, from that by y = max(x, 0)."""
    return grad * (y > 0)


ACTIVATIONS = {"tanh": (tanh, tanh_derivative), "relu": (torch.relu, relu_derivative)}


def grad_of(parameter: Tensor) -> Tensor:
    """Return the tensor that holds a parameter's gradient."""
    if parameter.grad is None:
        raise RuntimeError("the parameters have no grad to write to; make a FlatAdam of them first")
    return parameter.grad


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

    def pullback(
        self, x: Float[Tensor, " G B inputs"], grad: Float[Tensor, " G B H"]
    ) -> Float[Tensor, " G B inputs"]:
        """Write the gradient of the parameters from that of the output; return the input's."""
        torch.bmm(x.mT, grad, out=grad_of(self.weight))
        torch.sum(grad, 1, keepdim=True, out=grad_of(self.bias))
        return torch.bmm(grad, self.weight.mT)


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

    def pullback(self, obs: Tensor, grad: Float[Tensor, " B H"]) -> None:
        """Write the gradient of the parameters, from that of the output."""
        torch.sum(grad, 0, out=grad_of(self.bias))
        if self.discrete:
            grad_of(self.weight).zero_().index_add_(0, obs, grad)
        else:
            torch.mm(obs.mT, grad, out=grad_of(self.weight))


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
        self.activation, self.derivative = ACTIVATIONS[activation]
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
        return self.outputs(self.first_output(obs))[-1]

    def first_output(self, obs: Tensor) -> Float[Tensor, " G B H"]:
        """Return the output of the convolutions, or of the first layer."""
        if self.first is None:
            return torch.stack([conv(obs) for conv in self.convs])
        # [B, G*H] -> [G, B, H]
        return self.activation(self.first(obs)).unflatten(1, (self.groups, -1)).transpose(0, 1)

    def outputs(self, first: Float[Tensor, " G B H"]) -> list[Tensor]:
        """Return the output of every layer, the first one's included."""
        outputs = [first]
        for layer in self.layers:
            outputs.append(self.activation(layer(outputs[-1])))
        return outputs

    def vjp(self, obs: Tensor) -> tuple[Float[Tensor, " G B H"], Callable[[Tensor], None]]:
        """Return the features, and the pullback of their gradient; see `ActorCritic.vjp`."""
        with torch.set_grad_enabled(self.first is None):  # convolutions are left to autograd
            first = self.first_output(obs)
        outputs = self.outputs(first.detach())

        def pullback(grad: Float[Tensor, " G B H"]) -> None:
            ends = reversed(list(pairwise(outputs)))  # input and output of each layer
            for layer, (x, y) in zip(reversed(self.layers), ends, strict=True):
                grad = cast(GroupLinear, layer).pullback(x, self.derivative(grad, y))
            if self.first is not None:
                grad = self.derivative(grad, outputs[0])
                # [G, B, H] -> [B, G*H]
                self.first.pullback(obs, grad.transpose(0, 1).flatten(1))
                return
            parameters = list(self.convs.parameters())
            gradients = torch.autograd.grad(first, parameters, grad)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                grad_of(parameter).copy_(gradient)

        return outputs[-1], pullback


def orthogonal(
    in_features: int, out_features: int, gain: float, generator: torch.Generator
) -> Float[Tensor, "inputs outputs"]:
    """Return a random orthogonal matrix times `gain`.

    Reference: Saxe et al. 2014, arXiv:1312.6120.
    """
    weight = torch.empty(out_features, in_features)
    return nn.init.orthogonal_(weight, gain, generator=generator).T.contiguous()
