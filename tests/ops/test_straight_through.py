"""Straight-through steps, against formulae written out in numpy.

`in_numpy` gave what `fake_quant_with_min_max_vars` of TensorFlow 2.21 gives on the CPU, to the last
bit, values and gradients, for all of RANGES and the numbers below.
"""

import numpy as np
import pytest
import torch

from rlmask.ops import fake_quant, round_straight_through, sign_straight_through

F = np.float32
# min, max, bits, narrow
RANGES = [
    (-1.0, 1.0, 8, False),
    (-1.0, 1.0, 8, True),
    (0.0, 6.0, 2, False),
    (0.0, 6.0, 2, True),
    (-6.0, 6.0, 8, False),
    (-6.0, 6.0, 8, True),
    (-0.1, 63.65, 8, False),
    (-0.1, 0.1, 2, False),
    (-6.0, 0.0, 4, False),
    (-0.4, 1.1, 2, False),
    (-0.4, 1.1, 2, True),
    (-3.7, 2.9, 3, False),
    (-3.7, 2.9, 16, False),
    (-1e-3, 2e-3, 6, True),
    (0.7, 2.5, 5, False),
    (-5.1, -0.3, 7, False),
    (-2.0, 1.9999, 12, True),
    (-0.013, 4.1, 4, False),
    (-4.0, 0.013, 4, True),
    (-100.0, 250.0, 10, False),
]


def nudged(low, high, bits, narrow):
    """Lower end, upper end and step as TensorFlow computes them, in float32."""
    q_min, q_max = F(narrow), F(2**bits - 1)
    scale = (F(high) - F(low)) / (q_max - q_min)
    zero = q_min - F(low) / scale
    away = np.sign(zero) * np.floor(np.abs(np.float64(zero)) + 0.5)  # std::round
    zero = q_min if zero < q_min else q_max if zero > q_max else F(away)
    return (q_min - zero) * scale, (q_max - zero) * scale, scale


def in_numpy(x, grad, low, high, bits, narrow):
    lo, hi, scale = nudged(low, high, bits, narrow)
    zero = np.floor(-lo / scale + F(0.5))
    y = np.floor((np.minimum(np.maximum(x, lo), hi) - lo) / scale - zero + F(0.5)) * scale
    within = (x >= lo) & (x <= hi)
    return y, np.where(within, grad, 0), grad[x < lo].sum(), grad[x > hi].sum()


def with_gradients(x, low, high, bits, narrow=False, grad=None):
    x, low, high = (
        torch.as_tensor(one, dtype=torch.float32).detach().clone().requires_grad_()
        for one in (x, low, high)
    )
    y = fake_quant(x, low, high, bits, narrow)
    y.backward(torch.ones_like(y) if grad is None else torch.as_tensor(grad))
    return y.detach(), x.grad, low.grad, high.grad


@pytest.mark.parametrize("bounds", RANGES)
def test_it_is_bit_for_bit_what_the_formulae_say(bounds):
    low, high, bits, narrow = bounds
    rng = np.random.default_rng(0)
    middle, half = (low + high) / 2, (high - low) / 2
    x = (middle + 1.3 * half * rng.standard_normal(100_000)).astype(F)
    lo, hi, scale = nudged(low, high, bits, narrow)
    x[:3] = lo, hi, low
    x[3:93] = (np.arange(-40, 50) * F(0.5)).astype(F) * scale  # every second a tie
    grad = rng.integers(-8, 9, len(x)).astype(F) / 8  # whose sums are exact in any order
    y, *gradients = with_gradients(x, low, high, bits, narrow, grad)
    expected = in_numpy(x, grad, low, high, bits, narrow)
    for found, wanted in zip((y, *gradients), expected, strict=True):
        assert (found.numpy() == wanted).all()
    assert len(np.unique(y.numpy())) <= 2**bits - narrow
    again, *_ = with_gradients(y, low, high, bits, narrow)
    assert torch.equal(again, y)
    assert with_gradients([0.0], low, high, bits, narrow)[0].item() == 0


def test_a_range_that_is_not_on_the_grid_is_moved():
    """T4 of the notes: [-0.4, 1.1] at 2 bits is -0.5, 0, 0.5, 1."""
    x = [-2, -0.5, -0.4, -0.25, 0, 0.3, 0.75, 1, 1.1, 9]
    y, dx, dmin, dmax = with_gradients(x, -0.4, 1.1, 2)
    assert y.tolist() == [-0.5, -0.5, -0.5, 0, 0, 0.5, 1, 1, 1, 1]
    assert dx.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert (dmin.item(), dmax.item()) == (1, 2)


def grid(low, high, bits, narrow=False):
    """Every number of the grid of a range."""
    span = high - low
    x = torch.linspace(low - span, high + span, 40_001)
    return fake_quant(x, torch.tensor(low), torch.tensor(high), bits, narrow).unique()


@pytest.mark.parametrize(
    "bounds, lowest, highest, count",
    [
        ((-0.4, 1.1, 2, True), -0.75, 0.75, 3),
        ((0.0, 6.0, 2, False), 0.0, 6.0, 4),
        ((0.0, 6.0, 2, True), 0.0, 6.0, 3),
        ((-6.0, 6.0, 8, False), -6.0235, 5.9765, 256),
        ((-6.0, 6.0, 8, True), -6.0, 6.0, 255),
        ((-0.1, 63.65, 8, False), 0.0, 63.75, 256),
        ((-0.1, 0.1, 2, False), -0.1333, 0.0667, 4),
        ((-6.0, 0.0, 4, False), -6.0, 0.0, 16),
        ((1.0, 3.0, 3, False), 0.0, 2.0, 8),
        ((-3.0, -1.0, 3, False), -2.0, 0.0, 8),
    ],
)
def test_the_grid_of_a_range(bounds, lowest, highest, count):
    found = grid(*bounds)
    assert len(found) == count
    torch.testing.assert_close(found[[0, -1]], torch.tensor([lowest, highest]), atol=5e-5, rtol=0)
    assert 0 in found.tolist()
    gaps = found.diff()
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "bounds, x, expected",
    [
        ((0.0, 6.0, 2, False), [0.98, 1.0, 5.0], [0, 2, 6]),
        ((0.0, 6.0, 2, True), [1.47, 1.5], [0, 3]),
        ((-6.0, 0.0, 4, False), [-5.8, -0.2], [-5.6, 0]),
    ],
)
def test_ties_go_up(bounds, x, expected):
    found = with_gradients(x, *bounds)[0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_a_symmetric_narrow_range_of_8_bits_has_this_step():
    steps = grid(-6.0, 6.0, 8, True).diff()
    torch.testing.assert_close(steps.mean(), torch.tensor(0.04724409))


def test_each_channel_has_its_range():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, 3, generator=generator)
    low, high = torch.tensor([-1.0, -0.5, 0.0]), torch.tensor([1.0, 2.0, 0.5])
    grad = torch.randint(-8, 9, x.shape, generator=generator).float()
    y, dx, dmin, dmax = with_gradients(x, low, high, 4, grad=grad)
    for channel in range(3):
        own = x[..., channel], low[channel], high[channel], 4, False, grad[..., channel]
        wanted = with_gradients(*own)
        for found, one in zip((y, dx), wanted[:2], strict=True):
            assert torch.equal(found[..., channel], one)
        assert (dmin[channel], dmax[channel]) == (wanted[2], wanted[3])


def test_a_channel_without_a_range_is_zero_and_lets_the_gradient_through():
    x = [[-3.0, 0.4], [2.0, 9.0]]
    y, dx, dmin, dmax = with_gradients(x, [0.0, -1.0], [0.0, 1.0], 8)
    assert y[:, 0].tolist() == [0, 0] and dx[:, 0].tolist() == [1, 1]
    assert dx[:, 1].tolist() == [1, 0] and dmax.tolist() == [0, 1] and dmin.tolist() == [0, 0]
    assert y[:, 1].isfinite().all()


def test_what_is_not_finite():
    y, dx, dmin, dmax = with_gradients([np.nan, np.inf, -np.inf], -6.0, 6.0, 8, True)
    assert y.isnan().tolist() == [True, False, False]
    torch.testing.assert_close(y[1:], torch.tensor([6.0, -6.0]))
    assert dx.tolist() == [0, 0, 0]
    assert (dmin.item(), dmax.item()) == (1, 1)


@pytest.mark.parametrize(
    "low, high, bits, said",
    [
        (-1.0, 1.0, 1, "2 to 16"),
        (-1.0, 1.0, 17, "2 to 16"),
        (1.0, -1.0, 8, "exchange"),
        (2.0, 2.0, 8, "one number"),
        (-np.inf, 1.0, 8, "not finite"),
        (-1.0, np.inf, 8, "not finite"),
        (np.nan, 1.0, 8, "not finite"),
        (-1.0, np.nan, 8, "not finite"),
        ([0.0, 0.0, 0.0], [1.0, np.inf, 1.0], 8, "not finite"),
        (-3e38, 3e38, 8, "too wide"),
        ([-1.0, 0.0], [1.0, 2.0], 8, "last axis"),
    ],
)
def test_no_such_range(low, high, bits, said):
    with pytest.raises(ValueError, match=said):
        fake_quant(torch.zeros(4, 3), torch.tensor(low), torch.tensor(high), bits)


def test_rounding_lets_the_gradient_through():
    x = torch.tensor([-1.5, -0.5, 0.4, 0.5, 1.5, 2.5], requires_grad=True)
    y = round_straight_through(x)
    assert y.tolist() == [-2, 0, 0, 0, 2, 2]
    (y * torch.arange(6)).sum().backward()
    assert x.grad.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_sign_lets_the_gradient_through_near_zero():
    x = torch.tensor([-2.0, -1.0, -0.1, 0.0, 0.5, 1.0, 1.1, torch.nan], requires_grad=True)
    y = sign_straight_through(x)
    assert y[:7].tolist() == [-1, -1, -1, 1, 1, 1, 1] and y[7].isnan()
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
