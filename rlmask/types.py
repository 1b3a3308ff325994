"""The records that flow between the parts, and the shape of a policy.

Dimension key: `T` steps, `N` envs, `B` batch, `A` union actions.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class ObsSpec:
    """What an observation is, after `rlmask.vector` has brought it to one of three kinds.

    Attributes:
        kind: `discrete` (an integer below `n`), `vector` (float32, 1-d) or `image` (height, width,
            channels; uint8, or float32 planes).
        shape: of one observation; () for `discrete`.
        dtype: as torch names it, `int64`, `float32` or `uint8`.
        n: number of values of a `discrete` observation, else 0.
    """

    kind: Literal["discrete", "vector", "image"]
    shape: tuple[int, ...]
    dtype: Literal["int64", "float32", "uint8"]
    n: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of an observation tensor."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """The union action set: `nvec` has one entry for Discrete, one a part for MultiDiscrete."""

    nvec: tuple[int, ...]

    @property
    def num_actions(self) -> int:
        """Length of the mask, A = sum(nvec)."""
        return sum(self.nvec)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action: () for Discrete, (parts,) for MultiDiscrete."""
        return () if len(self.nvec) == 1 else (len(self.nvec),)


def captured_specs(state: Mapping[str, Any]) -> tuple[ObsSpec, ActionSpec]:
    """Return the specs that a captured state holds as plain values."""
    obs, action = state["obs_spec"], state["action_spec"]
    return ObsSpec(**{**obs, "shape": tuple(obs["shape"])}), ActionSpec(nvec=tuple(action["nvec"]))


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The facts of T steps of N envs; hyper-parameters (gamma, clipping) never enter.

    `next_value` is the value of the true successor of each step: of the final observation where an
    episode was truncated, not of the observation after the reset.
    """

    obs: Tensor  # [T, N, *obs]
    action_mask: Bool[Tensor, " T N A"]
    action: Int[Tensor, " T N *parts"]
    log_prob: Float[Tensor, " T N"]
    value: Float[Tensor, " T N"]
    next_value: Float[Tensor, " T N"]
    reward: Float[Tensor, " T N"]
    terminated: Bool[Tensor, " T N"]
    truncated: Bool[Tensor, " T N"]


@dataclass(frozen=True, kw_only=True)
class Transition:
    """B transitions of one step or of several, with the mask of either end.

    `reward` is the discounted sum over the steps, `discount` what the value of the successor is
    multiplied with: γ^m after m steps, 0 if the episode terminated. The mask of a terminated
    successor may be empty.
    """

    obs: Tensor  # [B, *obs]
    action_mask: Bool[Tensor, " B A"]
    action: Int[Tensor, " B"]
    reward: Float[Tensor, " B"]
    discount: Float[Tensor, " B"]
    next_obs: Tensor  # [B, *obs]
    next_action_mask: Bool[Tensor, " B A"]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A part of a trainer's state that is large and changes rarely.

    A checkpoint keeps it in a file of its own, and does not write it again while `version` stays.

    Attributes:
        version: changes whenever the content does.
        read: returns the content, arrays by name.
    """

    version: int
    read: Callable[[], Mapping[str, np.ndarray]]


@runtime_checkable
class Policy(Protocol):
    """Anything that chooses actions: a trained network, a teacher, a script, a random policy."""

    def __call__(self, obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B *parts"]:
        """Return one valid action a row; see `forget` for one that remembers earlier calls."""
        ...


@runtime_checkable
class Forgetful(Protocol):
    """A policy that remembers the episode that each of its rows plays, until it is told."""

    def forget(self, rows: Int[Tensor, " E"] | None = None) -> None:
        """Remember nothing of these rows; None: of any."""
        ...


def forget(policy: Policy, rows: Int[Tensor, " E"] | None = None) -> None:
    """Tell a policy that an episode begins in these rows, in all if None.

    Whoever plays with a policy does so at the start, and wherever an episode ended. Nothing happens
    to a policy that remembers nothing.
    """
    if isinstance(policy, Forgetful):
        policy.forget(rows)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One finished episode.

    Attributes:
        game: index of the game in a multi-game env, else 0.
        episode_return: undiscounted sum of the env's own rewards.
        episode_length: steps.
        invalid_actions: how many of its actions the mask ruled out (only without enforcement), or
            the env called invalid.
    """

    game: int
    episode_return: float
    episode_length: int
    invalid_actions: int = 0


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a trainer yields once per update.

    Attributes:
        update: number of updates done, counted from the start of the run.
        env_steps: env steps done, over all envs.
        metrics: `area/name` -> value; the names are listed in docs/metrics.md.
        episodes: the episodes that ended since the last update.
        policy: the policy as it is now, greedy.
        capture: returns everything that `train(config, resume=...)` needs to go on bit for bit: a
            tree of dicts and lists with tensors, arrays, chunks, numbers, strings as leaves. Valid
            until the trainer goes on.
    """

    update: int
    env_steps: int
    metrics: dict[str, float]
    episodes: list[Episode]
    policy: Policy
    capture: Callable[[], dict[str, Any]]


def tree_map(function: Callable[[Tensor], Tensor], record: Record) -> Record:
    """Apply a function to every tensor of a record (a dataclass of tensors)."""
    return type(record)(**{name: function(x) for name, x in _tensors(record).items()})


def split(record: Record, size: int) -> Iterator[Record]:
    """Cut a record into records of `size` rows each (views); the last may be shorter."""
    tensors = _tensors(record)
    for rows in zip(*(x.split(size) for x in tensors.values()), strict=True):
        yield type(record)(**dict(zip(tensors, rows, strict=True)))


def _tensors(record: Any) -> dict[str, Tensor]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
