"""Discrete steps whose gradient goes straight through: rounding, the sign, fake quantisation.

The derivative of each is 0 almost everywhere; in its place that of a smooth stand-in is used.

Reference: Bengio et al. 2013, arXiv:1308.3432 (the straight-through estimator); Jacob et al. 2018,
arXiv:1712.05877, section 3 (fake quantisation).

Dimension key: `*shape` any; its last axis is `channels` where each has a range of its own.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

BITS = range(2, 17)  # that a number may have


class Grid(NamedTuple):
    """Equally spaced numbers, 0 among them: the multiples of `scale` from `low` to `high`.

    Each is a tensor in float32, of shape [] or [channels].
    """

    low: Tensor
    high: Tensor
    scale: Tensor


def round_straight_through(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x rounded, halves to the even neighbour; the gradient is that of x."""
    return _Round.apply(x)


def sign_straight_through(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return 1 where x >= 0 and -1 elsewhere; the gradient passes where |x| <= 1, else it is 0.

    That of the hard tanh (Hubara et al. 2016, arXiv:1602.02830, eq. 4). NaN stays NaN.
    """
    return _Sign.apply(x)


def fake_quant(
    x: Float[Tensor, "*shape"],
    min: Float[Tensor, "*channels"],
    max: Float[Tensor, "*channels"],
    num_bits: int = 8,
    narrow_range: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return the nearest number of a grid of 2^num_bits from about `min` to about `max`; ties up.

    See `grid_of`, which moves the range so that 0 is on the grid. Beyond it x is clipped. With
    lo and hi the range as moved, and g the gradient by what is returned,

        dx = g [lo <= x <= hi]     dmin = Σ g [x < lo]     dmax = Σ g [x > hi]

    as if the range had not been moved: values and gradients of TensorFlow's
    `fake_quant_with_min_max_vars` and its `per_channel` form. NaN stays NaN and has no gradient.

    Args:
        x: of any shape.
        min: the lower end, of everything [] or of each channel [channels], the last axis of x.
        max: the upper end, of the same shape. Where min = max = 0, the result is 0 and dx = g.
        num_bits: 2 to 16.
        narrow_range: leave out the lowest number, so that -m..m has its middle at 0.

    Raises:
        ValueError: if the bits or the ranges are none, or a range is not finite.
    """
    if num_bits not in BITS:
        raise ValueError(f"num_bits is {num_bits}: it must be 2 to 16")
    if min.shape != max.shape or (min.ndim and min.shape != x.shape[-1:]):
        raise ValueError(
            f"min is {tuple(min.shape)} and max {tuple(max.shape)}: both must be [], or the "
            f"last axis of x {tuple(x.shape)}"
        )
    if not bool((max.float() - min.float()).isfinite().all()):
        raise ValueError("a range has an end that is not finite, or is too wide for float32")
    if bool((min > max).any()):
        raise ValueError("a range has min > max; exchange them")
    if bool(((min == max) & (min != 0)).any()):
        raise ValueError("a range has min = max, which leaves one number only; let it contain 0")
    return _FakeQuant.apply(x, min, max, num_bits, narrow_range)


@torch.no_grad()
def grid_of(min: Tensor, max: Tensor, num_bits: int, narrow_range: bool = False) -> Grid:
    """Return the grid of a range, moved by at most half a step so that 0 is on it.

    With q the whole numbers from 0 (1 if narrow) to 2^num_bits - 1, and rounding half up,

        scale = (max - min) / (q_max - q_min)
        z = clip(round(q_min - min / scale), q_min, q_max)
        low = (q_min - z) scale                    high = (q_max - z) scale

    all of it in float32, as TensorFlow does. Of min = max = 0 it is NaN.
    """
    low, high = min.float(), max.float()
    q_min, q_max = float(narrow_range), 2.0**num_bits - 1
    scale = (high - low) / (q_max - q_min)
    zero = q_min - low / scale
    whole = zero.floor()
    # not floor(zero + 0.5): just below a half the sum would be rounded up
    nudged = torch.where(zero - whole >= 0.5, whole + 1, whole)
    nudged = torch.where(zero < q_min, q_min, torch.where(zero > q_max, q_max, nudged))
    return Grid((q_min - nudged) * scale, (q_max - nudged) * scale, scale)


def steps_on_grid(x: Tensor, grid: Grid) -> Tensor:
    """Return by how many steps of the grid the number nearest to x is away from 0; ties up."""
    low, high, scale = (end.to(x.dtype) for end in grid)
    zero = torch.floor(-low / scale + 0.5)
    # no product with 1 / scale, which rounds some ties down
    return torch.floor((x.clamp(low, high) - low) / scale - zero + 0.5)


class _FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, min: Tensor, max: Tensor, num_bits: int, narrow_range: bool
    ) -> Tensor:
        grid = grid_of(min, max, num_bits, narrow_range)
        y = steps_on_grid(x, grid) * grid.scale.to(x.dtype)
        is_nothing = (min == 0) & (max == 0)
        everywhere = torch.full_like(grid.low, torch.inf)
        low = torch.where(is_nothing, -everywhere, grid.low)
        high = torch.where(is_nothing, everywhere, grid.high)
        ctx.save_for_backward(x, low, high)
        ctx.dtypes = min.dtype, max.dtype
        return torch.where(is_nothing, torch.zeros_like(x), y)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, low, high = ctx.saved_tensors
        below, above = x < low, x > high
        zero = torch.zeros_like(grad)
        axes = tuple(range(x.ndim - low.ndim))
        ends: list[Tensor | None] = [None, None]
        for end, (beyond, dtype) in enumerate(zip((below, above), ctx.dtypes, strict=True)):
            if ctx.needs_input_grad[1 + end]:
                of_end = torch.where(beyond, grad, zero)
                ends[end] = (of_end.sum(axes) if axes else of_end).to(dtype)
        inside = (x >= low) & (x <= high)  # false of NaN
        return torch.where(inside, grad, zero), *ends, None, None


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        one = torch.ones_like(x)
        return torch.where(x.isnan(), x, torch.where(x >= 0, one, -one))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() <= 1, grad_outputs[0], torch.zeros_like(x))
