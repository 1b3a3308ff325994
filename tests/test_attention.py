"""The mechanisms and the cell against T5 of the reference vectors; sets against PyTorch's."""

import math

import pytest
import torch
from torch import nn

from rlmask import ops
from rlmask.attention import (
    AttentionCell,
    BahdanauAttention,
    LuongAttention,
    MultiHeadSelfAttention,
    memorize,
)
from rlmask.recurrent import RecurrentCell

CONTENTS = [1e30, float("inf"), float("nan")]
QUERY = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
VALUES = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mechanism(cls, **settings):
    """Return a mechanism with identity layers, and v = [1, -1]."""
    made = cls(2, 2, 2, generator=generator(), **settings).double()
    made.memory_weight.data = torch.eye(2, dtype=torch.float64)
    if cls is BahdanauAttention:
        made.query_weight.data = torch.eye(2, dtype=torch.float64)
        made.direction.data = torch.tensor([1.0, -1.0], dtype=torch.float64)
    return made


def scores_of(made):
    return made.scores(QUERY, made.keys(VALUES))


def test_luong():
    made = mechanism(LuongAttention)
    close([1, 1, 4.5], scores_of(made)[0])
    context, weights = made(QUERY, memorize(made, VALUES, MASK))
    close([0.5, 0.5, 0], weights[0])
    close([0.5, 1], context[0])
    scaled = mechanism(LuongAttention, scale=True)
    assert scaled.scale == 1
    scaled.scale.data.fill_(2.0)
    close([2, 2, 9], scores_of(scaled)[0])


def test_bahdanau():
    made = mechanism(BahdanauAttention)
    close([0.50191042, -0.22502014], scores_of(made)[0, :2])
    context, weights = made(QUERY, memorize(made, VALUES, MASK))
    close([0.67413135, 0.32586865, 0], weights[0])
    close([0.67413135, 0.65173731], context[0])
    normalized = mechanism(BahdanauAttention, normalized=True)
    close(math.sqrt(0.5), normalized.scale)
    close(scores_of(made) / 2, scores_of(normalized))  # ‖v‖ = √2, g = √½
    normalized.bias.data = torch.tensor([0.3, -0.2], dtype=torch.float64)
    first = math.sqrt(0.5) / math.sqrt(2) * (math.tanh(1 + 1 + 0.3) - math.tanh(0.5 - 0.2))
    close(first, scores_of(normalized)[0, 0])


def close(expected, actual):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=1e-6)


def test_luong_has_no_layer_for_the_query():
    with pytest.raises(ValueError, match="units is 4, but the query has 3"):
        LuongAttention(4, 5, 3, generator=generator())


def test_hardmax_takes_one_place():
    made = mechanism(BahdanauAttention, probability_fn="hardmax")
    context, weights = made(QUERY, memorize(made, VALUES, MASK))
    assert weights.tolist() == [[1, 0, 0]] and context.tolist() == [[1, 0]]


def test_an_empty_memory_is_the_callers_choice():
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    made = mechanism(LuongAttention)
    with pytest.raises(ops.EmptyMaskError):
        made(QUERY, memorize(made, VALUES, nothing))
    made = mechanism(LuongAttention, empty="zero")
    context, _ = made(QUERY, memorize(made, VALUES, nothing))
    assert context.tolist() == [[0, 0]]


@pytest.mark.usefixtures("types_are_not_checked")
@pytest.mark.parametrize("cls", [LuongAttention, BahdanauAttention])
def test_names_that_there_are_not(cls):
    with pytest.raises(ValueError, match="probability_fn is 'sparsemax'; choose one of softmax, h"):
        mechanism(cls, probability_fn="sparsemax")
    with pytest.raises(ValueError, match="empty is 'eror'; choose one of error, zero"):
        mechanism(cls, empty="eror")


class TestCell:
    def attention_of(self, output=True, **settings):
        """Return the cell after a step, and [h'; c] of what T5 asks for h' = q."""
        cell = AttentionCell(
            "gru", 2, 2, [mechanism(LuongAttention)], output_attention=output,
            generator=generator(), **settings,
        ).double()  # fmt: skip
        cell.cell.forward = lambda projected, state: QUERY
        memory = memorize(cell.mechanisms[0], VALUES, MASK)
        return cell, cell(torch.zeros_like(QUERY), cell.initial_state(1), [memory])

    def test_of_the_reference_vector(self):
        rows = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]]
        layer = nn.Linear(4, 3, bias=False).double()
        layer.weight.data = torch.tensor(rows, dtype=torch.float64)
        _, (output, state) = self.attention_of(attention_layers=[layer])
        close([1.5, 1.5, 3], output[0])
        close([1, 0.5, 1.5, 1.5, 3], state[0])
        _, (output, state) = self.attention_of()
        close([0.5, 1], output[0])
        cell, (output, state) = self.attention_of(output=False, attention_layer_size=3)
        close([1, 0.5], output[0])
        assert cell.attention_layers[0].bias is None and cell.output_size == 2
        assert state.shape == (1, 5)  # fed back either way

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"attention_layer_size": [3]}, "1 entries for 2 mechanisms"),
            ({"attention_layer_size": 3}, "1 entries for 2 mechanisms"),
            ({"attention_layers": [nn.Linear(4, 3)]}, "1 entries for 2 mechanisms"),
            ({"attention_layers": [], "attention_layer_size": [3, 3]}, "not both"),
        ],
    )
    def test_lists_that_do_not_fit(self, settings, said):
        both = [mechanism(LuongAttention), mechanism(BahdanauAttention)]
        with pytest.raises(ValueError, match=said):
            AttentionCell("gru", 2, 2, both, generator=generator(), **settings)

    @pytest.mark.parametrize("kind", ["gru", "lstm"])
    @pytest.mark.parametrize("sizes", [None, (3, 4)])
    def test_two_mechanisms_step_by_step(self, kind, sizes):
        """The definition, from the cell on [x; a] as PyTorch has it."""
        both = [
            LuongAttention(6, 2, 6, generator=generator()),
            BahdanauAttention(5, 3, 6, generator=generator()),
        ]
        cell = AttentionCell(kind, 4, 6, both, attention_layer_size=sizes, generator=generator())
        theirs = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[kind](4 + cell.attention_size, 6)
        for own, other in zip(
            ["weight_input", "weight_state", "bias_input", "bias_state"],
            theirs.parameters(),
            strict=True,
        ):
            other.data = getattr(cell.cell, own).data
        values = torch.randn(2, 3, 2), torch.randn(2, 5, 3)
        masks = ops.length_mask(torch.tensor([1, 3]), 3), ops.length_mask(torch.tensor([5, 2]), 5)
        memories = [memorize(m, v, k) for m, v, k in zip(both, values, masks, strict=True)]
        state, attention, theirs_state = cell.initial_state(2), torch.zeros(2, 0), None
        attention = torch.zeros(2, cell.attention_size)
        for _ in range(3):
            x = torch.randn(2, 4)
            output, state = cell(x, state, memories)
            theirs_state = theirs(torch.cat([x, attention], -1), theirs_state)
            hidden = theirs_state if kind == "gru" else theirs_state[0]
            seen = []
            for index, made in enumerate(both):
                context, _ = made(hidden, memories[index])
                if sizes:
                    weight = cell.attention_layers[index].weight
                    context = torch.cat([hidden, context], -1) @ weight.T
                seen.append(context)
            attention = torch.cat(seen, -1)
            assert attention.shape[-1] == (sum(sizes) if sizes else 2 + 3)
            torch.testing.assert_close(output, attention)

    def test_without_mechanisms_it_is_the_cell(self):
        cell = AttentionCell("lstm", 4, 6, [], generator=generator())
        plain = RecurrentCell("lstm", 4, 6, generator())
        x, state = torch.randn(2, 4), torch.randn(2, 12)
        output, after = cell(x, state, [])
        torch.testing.assert_close(after, plain(plain.project(x), state))
        assert torch.equal(output, after[:, :6])
        made = LuongAttention(6, 2, 6, generator=generator())
        memory = memorize(made, torch.ones(2, 3, 2), torch.ones(2, 3, dtype=torch.bool))
        with pytest.raises(ValueError, match="memories has 1 entries for 0 mechanisms: give one"):
            cell(x, state, [memory])

    @pytest.mark.parametrize("cls", [LuongAttention, BahdanauAttention])
    def test_the_query_is_the_cells_output(self, cls):
        made = cls(2, 3, 2, generator=generator())
        with pytest.raises(ValueError, match="query_size is 2: set it to the cell's size, 4"):
            AttentionCell("lstm", 5, 4, [made], generator=generator())


@pytest.mark.parametrize("cls", [LuongAttention, BahdanauAttention])
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("extra", [0, 9])
def test_padding_has_no_part_in_output_and_gradients(cls, content, extra):
    def run(content, extra):
        made = cls(4, 3, 4, generator=generator())
        values = torch.full((2, 3 + extra, 3), content)
        mask = ops.length_mask(torch.tensor([1, 3]), 3 + extra)
        values[mask] = torch.randn((4, 3), generator=generator())
        values.requires_grad_()
        query = torch.randn((2, 4), generator=generator(1), requires_grad=True)
        context, _ = made(query, memorize(made, values, mask))
        wanted = [values, query, *made.parameters()]
        first, *rest = torch.autograd.grad((context**2).sum(), wanted)
        assert not first[~mask].any()
        return [context, first[mask], *rest]

    ours, clean = run(content, extra), run(0.0, 0)
    if extra == 0:
        assert all(map(torch.equal, ours, clean))
    # the products sum in another order
    for one, other in zip(ours, clean, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2), (torch.float64, 1e-6)]
)
@pytest.mark.parametrize("probability_fn", ["softmax", "hardmax"])
def test_other_dtypes(dtype, tolerance, probability_fn):
    """As in float32, up to a few roundings: 2^-11 of half precision, 2^-8 of bfloat16."""
    both = [
        cls(4, 3, 4, probability_fn=probability_fn, generator=generator())
        for cls in (LuongAttention, BahdanauAttention)
    ]
    cell = AttentionCell("gru", 2, 4, both, attention_layer_size=[3, 3], generator=generator())
    sets = MultiHeadSelfAttention(6, 2, generator())
    mask = ops.length_mask(torch.tensor([1, 3]), 4)
    values, x, entities = torch.randn(2, 4, 3), torch.randn(2, 2), torch.randn(2, 4, 6)

    def run(dtype):
        cell.to(dtype)
        memories = [memorize(made, values.to(dtype), mask) for made in both]
        output, state = cell(x.to(dtype), cell.initial_state(2).to(dtype), memories)
        return output, state, sets.to(dtype)(entities.to(dtype), mask)

    expected = run(torch.float32)
    for ours, theirs in zip(run(dtype), expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)


class TestSelfAttention:
    def attention(self, size=8, heads=2):
        made = MultiHeadSelfAttention(size, heads, generator())
        for bias in (made.bias_in, made.bias_out):
            bias.data = torch.randn(bias.shape, generator=generator(5))
        return made

    def test_it_is_torchs(self):
        made, theirs = self.attention(), nn.MultiheadAttention(8, 2, batch_first=True)
        theirs.in_proj_weight.data, theirs.in_proj_bias.data = made.weight_in, made.bias_in
        theirs.out_proj.weight.data, theirs.out_proj.bias.data = made.weight_out, made.bias_out
        x, lengths = torch.randn(3, 5, 8), torch.tensor([5, 2, 1])
        for mask in (torch.ones(3, 5, dtype=torch.bool), ops.length_mask(lengths, 5)):
            expected, _ = theirs(x, x, x, key_padding_mask=~mask)
            torch.testing.assert_close(made(x, mask)[mask], expected[mask])

    def test_a_permutation_of_the_set_is_one_of_the_output(self):
        made, x = self.attention().double(), torch.randn(2, 6, 8, dtype=torch.float64)
        mask, order = torch.rand(2, 6) < 0.6, torch.randperm(6)
        mask[:, 0] = True
        out = made(x, mask)
        torch.testing.assert_close(made(x[:, order], mask[:, order]), out[:, order])
        pooled = ops.masked_mean_pool(made(x[:, order], mask[:, order]), mask[:, order])
        torch.testing.assert_close(pooled, ops.masked_mean_pool(out, mask))

    @pytest.mark.parametrize("content", CONTENTS)
    @pytest.mark.parametrize("extra", [0, 7])
    def test_padding(self, content, extra):
        def run(content, extra):
            made = self.attention()
            mask = ops.length_mask(torch.tensor([0, 2, 4]), 4 + extra)
            x = torch.full((*mask.shape, 8), content)
            x[mask] = torch.randn((6, 8), generator=generator())
            x.requires_grad_()
            out = made(x, mask)
            assert not out[~mask].any()
            first, *rest = torch.autograd.grad((out**2).sum(), [x, *made.parameters()])
            assert not first[~mask].any()
            return [out[mask], first[mask], *rest]

        ours, clean = run(content, extra), run(0.0, 0)
        if extra == 0:
            assert all(map(torch.equal, ours, clean))
        for one, other in zip(ours, clean, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    def test_heads_divide_the_size(self):
        with pytest.raises(ValueError, match="multiple of num_heads = 3"):
            MultiHeadSelfAttention(8, 3, generator())
        for heads in (0, -2):
            with pytest.raises(
                ValueError, match=f"num_heads is {heads}: there must be at least one"
            ):
                MultiHeadSelfAttention(8, heads, generator())


def test_making_them_does_not_touch_the_global_generator():
    before = torch.get_rng_state()
    made = LuongAttention(4, 3, 4, generator=generator())
    AttentionCell("gru", 2, 4, [made], attention_layer_size=5, generator=generator())
    BahdanauAttention(4, 3, 4, generator=generator())
    MultiHeadSelfAttention(4, 2, generator())
    assert torch.equal(torch.get_rng_state(), before)
