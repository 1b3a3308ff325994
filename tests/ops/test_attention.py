"""T5 of the reference vectors, and what padding must never do."""

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rlmask import ops

CONTENTS = [0.0, 1e30, float("inf"), float("-inf"), float("nan")]


def test_the_mask_comes_before_the_softmax():
    scores = torch.tensor([[0.0, 1.0, 200.0]], dtype=torch.float16)
    weights = ops.attention_weights(scores, ops.length_mask(torch.tensor([2]), 3))
    # 1 / (1 + e), e / (1 + e); all of the mass would be at 200 before a renormalisation
    torch.testing.assert_close(weights, torch.tensor([[0.26894142, 0.73105858, 0.0]]))
    assert weights[0, 2] == 0


def test_weights_and_context_of_the_reference_vector():
    scores = torch.tensor([1, 1, 4.5], dtype=torch.float64)
    values = torch.tensor([[1, 0], [0, 2], [3, 3]], dtype=torch.float64)
    mask = torch.tensor([True, True, False])
    weights = ops.attention_weights(scores, mask)
    assert weights.tolist() == [0.5, 0.5, 0]
    assert ops.attend(weights, values, mask).tolist() == [0.5, 1]
    # the share of the softmax over all places that would be left without renormalising
    assert float(scores.softmax(0)[:2].sum()) == pytest.approx(0.05695498, abs=1e-8)


def attended(content, extra, lengths=(1, 3, 4), time=4, dim=3):
    """Return context, pool and the gradients of scores and values, with padding of a content."""
    generator = torch.Generator().manual_seed(0)
    mask = ops.length_mask(torch.tensor(lengths), time + extra)
    scores, values = torch.full(mask.shape, content), torch.full((*mask.shape, dim), content)
    scores[mask] = torch.randn(int(mask.sum()), generator=generator)
    values[mask] = torch.randn((int(mask.sum()), dim), generator=generator)
    scores.requires_grad_()
    values.requires_grad_()
    context = ops.attend(ops.attention_weights(scores, mask), values, mask)
    pool = ops.masked_mean_pool(values, mask)
    weight = torch.arange(1.0, 1 + dim)
    gradients = torch.autograd.grad((context * weight).sum() + (pool**2).sum(), [scores, values])
    assert all(not g[~mask].any() for g in gradients)  # NaN would count as true
    return [context.detach(), pool.detach(), *(g[mask] for g in gradients)]


@pytest.mark.parametrize(("content", "extra"), [*itertools.product(CONTENTS, [0, 1, 5, 60])])
def test_the_content_of_padding_changes_no_bit(content, extra):
    assert all(map(torch.equal, attended(content, extra), attended(0.0, extra)))


@pytest.mark.parametrize("time", [*range(1, 16), 200])
def test_more_padding_changes_rounding_at_most(time):
    """The order of a sum may depend on its length."""
    lengths = (1, (time + 1) // 2, time)
    plain = attended(0.0, 0, lengths, time)
    for extra in (1, 2, 5, 11, 60, 1000):
        padded = attended(float("nan"), extra, lengths, time)
        for ours, expected in zip(padded, plain, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_full_memories_are_plain_attention():
    query, keys, values = torch.randn(2, 1, 5), torch.randn(2, 7, 5), torch.randn(2, 7, 3)
    scores = (keys @ query.mT).squeeze(-1) / 5**0.5
    mask = torch.ones(2, 7, dtype=torch.bool)
    context = ops.attend(ops.attention_weights(scores, mask), values, mask)
    expected = scaled_dot_product_attention(query, keys, values).squeeze(1)
    torch.testing.assert_close(context, expected)
    torch.testing.assert_close(ops.masked_mean_pool(values, mask), values.mean(1))


def test_the_scores_of_a_row_may_be_shifted():
    scores, mask = torch.randn(3, 6, dtype=torch.float64), ops.length_mask(torch.arange(1, 4), 6)
    shifted = ops.attention_weights(scores + torch.tensor([[50.0], [-50.0], [0.0]]), mask)
    torch.testing.assert_close(ops.attention_weights(scores, mask), shifted)


def test_the_pool_does_not_know_an_order():
    x, mask = torch.randn(2, 6, 3, dtype=torch.float64), ops.length_mask(torch.tensor([4, 6]), 6)
    order = torch.randperm(6)
    pooled = ops.masked_mean_pool(x[:, order], mask[:, order])
    torch.testing.assert_close(pooled, ops.masked_mean_pool(x, mask))
    torch.testing.assert_close(pooled[0], x[0, :4].mean(0))


@pytest.mark.parametrize("weigh", [ops.attention_weights, ops.hard_attention_weights])
@pytest.mark.parametrize("debug", [False, True])
def test_an_empty_memory_is_an_error_or_nothing(weigh, debug):
    mask = torch.tensor([[True, False], [False, False]])
    scores = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]], requires_grad=True)
    values = torch.full((2, 2, 3), float("nan"))
    values[0, 0] = 1.0
    with ops.debugging(debug):
        with pytest.raises(ops.EmptyMaskError, match=r"memory \[1\].*empty=\"zero\""):
            weigh(scores, mask)
        with pytest.raises(ops.EmptyMaskError, match="memory"):
            ops.masked_mean_pool(values, mask)
        weights = weigh(scores, mask, "zero")
    assert weights.tolist() == [[1, 0], [0, 0]]
    assert ops.attend(weights, values, mask).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert ops.masked_mean_pool(values, mask, "zero").tolist() == [[1, 1, 1], [0, 0, 0]]
    if weigh is ops.attention_weights:
        (gradient,) = torch.autograd.grad((weights * torch.randn(2, 2)).sum(), scores)
        assert not gradient.any()


@pytest.mark.usefixtures("types_are_not_checked")
def test_what_empty_may_be():
    mask = torch.tensor([[True, True], [False, False]])
    for use in (ops.attention_weights, ops.hard_attention_weights):
        with pytest.raises(ValueError, match="empty is 'eror'; choose one of error, zero"):
            use(torch.randn(2, 2), mask, "eror")
    with pytest.raises(ValueError, match="empty is 'eror'"):
        ops.masked_mean_pool(torch.randn(2, 2, 3), mask, "eror")


def test_hard_weights_are_one_at_the_best_place_there_is():
    scores = torch.tensor([[1.0, 5.0, 9.0], [2.0, 2.0, float("nan")]])
    weights = ops.hard_attention_weights(scores, ops.length_mask(torch.tensor([2, 2]), 3))
    assert weights.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("empty", ["error", "zero"])
def test_weights_are_of_one_dtype(dtype, empty):
    scores, mask = torch.randn(2, 3, dtype=dtype), torch.ones(2, 3, dtype=torch.bool)
    for weigh in (ops.attention_weights, ops.hard_attention_weights):
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert weigh(scores, mask, empty).dtype == expected


def test_lengths_that_there_are_no_places_for():
    assert ops.length_mask(torch.tensor([0, 2]), 2).tolist() == [[False, False], [True, True]]
    for length in (-1, 3):
        with pytest.raises(ValueError, match=r"0\.\.2"):
            ops.length_mask(torch.tensor([length]), 2)
