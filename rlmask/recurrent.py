"""Recurrent cells whose input is projected apart from the step, and whose state is one vector.

A whole chunk of inputs is projected in one product; what remains to be done step by step is the
recurrent part. The initial weights come from an explicit generator.

Dimension key: `B` batch, `X` input, `R` units of the cell, `S` state, `P` projected input.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from rlmask.ops import check_choice

Cell = Literal["gru", "lstm"]
GATES = {"gru": 3, "lstm": 4}


def orthogonal_weight(
    out_features: int, in_features: int, generator: torch.Generator, gain: float = 1.0
) -> nn.Parameter:
    """Return a weight of orthogonal rows or columns."""
    weight = torch.empty(out_features, in_features)
    return nn.Parameter(nn.init.orthogonal_(weight, gain, generator=generator))


class RecurrentCell(nn.Module):
    """A GRU or an LSTM, with PyTorch's order of gates; the state is h, or (h, c) in one row.

    GRU: r, z = σ(W x + U h + b), n = tanh(W_n x + b_n + r (U_n h + b'_n)), h' = (1 - z) n + z h.
    LSTM: i, f, o = σ(W x + U h + b), g = tanh(W_g x + U_g h + b_g), c' = f c + i g,
    h' = o tanh c'.

    z and f start with a bias of 1, so that the cell remembers before it has learned what
    (Jozefowicz et al. 2015).

    References: Cho et al. 2014, arXiv:1406.1078; Hochreiter & Schmidhuber 1997,
    doi:10.1162/neco.1997.9.8.1735.

    Args:
        kind: `gru` or `lstm`.
        input_size: X.
        size: R.
        generator: of the initial weights (CPU), orthogonal gate by gate.

    Raises:
        ValueError: if there is no such kind.
    """

    def __init__(self, kind: Cell, input_size: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        check_choice("kind", kind, GATES)
        self.kind, self.input_size, self.size = kind, input_size, size
        gates = GATES[kind]
        self.state_size = size if kind == "gru" else 2 * size

        def stacked(inputs: int) -> nn.Parameter:
            own = [orthogonal_weight(size, inputs, generator).data for _ in range(gates)]
            return nn.Parameter(torch.cat(own))

        self.weight_input, self.weight_state = stacked(input_size), stacked(size)
        self.bias_input = nn.Parameter(torch.zeros(gates * size))
        self.bias_state = nn.Parameter(torch.zeros(gates * size))
        with torch.no_grad():
            self.bias_input[size : 2 * size] = 1.0

    def project(self, x: Float[Tensor, "*batch X"]) -> Float[Tensor, "*batch P"]:
        """Return W x + b, of all gates; x may leave out the last inputs, see `project_rest`."""
        return linear(x, self.weight_input[:, : x.shape[-1]], self.bias_input)

    def project_rest(self, rest: Float[Tensor, "*batch rest"]) -> Float[Tensor, "*batch P"]:
        """Return what the last inputs add to `project` of the others."""
        return linear(rest, self.weight_input[:, self.input_size - rest.shape[-1] :])

    def forward(
        self, projected: Float[Tensor, " B P"], state: Float[Tensor, " B S"]
    ) -> Float[Tensor, " B S"]:
        """Return the next state; its first R numbers are the output."""
        h = state[:, : self.size]
        recurrent = linear(h, self.weight_state, self.bias_state)
        if self.kind == "gru":
            two = 2 * self.size
            r, z = torch.sigmoid(projected[:, :two] + recurrent[:, :two]).chunk(2, -1)
            n = torch.tanh(torch.addcmul(projected[:, two:], r, recurrent[:, two:]))
            return torch.lerp(n, h, z)
        i, f, g, o = (projected + recurrent).chunk(4, -1)
        c = torch.sigmoid(f) * state[:, self.size :] + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)
