"""What is kept of taken actions and of whether they were valid.

`Memory` is what a learned mask learns from, `Ring` what it is held against before it is used, and
`Tries` what speaks against it from then on.

Dimension key: `B` rows.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlmask.types import ObsSpec

LAST_TRIES = 512  # of eliminated actions, which are looked back on
LEAST_TRIES = 50  # without which nothing speaks against a mask


class Ring:
    """The last steps with their labels: observation, action, whether it was valid."""

    def __init__(self, capacity: int, obs: ObsSpec) -> None:
        self.obs = torch.zeros((capacity, *obs.shape), dtype=obs.torch_dtype)
        self.action = torch.zeros(capacity, dtype=torch.int64)
        self.valid = torch.zeros(capacity, dtype=torch.bool)
        self.count = 0  # of all that ever came

    def __len__(self) -> int:
        return min(self.count, len(self.action))

    def add(self, obs: Tensor, action: Int[Tensor, " B"], valid: Bool[Tensor, " B"]) -> None:
        """Remember some steps, in the place of the oldest."""
        capacity = len(self.action)
        obs, action, valid = (x[-capacity:] for x in (obs, action, valid))
        rows = (torch.arange(len(action)) + self.count) % capacity
        self.obs[rows], self.action[rows], self.valid[rows] = obs, action, valid
        self.count += len(action)

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return observations, actions and labels of all of them."""
        rows = slice(len(self))
        return self.obs[rows], self.action[rows], self.valid[rows]

    def clear(self) -> None:
        """Forget all of it."""
        self.count = 0

    def capture(self) -> dict[str, Any]:
        """Return all of it."""
        return {"obs": self.obs, "action": self.action, "valid": self.valid, "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Copy what was captured."""
        for own, name in ((self.obs, "obs"), (self.action, "action"), (self.valid, "valid")):
            own.copy_(state[name])
        self.count = int(state["count"])


class Memory:
    """The last steps of each action, valid and invalid ones apart: no action crowds out another.

    A shelf for each action and label, 2 · action + valid, of as many rows each.
    """

    def __init__(self, capacity: int, num_actions: int, obs: ObsSpec) -> None:
        self.share = max(1, capacity // (2 * num_actions))
        self.obs = torch.zeros((2 * num_actions * self.share, *obs.shape), dtype=obs.torch_dtype)
        self.count = torch.zeros(2 * num_actions, dtype=torch.int64)  # of all that ever came

    def add(self, obs: Tensor, action: Int[Tensor, " B"], valid: Bool[Tensor, " B"]) -> None:
        """Remember some steps, in the place of the oldest of their shelves."""
        shelf = 2 * action + valid
        same = shelf.unsqueeze(1) == shelf
        num_before = same.tril(-1).sum(1)
        lasts = same.triu(1).sum(1) < self.share  # not overwritten by what comes behind it
        rows = shelf * self.share + (self.count[shelf] + num_before) % self.share
        self.obs[rows[lasts]] = obs[lasts]
        self.count += torch.bincount(shelf, minlength=len(self.count))

    def has_both(self) -> bool:
        """Return whether there are steps with a valid and with an invalid action."""
        return bool((self.count.view(-1, 2).sum(0) > 0).all())

    def draw(
        self, valid: bool, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Int[Tensor, " B"]]:
        """Return observations and actions with a label, of each action equally many on average."""
        shelves = self.count[int(valid) :: 2].nonzero().squeeze(-1) * 2 + int(valid)
        shelf = shelves[torch.randint(len(shelves), (count,), generator=generator)]
        size = self.count[shelf].clamp(max=self.share)
        place = (torch.rand(count, generator=generator) * size).long()
        place = torch.minimum(place, size - 1)  # the product may be rounded up
        return self.obs[shelf * self.share + place], shelf // 2

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return observations, actions and labels of all steps."""
        is_there = torch.arange(self.share) < self.count.unsqueeze(-1)
        rows = is_there.flatten().nonzero().squeeze(-1)
        shelf = rows // self.share
        return self.obs[rows], shelf // 2, shelf % 2 == 1

    def capture(self) -> dict[str, Any]:
        """Return all of it."""
        return {"obs": self.obs, "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Copy what was captured."""
        self.obs.copy_(state["obs"])
        self.count.copy_(state["count"])


class Tries:
    """The last eliminated actions that were tried: which part of the valid ones is taken away.

    One of `k` eliminated actions is drawn uniformly, so `k` times "it was valid" is, on average,
    how many valid actions the mask lacks.
    """

    def __init__(self) -> None:
        self.missed = torch.zeros(LAST_TRIES)
        self.count = 0  # of all since they were forgotten last

    def add(self, num_eliminated: Int[Tensor, " B"], valid: Bool[Tensor, " B"]) -> None:
        """Remember some tries, in the place of the oldest."""
        missed = (num_eliminated * valid)[-LAST_TRIES:].float()
        self.missed[(torch.arange(len(missed)) + self.count) % LAST_TRIES] = missed
        self.count += len(missed)

    def mean(self) -> float:
        """Return how many valid actions a mask lacks on average, as far as tries tell."""
        return float(self.missed[: self.count].mean()) if self.count else 0.0

    def at_least(self) -> float:
        """Return that less two standard errors; 0 after fewer than 50 tries."""
        if self.count < LEAST_TRIES:
            return 0.0
        missed = self.missed[: self.count]
        return max(0.0, float(missed.mean() - 2 * missed.std() / len(missed) ** 0.5))

    def clear(self) -> None:
        """Forget all of them."""
        self.count = 0

    def capture(self) -> dict[str, Any]:
        """Return all of it."""
        return {"missed": self.missed, "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Copy what was captured."""
        self.missed.copy_(state["missed"])
        self.count = int(state["count"])
