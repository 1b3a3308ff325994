"""The parameters of a network as one vector, and Adam over it."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn


def flatten_weights(network: nn.Module) -> Float[Tensor, " W"]:
    """Make the parameters of a network views of one vector, and return it."""
    parameters = list(network.parameters())
    weights = torch.cat([p.detach().flatten() for p in parameters])
    for parameter, weight in zip(
        parameters, weights.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.data = weight.view_as(parameter)
    return weights


class FlatAdam:
    """PyTorch's fused Adam, with one tensor to step and one gradient to clip, not a dozen of each.

    The parameters of the network become views of one vector, and each one's `grad` of another; make
    it when the network is on its device. Learning rate and clipping are arguments of each step.

    Reference: Kingma & Ba 2015, arXiv:1412.6980.

    Args:
        epsilon: added to the square root of the second moment.
    """

    def __init__(
        self,
        network: nn.Module,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-5,
    ) -> None:
        self.weights = flatten_weights(network)
        self.gradient = torch.zeros_like(self.weights)
        parameters = list(network.parameters())
        gradients = self.gradient.split([p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self._moment1 = torch.zeros_like(self.weights)
        self._moment2 = torch.zeros_like(self.weights)
        self._num_steps = torch.zeros((), device=self.weights.device)

    def step(self, learning_rate: float, max_norm: float = math.inf) -> float:
        """Clip the gradient of all parameters together to a norm, step against it.

        Returns:
            The norm before clipping.

        Raises:
            FloatingPointError: if it is not finite; the weights are then as before.
        """
        norm = float(torch.linalg.vector_norm(self.gradient))
        if not math.isfinite(norm):
            raise FloatingPointError(
                "the gradient is not finite. Look for huge rewards or observations, or lower "
                "learning_rate"
            )
        if norm > max_norm:
            self.gradient.mul_(max_norm / norm)
        self._num_steps += 1
        # what `torch.optim.Adam(fused=True)` calls, without an optimizer's bookkeeping around it
        torch.ops.aten._fused_adam_.default(
            [self.weights],
            [self.gradient],
            [self._moment1],
            [self._moment2],
            [],
            [self._num_steps],
            lr=learning_rate,
            beta1=self._beta1,
            beta2=self._beta2,
            weight_decay=0.0,
            eps=self._epsilon,
            amsgrad=False,
            maximize=False,
        )
        return norm

    def check_weights(self) -> None:
        """Raise `FloatingPointError` if a weight is not finite any more."""
        if not self.weights.isfinite().all():
            raise FloatingPointError("the weights are not finite any more; lower learning_rate")

    def capture(self) -> dict[str, Tensor]:
        """Return the moments and the number of steps; the weights are the network's."""
        return {"step": self._num_steps, "exp_avg": self._moment1, "exp_avg_sq": self._moment2}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a captured state."""
        for name, own in self.capture().items():
            own.copy_(state[name])
