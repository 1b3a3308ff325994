"""A replay buffer of several games, of which every minibatch has an equal share of each.

Dimension key: `G` games, `N` envs, `B` batch, `A` union actions, `E` envs whose episode ended.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmask.replay import Replay, ReplayError
from rlmask.turns import interleave
from rlmask.types import Transition


def seeds_of(seed: int, count: int) -> list[int]:
    """Return seeds of so many buffers, independent of each other."""
    return np.random.SeedSequence(seed).generate_state(count, np.uint64).tolist()


class JointReplay:
    """G replay buffers of N / G envs each; env i, and row i of a minibatch, is of game i modulo G.

    The methods are those of `rlmask.replay.Replay`.
    """

    def __init__(self, replays: Sequence[Replay]) -> None:
        self._replays = list(replays)

    def __len__(self) -> int:
        """Return how many transitions can be drawn, of all games."""
        return sum(map(len, self._replays))

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(replay.num_bytes for replay in self._replays)

    def start(self, obs: Tensor, action_mask: Bool[Tensor, " N A"]) -> None:
        """Begin an episode in every env."""
        for game, replay in enumerate(self._replays):
            replay.start(self._own(obs, game), self._own(action_mask, game))

    def resume(self, obs: Tensor, action_mask: Bool[Tensor, " N A"]) -> None:
        """Go on at these observations after `restore`."""
        for game, replay in enumerate(self._replays):
            replay.resume(self._own(obs, game), self._own(action_mask, game))

    def add(
        self,
        action: Int[Tensor, " N"],
        reward: Float[Tensor, " N"],
        terminated: Bool[Tensor, " N"],
        obs: Tensor,
        action_mask: Bool[Tensor, " N A"],
        ended: Int[Tensor, " E"],
        final_obs: Tensor,
        final_action_mask: Bool[Tensor, " E A"],
    ) -> None:
        """Store a step of every env; see `Replay.add`."""
        count = len(self._replays)
        for game, replay in enumerate(self._replays):
            is_own = ended % count == game
            replay.add(
                self._own(action, game),
                self._own(reward, game),
                self._own(terminated, game),
                self._own(obs, game),
                self._own(action_mask, game),
                ended[is_own].div(count, rounding_mode="floor"),
                final_obs[is_own],
                final_action_mask[is_own],
            )

    def sample(
        self, batch_size: int, *, num_batches: int = 1, **how: Any
    ) -> tuple[Transition, Int[Tensor, " B"], Float[Tensor, " B"]]:
        """Draw transitions, an equal share of each game in every batch; see `Replay.sample`.

        Raises:
            ReplayError: if `batch_size` is no multiple of G, and as that of `Replay`.
        """
        count = len(self._replays)
        if batch_size % count:
            raise ReplayError(f"batch_size is {batch_size}: it must be a multiple of {count} games")
        drawn = [
            replay.sample(batch_size // count, num_batches=num_batches, **how)
            for replay in self._replays
        ]
        transitions, indices, weights = zip(*drawn, strict=True)
        fields = zip(*(vars(transition).items() for transition in transitions), strict=True)
        joint = {pairs[0][0]: interleave([tensor for _, tensor in pairs]) for pairs in fields}
        return Transition(**joint), interleave(indices), interleave(weights)

    def update_priorities(self, index: Int[Tensor, " B"], priority: Float[Tensor, " B"]) -> None:
        """Set the priorities of drawn transitions; see `Replay.update_priorities`."""
        for game, replay in enumerate(self._replays):
            own = self._own(index, game).contiguous(), self._own(priority, game).contiguous()
            replay.update_priorities(*own)

    def capture(self) -> dict[str, Any]:
        """Return the state of each game's buffer."""
        return {f"game{game}": replay.capture() for game, replay in enumerate(self._replays)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a captured state."""
        for game, replay in enumerate(self._replays):
            replay.restore(state[f"game{game}"])

    def _own(self, rows: Tensor, game: int) -> Tensor:
        return rows[game :: len(self._replays)]
