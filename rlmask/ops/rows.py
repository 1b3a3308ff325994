"""Two kernels over rows of scores, as fast as the CPU can: filling by a mask, and the softmax.

Elsewhere (a GPU, a compiler at work, few entries) they are PyTorch's own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LANES = 16  # of a vector register, in float32
BITWISE_SIZE = 8192  # entries from which `BitwiseFill` is faster than `torch.where`
# a Python scalar would be made a tensor on every call
ZERO, MINUS_INF = torch.tensor(0.0), torch.tensor(-torch.inf)


def fill_invalid(x: Tensor, mask: Tensor, fill: Tensor) -> Tensor:
    """Return x where the mask is True and `fill` (`ZERO` or `MINUS_INF`) elsewhere."""
    if not x.is_cpu:  # where it is the tensor, not the number, that costs a copy
        return x.masked_fill(~mask, -torch.inf if fill is MINUS_INF else 0.0)
    if is_large(mask, BITWISE_SIZE) and x.dtype in (torch.float32, torch.float64):
        return BitwiseFill.apply(x, mask, fill is MINUS_INF)
    return torch.where(mask, x, fill)


def softmax_of_rows(softmax: Callable[[Tensor, int], Tensor], scores: Tensor) -> Tensor:
    """Apply `torch.softmax` or `torch.log_softmax` over the last axis.

    The CPU kernel is vectorised along a row only if the row fills a register. Shorter rows are up
    to ten times as fast side by side, as columns.
    """
    if scores.is_cpu and scores.ndim > 1 and scores.shape[-1] < LANES:
        return softmax(scores.transpose(0, -1), 0).transpose(0, -1)
    return softmax(scores, -1)


def is_large(x: Tensor, size: int) -> bool:
    """Whether the CPU works on more entries than `size`, and no compiler will see to its speed."""
    # a compiler may not know the size yet
    return not torch.compiler.is_compiling() and x.numel() > size and x.is_cpu


class BitwiseFill(torch.autograd.Function):
    """`torch.where(mask, x, fill)` with fill 0 or -inf: ((x ^ fill) & keep) ^ fill on the bits.

    `keep` is all ones where valid and 0 elsewhere. The CPU kernel of `where` takes a branch an
    entry, which a random mask makes 3 to 4 ns; these operations are vectorised. As they look at no
    value, a NaN where the mask is False is gone too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor, minus_inf: bool) -> Tensor:
        """Return x with invalid entries filled; float32 or float64."""
        integer, inf_bits = (
            (torch.int64, -(2**52)) if x.dtype == torch.float64 else (torch.int32, -(2**23))
        )
        fill = inf_bits if minus_inf else 0
        keep = mask.view(torch.int8).neg().to(integer)
        return ((x.view(integer) ^ fill) & keep).bitwise_xor_(fill).view(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the mask."""
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Pass the tangent on where valid."""
        return torch.where(ctx.saved_tensors[0], tangents[0], ZERO)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Pass the gradient on where valid."""
        # not bitwise: a batched gradient has no such view
        return torch.where(ctx.saved_tensors[0], grad_outputs[0], ZERO), None, None
