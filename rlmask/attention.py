"""Attention over memories of different lengths, padded to one: for sequences, and for sets.

Every module takes the mask of the places that exist (True), cleans the memory by it before any
product, and scores under it: padding has no weight, no gradient, and cannot leak. The initial
weights come from an explicit generator.

Dimension key: `*batch` any leading shape, `T` places, `D` depth of the memory, `Q` of the query,
`U` units, `B` batch, `S` state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear

from rlmask.ops import attention_weights, check_choice, hard_attention_weights, only_existing
from rlmask.ops.attention import EMPTY, Empty
from rlmask.recurrent import Cell, RecurrentCell, orthogonal_weight

ProbabilityFn = Literal["softmax", "hardmax"]
WEIGHTS = {"softmax": attention_weights, "hardmax": hard_attention_weights}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a mechanism attends to: made once, read at every step."""

    values: Float[Tensor, "*batch T D"]  # 0 where padded
    keys: Float[Tensor, "*batch T U"]
    mask: Bool[Tensor, "*batch T"]


class LuongAttention(nn.Module):
    """Multiplicative attention: s_t = g qᵀ(W_m m_t).

    Reference: Luong et al. 2015, arXiv:1508.04025.

    Args:
        units: U; the query has as many, as there is no layer for it.
        memory_size: D.
        query_size: Q.
        scale: learn g, at first 1; else g is 1.
        probability_fn: what turns scores into weights; hardmax has no gradient.
        empty: of a memory without any place; see `rlmask.ops.attention_weights`.
        generator: of the initial weights (CPU).

    Raises:
        ValueError: if Q is not U, or a choice is none of its names.
    """

    def __init__(
        self,
        units: int,
        memory_size: int,
        query_size: int,
        *,
        scale: bool = False,
        probability_fn: ProbabilityFn = "softmax",
        empty: Empty = "error",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if units != query_size:
            raise ValueError(
                f"units is {units}, but the query has {query_size} numbers: multiplicative "
                "attention compares keys with the query itself; set units to its size"
            )
        check_choice("probability_fn", probability_fn, WEIGHTS)
        check_choice("empty", empty, EMPTY)
        self.memory_size, self.query_size = memory_size, query_size
        self.probability_fn = probability_fn
        self.empty: Empty = empty
        self.memory_weight = orthogonal_weight(units, memory_size, generator)
        self.scale = nn.Parameter(torch.ones(())) if scale else None

    def keys(self, memory: Float[Tensor, "*batch T D"]) -> Float[Tensor, "*batch T U"]:
        """Return W_m m_t."""
        return linear(memory, self.memory_weight)

    def scores(
        self, query: Float[Tensor, "*batch Q"], keys: Float[Tensor, "*batch T U"]
    ) -> Float[Tensor, "*batch T"]:
        """Return s_t."""
        scores = (keys @ query.unsqueeze(-1)).squeeze(-1)
        return scores if self.scale is None else self.scale * scores

    def forward(
        self, query: Float[Tensor, "*batch Q"], memory: Memory
    ) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch T"]]:
        """Return context and weights."""
        return look_up(self, query, memory)


class BahdanauAttention(nn.Module):
    """Additive attention: s_t = vᵀ tanh(W_q q + W_m m_t).

    Normalised, v is g v / ‖v‖ and a bias b is added inside the tanh (Salimans & Kingma 2016,
    arXiv:1602.07868); at first g = √(1 / U) and b = 0.

    Reference: Bahdanau et al. 2015, arXiv:1409.0473.

    Args:
        units: U.
        normalized: see above.
        memory_size, query_size, probability_fn, empty, generator: as in `LuongAttention`.

    Raises:
        ValueError: if a choice is none of its names.
    """

    def __init__(
        self,
        units: int,
        memory_size: int,
        query_size: int,
        *,
        normalized: bool = False,
        probability_fn: ProbabilityFn = "softmax",
        empty: Empty = "error",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_choice("probability_fn", probability_fn, WEIGHTS)
        check_choice("empty", empty, EMPTY)
        self.memory_size, self.query_size = memory_size, query_size
        self.probability_fn = probability_fn
        self.empty: Empty = empty
        self.memory_weight = orthogonal_weight(units, memory_size, generator)
        self.query_weight = orthogonal_weight(units, query_size, generator)
        bound = math.sqrt(3 / units)  # a vector of norm 1, on average
        direction = torch.empty(units).uniform_(-bound, bound, generator=generator)
        self.direction = nn.Parameter(direction)
        self.scale = nn.Parameter(torch.tensor(math.sqrt(1 / units))) if normalized else None
        self.bias = nn.Parameter(torch.zeros(units)) if normalized else None

    def keys(self, memory: Float[Tensor, "*batch T D"]) -> Float[Tensor, "*batch T U"]:
        """Return W_m m_t."""
        return linear(memory, self.memory_weight)

    def scores(
        self, query: Float[Tensor, "*batch Q"], keys: Float[Tensor, "*batch T U"]
    ) -> Float[Tensor, "*batch T"]:
        """Return s_t."""
        shift = linear(query, self.query_weight, self.bias).unsqueeze(-2)
        direction = self.direction
        if self.scale is not None:
            direction = self.scale * direction / torch.linalg.vector_norm(direction)
        return torch.tanh(keys + shift) @ direction

    def forward(
        self, query: Float[Tensor, "*batch Q"], memory: Memory
    ) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch T"]]:
        """Return context and weights."""
        return look_up(self, query, memory)


Mechanism = LuongAttention | BahdanauAttention


def memorize(
    mechanism: Mechanism, values: Float[Tensor, "*batch T D"], mask: Bool[Tensor, "*batch T"]
) -> Memory:
    """Return values as a mechanism attends to them."""
    clean = only_existing(values, mask)
    return Memory(values=clean, keys=mechanism.keys(clean), mask=mask)


def look_up(
    mechanism: Mechanism, query: Float[Tensor, "*batch Q"], memory: Memory
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch T"]]:
    """Return the context, of the values themselves and not of the keys, and the weights."""
    scores = mechanism.scores(query, memory.keys)
    weights = WEIGHTS[mechanism.probability_fn](scores, memory.mask, mechanism.empty)
    # a product, as padded values are 0 already; `rlmask.ops.attend` takes any
    own = weights.to(memory.values.dtype)  # they are float32 of scores in half precision
    return (own.unsqueeze(-2) @ memory.values).squeeze(-2), weights


class AttentionCell(nn.Module):
    """A recurrent cell that looks into memories at every step, and is fed what it saw.

    The step, from the attention a of the last one (0 at first):

        h' = cell([x; a], h)    c = Σ_t α_t m_t, α of the query h'    a' = W_a [h'; c]

    W_a has no bias, and nothing follows it; without `attention_layer_size`, a' = c. With several
    mechanisms, each has its memory and its W_a, and a' is all of theirs in one row. The state is
    that of the cell and a in one row.

    Reference: the semantics are those of TensorFlow Addons' AttentionWrapper; Luong et al. 2015,
    arXiv:1508.04025 (input feeding).

    Args:
        kind: of the cell, `gru` or `lstm`.
        input_size: of x.
        size: units of the cell, the query of every mechanism.
        mechanisms: each with a memory; none: the cell alone, whose output is h'.
        attention_layer_size: rows of W_a, one number for each mechanism; None: a' = c.
        attention_layers: linear layers to take as W_a, one for each mechanism.
        output_attention: the output is a' (Luong), else h' (Bahdanau).
        generator: of the initial weights (CPU).

    Raises:
        ValueError: if there are not as many sizes or layers as mechanisms, or both are given, or
            a mechanism's query is of another size; at a step, if there are not as many memories.
    """

    def __init__(
        self,
        kind: Cell,
        input_size: int,
        size: int,
        mechanisms: Sequence[Mechanism],
        *,
        attention_layer_size: Sequence[int] | int | None = None,
        attention_layers: Sequence[nn.Linear] | None = None,
        output_attention: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if attention_layer_size is not None and attention_layers is not None:
            raise ValueError("give attention_layer_size or attention_layers, not both")
        for mechanism in mechanisms:
            if mechanism.query_size != size:
                raise ValueError(
                    f"query_size is {mechanism.query_size}: set it to the cell's size, {size}"
                )
        self.mechanisms = nn.ModuleList(mechanisms)
        self._mechanisms = list(mechanisms)
        sizes = attention_layer_size
        sizes = [sizes] if isinstance(sizes, int) else sizes
        depths = [mechanism.memory_size for mechanism in mechanisms]
        layers = list(attention_layers) if attention_layers is not None else []
        if sizes is not None:
            _check_one_each("attention_layer_size", len(sizes), len(depths))
            layers = [
                _layer(width, size + depth, generator)
                for width, depth in zip(sizes, depths, strict=True)
            ]
        elif attention_layers is not None:
            _check_one_each("attention_layers", len(layers), len(depths))
        self.attention_layers = nn.ModuleList(layers)
        self.attention_size = sum(layer.out_features for layer in layers) if layers else sum(depths)
        self.cell = RecurrentCell(kind, input_size + self.attention_size, size, generator)
        self.state_size = self.cell.state_size + self.attention_size
        self.output_attention = output_attention and bool(depths)
        self.output_size = self.attention_size if self.output_attention else size

    def initial_state(self, batch_size: int) -> Float[Tensor, " B S"]:
        """Return the state before the first step, all 0."""
        return self.cell.weight_state.new_zeros(batch_size, self.state_size)

    def project(self, x: Float[Tensor, "*batch X"]) -> Float[Tensor, "*batch P"]:
        """Return what x gives to a step; of any number of steps at once."""
        return self.cell.project(x)

    def step(
        self,
        projected: Float[Tensor, " B P"],
        state: Float[Tensor, " B S"],
        memories: Sequence[Memory],
    ) -> tuple[Float[Tensor, " B out"], Float[Tensor, " B S"]]:
        """Return output and next state, of an input that `project` has seen to."""
        _check_one_each("memories", len(memories), len(self._mechanisms))
        if not self._mechanisms:
            state = self.cell(projected, state)
            return state[:, : self.cell.size], state
        split = self.cell.state_size
        projected = projected + self.cell.project_rest(state[:, split:])
        cell_state = self.cell(projected, state[:, :split])
        hidden = cell_state[:, : self.cell.size]
        attentions = []
        for index, pair in enumerate(zip(self._mechanisms, memories, strict=True)):
            mechanism, memory = pair
            attention, _ = look_up(mechanism, hidden, memory)
            if len(self.attention_layers):
                layer = self.attention_layers[index]
                attention = layer(torch.cat([hidden, attention], -1))
            attentions.append(attention)
        attention = torch.cat(attentions, -1) if len(attentions) > 1 else attentions[0]
        output = attention if self.output_attention else hidden
        return output, torch.cat([cell_state, attention], -1)

    def forward(
        self, x: Float[Tensor, " B X"], state: Float[Tensor, " B S"], memories: Sequence[Memory]
    ) -> tuple[Float[Tensor, " B out"], Float[Tensor, " B S"]]:
        """Return output and next state."""
        return self.step(self.project(x), state, memories)


def _check_one_each(name: str, given: int, mechanisms: int) -> None:
    if given != mechanisms:
        raise ValueError(f"{name} has {given} entries for {mechanisms} mechanisms: give one each")


def _layer(out_features: int, in_features: int, generator: torch.Generator) -> nn.Linear:
    with torch.random.fork_rng(devices=()):  # its own draws are replaced
        layer = nn.Linear(in_features, out_features, bias=False)
    layer.weight = orthogonal_weight(out_features, in_features, generator)
    return layer


class MultiHeadSelfAttention(nn.Module):
    """Each entity of a set looks at all that exist: scaled dot products, several heads.

    A permutation of the entities permutes the output. The rows of padding are 0.

    Reference: Vaswani et al. 2017, arXiv:1706.03762.

    Args:
        size: D, of an entity before and after.
        num_heads: that D is divided among.
        generator: of the initial weights (CPU).

    Raises:
        ValueError: if D is no multiple of `num_heads`, or there are none.
    """

    def __init__(self, size: int, num_heads: int, generator: torch.Generator) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads is {num_heads}: there must be at least one")
        if size % num_heads:
            raise ValueError(f"size is {size}: it must be a multiple of num_heads = {num_heads}")
        self.num_heads = num_heads
        rows = [orthogonal_weight(size, size, generator).data for _ in range(3)]
        self.weight_in = nn.Parameter(torch.cat(rows))  # of queries, keys and values
        self.weight_out = orthogonal_weight(size, size, generator)
        self.bias_in = nn.Parameter(torch.zeros(3 * size))
        self.bias_out = nn.Parameter(torch.zeros(size))

    def forward(
        self, x: Float[Tensor, " B T D"], mask: Bool[Tensor, " B T"]
    ) -> Float[Tensor, " B T D"]:
        """Return what every entity saw."""
        projected = linear(only_existing(x, mask), self.weight_in, self.bias_in)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, T, D / heads]
            for part in projected.chunk(3, -1)
        )
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        seen = mask[:, None, None, :].expand(scores.shape)
        weights = attention_weights(scores, seen, "zero")
        heads = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return only_existing(linear(heads, self.weight_out, self.bias_out), mask)
