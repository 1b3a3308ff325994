"""States with what a teacher says of each: what a student learns from.

Dimension key: `G` games, `C` states kept of each, `N` envs, `B` batch, `A` union actions, `H` the
teacher's features (0 if they are not regressed).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlmask.types import Chunk, ObsSpec

CHUNK_BYTES = 2**23  # of a file of a checkpoint; only what has changed is written again


class StatesError(ValueError):
    """States do not fit into a buffer, or it is still empty."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """B states, row i of game i modulo G, with the scores that the game's teacher gives."""

    obs: Tensor  # [B, *obs]
    action_mask: Bool[Tensor, " B A"]
    scores: Float[Tensor, " B A"]  # of the valid actions
    features: Float[Tensor, " B H"]


class StateBuffer:
    """The last states of each game, drawn uniformly and in equal shares, in a ring.

    A slot holds one state of every game, so a row of it is at slot · G + game.

    Args:
        num_games: G.
        capacity: C, of each game.
        obs: what an observation is; it is kept in its own dtype.
        num_actions: A.
        num_features: H.
        seed: of the draws.
    """

    def __init__(
        self,
        num_games: int,
        capacity: int,
        obs: ObsSpec,
        num_actions: int,
        num_features: int,
        seed: int,
    ) -> None:
        rows = num_games * capacity
        self._num_games, self._capacity = num_games, capacity
        self._rows = {  # memory is taken when it is first written to
            "obs": torch.empty((rows, *obs.shape), dtype=obs.torch_dtype),
            "action_mask": torch.empty((rows, num_actions), dtype=torch.bool),
            "scores": torch.empty((rows, num_actions)),
            "features": torch.empty((rows, num_features)),
        }
        row_bytes = math.prod(obs.shape) * obs.torch_dtype.itemsize
        row_bytes += num_actions * 5 + num_features * 4
        self._chunk_slots = max(1, CHUNK_BYTES // (row_bytes * num_games))
        self._writes = np.zeros(-(-capacity // self._chunk_slots), np.int64)  # to each chunk
        self._head = self._size = 0
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def num_features(self) -> int:
        """Columns of the features, H."""
        return self._rows["features"].shape[1]

    def __len__(self) -> int:
        """Return how many states of each game there are."""
        return self._size

    def add(self, states: Labelled) -> None:
        """Add rows of all games in turn; the oldest make room.

        Raises:
            StatesError: if they are more than fit, or not as many of each game.
        """
        count, rest = divmod(len(states.obs), self._num_games)
        if rest or count > self._capacity:
            raise StatesError(
                f"{len(states.obs)} states of {self._num_games} games do not fit into a buffer of "
                f"{self._capacity} each; make replay_capacity larger"
            )
        first = min(count, self._capacity - self._head)
        for start, stop, slot in ((0, first, self._head), (first, count, 0)):
            if stop > start:
                rows = slice(slot * self._num_games, (slot + stop - start) * self._num_games)
                for name, own in self._rows.items():
                    own[rows] = getattr(states, name)[
                        start * self._num_games : stop * self._num_games
                    ]
                last = slot + stop - start - 1
                self._writes[slot // self._chunk_slots : last // self._chunk_slots + 1] += 1
        self._head = (self._head + count) % self._capacity
        self._size = min(self._size + count, self._capacity)

    def sample(self, batch_size: int) -> Labelled:
        """Draw states with replacement, B / G of each game, in turn.

        Raises:
            StatesError: if there are none.
        """
        if not self._size:
            raise StatesError("the buffer of states is empty; add some before you sample")
        slots = torch.randint(
            self._size, (batch_size // self._num_games, 1), generator=self._generator
        )
        index = (slots * self._num_games + torch.arange(self._num_games)).flatten()
        return Labelled(**{name: own.index_select(0, index) for name, own in self._rows.items()})

    def capture(self) -> dict[str, Any]:
        """Return the state. What is stored comes in chunks, as it is when they are read."""
        return {
            "head": self._head,
            "size": self._size,
            "capacity": self._capacity,
            "writes": self._writes.tolist(),
            "generator": self._generator.get_state(),
            "chunks": {
                f"{chunk:06d}": Chunk(version=writes, read=partial(self._chunk, chunk))
                for chunk, writes in enumerate(self._writes.tolist())
                if writes
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a captured state.

        Raises:
            StatesError: if it is of a buffer of another size.
        """
        if state["capacity"] != self._capacity:
            raise StatesError("the captured buffer of states has another capacity than this one")
        self._head, self._size = state["head"], state["size"]
        self._writes[:] = state["writes"]
        for chunk, content in state["chunks"].items():
            stored = content.read()
            for name, own in self._chunk(int(chunk)).items():
                own[:] = stored[name]
        self._generator.set_state(state["generator"])

    def _chunk(self, chunk: int) -> dict[str, np.ndarray]:
        """Return views of the rows of a chunk that are filled."""
        start = chunk * self._chunk_slots
        stop = min(start + self._chunk_slots, self._size)
        rows = slice(start * self._num_games, stop * self._num_games)
        return {name: own[rows].numpy() for name, own in self._rows.items()}
