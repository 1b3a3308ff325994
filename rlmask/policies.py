"""Policies of networks: observation and mask in, a valid action out.

Of a network with parts of its own for each game, rows come in turn: row i is of game i modulo G.

Dimension key: `B` batch, `A` union actions.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.networks import ActorCritic, QNetwork
from rlmask.ops import masked_argmax, masked_epsilon_greedy, masked_inverse_cdf, split_parts
from rlmask.quantize import QuantizedNetwork
from rlmask.types import Policy


def actor_policy(
    network: ActorCritic | ActorMimicNetwork | QuantizedNetwork,
    *,
    greedy: bool,
    generator: torch.Generator | None = None,
) -> Policy:
    """Return a policy that takes the best valid action, or draws from the softmax over them.

    Observations and masks may be on any device; actions come back on the same.

    Raises:
        TypeError: in the policy, if observations are of another kind of number.
    """
    nvec, dtype = network.action_spec.nvec, network.obs_spec.torch_dtype
    device = next(network.parameters()).device

    @torch.inference_mode()
    def policy(obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B *parts"]:
        logits = split_parts(network(as_known(obs, dtype).to(device))[0], nvec)
        mask = split_parts(action_mask.to(device), nvec)
        if greedy:
            action = masked_argmax(logits, mask)
        else:  # drawn on the CPU, where the generator is
            uniform = torch.rand(mask.shape[:-1], generator=generator).to(device)
            action, _ = masked_inverse_cdf(logits, mask, uniform)
        return action.to(obs.device)

    return policy


def q_policy(
    network: QNetwork, *, epsilon: float = 0.0, generator: torch.Generator | None = None
) -> Policy:
    """Return a policy that takes the valid action of the highest value.

    Observations and masks may be on any device; actions come back on the same.

    Args:
        epsilon: with this probability a uniformly drawn valid action instead.
        generator: of the draws (CPU).

    Raises:
        TypeError: in the policy, if observations are of another kind of number.
    """
    dtype, device = network.obs_spec.torch_dtype, next(network.parameters()).device

    @torch.inference_mode()
    def policy(obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B"]:
        seen, mask = as_known(obs, dtype).to(device), action_mask.to(device)
        values = network.values(seen, mask)
        if epsilon == 0:
            return masked_argmax(values, mask).to(obs.device)
        action = masked_epsilon_greedy(values.cpu(), mask.cpu(), epsilon, generator)
        return action.to(obs.device)

    return policy


def as_known(obs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return observations as the numbers that a network knows.

    Raises:
        TypeError: if they are of another kind.
    """
    if obs.dtype == dtype:
        return obs
    if not (obs.is_floating_point() and dtype.is_floating_point):
        raise TypeError(f"observations are {obs.dtype}; this policy knows {dtype}")
    return obs.to(dtype)
