"""Linear layers side by side, each with the gradient of its parameters written out.

`forward` is ordinary PyTorch; `pullback` writes to the `grad` of the parameters, and returns the
gradient by the input.

Dimension key: `B` batch, `H` features, `G` networks side by side (policy, value), or games.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlmask.turns import by_game, by_row, interleave
from rlmask.types import ObsSpec

SQRT_2 = math.sqrt(2)  # gain of hidden layers


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


class GameLinear(nn.Module):
    """A linear layer for each of G games, [B, in] -> [B, out]; row i goes through that of its game.

    Args:
        num_games: G.
        gain: of the orthogonal weights.
        generator: of the initial weights (CPU).
    """

    def __init__(
        self,
        num_games: int,
        in_features: int,
        out_features: int,
        gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        weights = [orthogonal(in_features, out_features, gain, generator) for _ in range(num_games)]
        self.weight = nn.Parameter(torch.stack(weights))
        self.bias = nn.Parameter(torch.zeros(num_games, 1, out_features))

    def forward(
        self, x: Float[Tensor, " B inputs"], game: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B H"]:
        """Apply each game's layer to its rows.

        Args:
            game: of each row; None: row i is of game i modulo G.
        """
        if game is None:
            return by_row(torch.baddbmm(self.bias, by_game(x, len(self.weight)), self.weight))
        pairs = zip(self.weight, self.bias, strict=True)
        layers = [lambda rows, w=w, b=b: torch.addmm(b, rows, w) for w, b in pairs]
        return rows_of_games(layers, x, game)

    def pullback(
        self, x: Float[Tensor, " B inputs"], grad: Float[Tensor, " B H"]
    ) -> Float[Tensor, " B inputs"]:
        """Write the gradient of the parameters from that of the output; return the input's.

        Row i is of game i modulo G.
        """
        own_grad, weight = by_game(grad, len(self.weight)), self.weight
        torch.bmm(by_game(x, len(weight)).mT, own_grad, out=grad_of(weight))
        torch.sum(own_grad, 1, keepdim=True, out=grad_of(self.bias))
        return by_row(torch.bmm(own_grad, weight.mT))


def linear_pullback(
    layer: nn.Linear | GameLinear,
    x: Float[Tensor, " B H"],
    grad: Float[Tensor, " B Z"],
    out: Tensor,
) -> None:
    """Write the gradient of a layer's parameters, and to `out` that of its input."""
    if isinstance(layer, GameLinear):
        out.copy_(layer.pullback(x, grad))
        return
    weight = layer.weight
    torch.mm(grad.mT, x, out=grad_of(weight))
    torch.sum(grad, 0, out=grad_of(layer.bias))
    torch.mm(grad, weight, out=out)


def head(
    in_features: int,
    out_features: int,
    gain: float,
    generator: torch.Generator,
    num_games: int = 1,
) -> nn.Linear | GameLinear:
    """Return a linear layer, or one a game, with orthogonal weights and zero bias."""
    if num_games > 1:
        return GameLinear(num_games, in_features, out_features, gain, generator)
    layer = nn.Linear(in_features, out_features)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def apply_head(
    layer: nn.Linear | GameLinear, features: Float[Tensor, " B H"], game: Tensor | None
) -> Float[Tensor, " B Z"]:
    """Apply a layer made by `head`; `game` is as in `GameLinear`."""
    if isinstance(layer, GameLinear):
        return layer.forward(features, game)
    return layer.forward(features)


def rows_of_games(
    layers: Sequence[Callable[[Tensor], Tensor]],
    x: Float[Tensor, " B *shape"],
    game: Int[Tensor, " B"] | None = None,
) -> Tensor:
    """Apply to each row the layer of its game.

    Args:
        layers: one a game.
        game: of each row; None: row i is of game i modulo G.
    """
    if game is None:
        pairs = zip(layers, by_game(x, len(layers)), strict=True)
        return interleave([layer(rows) for layer, rows in pairs])
    own = [(game == index).nonzero().squeeze(-1) for index in range(len(layers))]
    rows = [layer(x.index_select(0, o)) for layer, o in zip(layers, own, strict=True) if len(o)]
    return torch.cat(rows).index_select(0, torch.cat(own).argsort())


def orthogonal(
    in_features: int, out_features: int, gain: float, generator: torch.Generator
) -> Float[Tensor, "inputs outputs"]:
    """Return a random orthogonal matrix times `gain`.

    Reference: Saxe et al. 2014, arXiv:1312.6120.
    """
    weight = torch.empty(out_features, in_features)
    return nn.init.orthogonal_(weight, gain, generator=generator).T.contiguous()
