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
from rlmask.recurrent_network import RecurrentActorCritic
from rlmask.set_network import SetActorCritic
from rlmask.types import Policy
from rlmask.validity import ValidityHead

ActorNetwork = ActorCritic | ActorMimicNetwork | QuantizedNetwork | SetActorCritic


def actor_policy(
    network: ActorNetwork,
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
        logits = network(as_known(obs, dtype).to(device))[0]
        return choose(logits, action_mask.to(device), nvec, greedy, generator).to(obs.device)

    return policy


class RecurrentPolicy:
    """A policy that remembers what each row has shown since `forget`.

    Row i has to be of the same env at every call. Where an episode begins, `rlmask.types.forget`
    says so; as everything here that plays with policies does. Another number of rows begins anew.

    Args:
        network: whose weights do not change while an episode is played.
        greedy: takes the best valid action, or draws from the softmax over them.
        generator: of the draws (CPU).
    """

    def __init__(
        self,
        network: RecurrentActorCritic,
        *,
        greedy: bool,
        generator: torch.Generator | None = None,
    ) -> None:
        self._network, self._greedy, self._generator = network, greedy, generator
        self._device = next(network.parameters()).device
        self.forget()

    @torch.inference_mode()
    def __call__(self, obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B *parts"]:
        """Return one valid action a row.

        Raises:
            TypeError: if observations are of another kind of number.
        """
        network = self._network
        if len(obs) != len(self._age):
            self._begin(len(obs))
        seen = as_known(obs, network.obs_spec.torch_dtype).to(self._device)
        logits, _, self._state, self._recent = network.act(
            seen, self._age, self._state, self._recent
        )
        self._age = self._age + 1
        nvec = network.action_spec.nvec
        action = choose(logits, action_mask.to(self._device), nvec, self._greedy, self._generator)
        return action.to(obs.device)

    def forget(self, rows: Int[Tensor, " E"] | None = None) -> None:
        """Remember nothing of these rows; None: of any.

        Raises:
            ValueError: if there are no such rows.
        """
        if rows is None:
            self._begin(0)
            return
        count = len(self._age)
        if rows.is_floating_point() or rows.dtype == torch.bool:
            raise ValueError(f"rows are {rows.dtype}: give their numbers, mask.nonzero().flatten()")
        if not count or not len(rows):  # nothing is remembered yet, or to be forgotten
            return
        if int(rows.min()) < 0 or int(rows.max()) >= count:
            raise ValueError(f"rows are {rows.tolist()}: the last call had 0 to {count - 1}")
        self._age = self._age.index_fill(0, rows.to(self._device, torch.int64), 0)

    @torch.inference_mode()
    def _begin(self, num_rows: int) -> None:
        nothing = self._network.nothing(num_rows)
        self._state, self._age = nothing.state, nothing.age
        self._recent = self._network.encode(nothing.history)


def choose(
    logits: Tensor,
    action_mask: Bool[Tensor, " B A"],
    nvec: tuple[int, ...],
    greedy: bool,
    generator: torch.Generator | None,
) -> Int[Tensor, " B *parts"]:
    """Return the best valid action of each row, or one drawn from the softmax over them."""
    scores, mask = split_parts(logits, nvec), split_parts(action_mask, nvec)
    if greedy:
        return masked_argmax(scores, mask)
    # drawn on the CPU, where the generator is
    uniform = torch.rand(mask.shape[:-1], generator=generator).to(scores.device)
    return masked_inverse_cdf(scores, mask, uniform)[0]


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


def narrowing(policy: Policy, head: ValidityHead | None) -> Policy:
    """Return a policy that sees the mask without the actions that a head eliminates; None: all.

    Raises:
        TypeError: in the policy, if observations are of another kind of number.
    """
    if head is None:
        return policy

    @torch.inference_mode()
    def narrowed(obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B *parts"]:
        seen = as_known(obs, head.obs_spec.torch_dtype).cpu()
        return policy(obs, head.narrow(seen, action_mask.cpu()).to(action_mask.device))

    return narrowed


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
