"""The actor-critic with a memory: encoder, recurrent cell, and attention to what was seen lately.

What there is to remember between two steps is a `Recollection`. It never crosses the start of an
episode: at age 0 the state counts as 0, and attention is masked to the episode's own observations.

Dimension key: `T` steps, `N` envs, `A` union actions, `H` features of an observation, `R` units of
the cell, `S` state, `M` memory length, `L` = M - 1 + T.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlmask.attention import AttentionCell, BahdanauAttention, LuongAttention, Mechanism, Memory
from rlmask.layers import head
from rlmask.normalize import ObsScaler
from rlmask.ops import check_choice, only_existing
from rlmask.recurrent import Cell
from rlmask.torso import Activation, Torso, find_quickly
from rlmask.types import ActionSpec, ObsSpec

Attention = Literal["none", "luong", "bahdanau"]
MECHANISMS = {"luong": LuongAttention, "bahdanau": BahdanauAttention}


@dataclass(frozen=True, kw_only=True)
class Recollection:
    """What is remembered of N envs before their next observation is seen.

    `history` has the observations themselves, so that they can be encoded by the weights as they
    are; what of it is older than the episode is never read.
    """

    state: Float[Tensor, " N S"]
    history: Tensor  # [M - 1, N, *obs], oldest first; no row without attention
    age: Int[Tensor, " N"]  # steps of the episode that are done; at 0 the state counts as 0


class RecurrentActorCritic(nn.Module):
    """Raw scores of the union actions and a state value, of all that an episode has shown so far.

    Args:
        conv_filters, hidden_sizes, activation, normalize_obs: of the encoder, as in `ActorCritic`.
        cell: `gru` or `lstm`.
        recurrent_size: R.
        attention: what the cell looks into its last M encoded observations with, the present one
            among them; see `rlmask.attention.AttentionCell`, with an attention layer of R rows.
        memory_length: M.
        generator: of the initial weights (CPU).
    """

    def __init__(
        self,
        obs: ObsSpec,
        action: ActionSpec,
        *,
        conv_filters: Sequence[int] = (),
        hidden_sizes: Sequence[int],
        activation: Activation,
        normalize_obs: bool,
        cell: Cell,
        recurrent_size: int,
        attention: Attention,
        memory_length: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.obs_spec, self.action_spec = obs, action
        features = hidden_sizes[-1]
        self.torso = Torso(1, obs, hidden_sizes, activation, generator, conv_filters=conv_filters)
        mechanisms: list[Mechanism] = []
        check_choice("attention", attention, ["none", *MECHANISMS])
        if attention != "none":
            make = MECHANISMS[attention]
            mechanisms = [make(recurrent_size, features, recurrent_size, generator=generator)]
        self.core = AttentionCell(
            cell,
            features,
            recurrent_size,
            mechanisms,
            attention_layer_size=[recurrent_size for _ in mechanisms],
            generator=generator,
        )
        self.memory_length = memory_length if mechanisms else 1
        self.actor_head = head(recurrent_size, action.num_actions, 0.01, generator)
        self.critic_head = head(recurrent_size, 1, 1.0, generator)
        self.obs_scaler = ObsScaler(obs) if normalize_obs and obs.kind == "vector" else None
        self._mechanisms = mechanisms
        find_quickly(self)

    def nothing(self, num_envs: int) -> Recollection:
        """Return what is remembered at the start of N episodes."""
        weight = self.actor_head.weight
        spec = self.obs_spec
        shape = (self.memory_length - 1, num_envs, *spec.shape)
        return Recollection(
            state=weight.new_zeros(num_envs, self.core.state_size),
            history=torch.zeros(shape, dtype=spec.torch_dtype, device=weight.device),
            age=torch.zeros(num_envs, dtype=torch.int64, device=weight.device),
        )

    def encode(self, obs: Tensor) -> Float[Tensor, " T N H"]:
        """Return the features of observations [T, N, *obs]."""
        rows = obs.flatten(0, 1)
        if self.obs_scaler is not None:
            rows = self.obs_scaler(rows)
        return self.torso.forward(rows)[0].unflatten(0, obs.shape[:2])

    def forward(
        self, obs: Tensor, age: Int[Tensor, " T N"], state: Tensor, history: Tensor
    ) -> tuple[Float[Tensor, " T N A"], Float[Tensor, " T N"]]:
        """Return logits and values of a whole chunk.

        Args:
            obs: [T, N, *obs].
            age: of the episode at each of them; 0 where one starts.
            state: [N, S], before the first.
            history: [M - 1, N, *obs], before the first.
        """
        features = self.encode(torch.cat([history, obs]) if len(history) else obs)
        output, _ = self.run(features, age, state)
        return self.heads(output)

    def heads(
        self, output: Float[Tensor, "*batch R"]
    ) -> tuple[Float[Tensor, "*batch A"], Float[Tensor, "*batch"]]:
        """Return logits and value."""
        return self.actor_head(output), self.critic_head(output).squeeze(-1)

    def run(
        self,
        features: Float[Tensor, " L N H"],
        age: Int[Tensor, " T N"],
        state: Float[Tensor, " N S"],
    ) -> tuple[Float[Tensor, " T N R"], Float[Tensor, " N S"]]:
        """Take T steps; return the outputs, and the state after the last.

        Args:
            features: of the M - 1 observations before the first step, and of those of the steps.
            age: of the episode at each step.
            state: before the first step.
        """
        projected = self.core.project(features[self.memory_length - 1 :]).unbind()
        starts = age == 0
        memories = self.memories(features, age)
        outputs = []
        for t, start in enumerate(starts.unbind()):
            state = state.masked_fill(start.unsqueeze(-1), 0.0)
            output, state = self.core.step(projected[t], state, memories[t])
            outputs.append(output)
        return torch.stack(outputs), state

    def memories(
        self, features: Float[Tensor, " L N H"], age: Int[Tensor, " T N"]
    ) -> list[list[Memory]]:
        """Return what each step attends to: the last M observations, as far as of its episode."""
        if not self._mechanisms:
            return [[] for _ in age]
        mask = recent_mask(age, self.memory_length)
        (mechanism,) = self._mechanisms
        # keys of each observation once, not once for each step that sees it
        windows = [
            only_existing(x.unfold(0, self.memory_length, 1).mT, mask).unbind()
            for x in (features, mechanism.keys(features))
        ]
        steps = zip(*windows, mask.unbind(), strict=True)
        return [[Memory(values=v, keys=k, mask=m)] for v, k, m in steps]

    def act(
        self, obs: Tensor, age: Tensor, state: Tensor, recent: Float[Tensor, " past N H"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take one step; return logits [N, A], values [N], and state and features for the next.

        Args:
            obs: [N, *obs].
            age: [N].
            state: [N, S].
            recent: features of the M - 1 observations before, [M - 1, N, H].
        """
        features = torch.cat([recent, self.encode(obs.unsqueeze(0))])
        output, state = self.run(features, age.unsqueeze(0), state)
        logits, value = self.heads(output[0])
        return logits, value, state, features[1:]


def recent_mask(age: Int[Tensor, " T N"], memory_length: int) -> Bool[Tensor, " T N M"]:
    """Return which of the last M observations, oldest first, are of the same episode.

    The last is the present one; the one `lag` steps before it is of the episode if lag <= age.
    """
    lag = torch.arange(memory_length - 1, -1, -1, device=age.device)
    return lag <= age.unsqueeze(-1)
