"""Several native vector envs as one, each with a game of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlmask.turns import interleave
from rlmask.vector.games import VectorSpec
from rlmask.vector.native import NativeVector
from rlmask.vector.spaces import SpaceError
from rlmask.vector.vectorize import VectorStep


class JointVector:
    """G native vector envs of N / G envs each; env i plays game i modulo G.

    Raises:
        SpaceError: unless all have the same observations, not discrete, and the same actions, and
            say so with `action_ids`.
    """

    def __init__(self, vectors: Sequence[NativeVector]) -> None:
        first = vectors[0].spec
        for vector in vectors:
            if vector.spec.games[0].action_ids is None:
                n = first.action.num_actions
                raise SpaceError(
                    f"{vector.spec.games[0].env_id}: several games share one union of actions; say "
                    f"that its own are the union's by action_ids 0 to {n - 1}"
                )
            same = (vector.spec.obs, vector.spec.action) == (first.obs, first.action)
            if not same or first.obs.kind == "discrete":
                names = (first.games[0].env_id, vector.spec.games[0].env_id)
                raise SpaceError(
                    f"{names[0]} and {names[1]} do not share observations and actions; set "
                    "vectorization to `sync`, which makes a union of them"
                )
        games = tuple(vector.spec.games[0] for vector in vectors)
        self.spec = VectorSpec(
            obs=first.obs, action=first.action, games=games, obs_offsets=(0,) * len(games)
        )
        self.num_envs = sum(vector.num_envs for vector in vectors)
        self._vectors = vectors

    def reset(self) -> tuple[Tensor, Tensor]:
        """Start an episode in every env; return obs [N, *obs] and mask [N, A]."""
        return self._interleaved([vector.reset() for vector in self._vectors])

    def step(self, action: Tensor) -> VectorStep:
        """Take one action [N, *parts] in every env, or in none; raises as `NativeVector.step`."""
        count = len(self._vectors)
        pairs = [(vector, action[game::count]) for game, vector in enumerate(self._vectors)]
        checked = [(vector, own, vector.check(own)) for vector, own in pairs]
        steps = [vector.step_checked(own, valid) for vector, own, valid in checked]
        ended = torch.cat([game + count * step.ended for game, step in enumerate(steps)])
        order = ended.argsort()
        episodes = [
            replace(episode, game=game)
            for game, step in enumerate(steps)
            for episode in step.episodes
        ]
        obs, mask = self._interleaved([(step.obs, step.action_mask) for step in steps])
        return VectorStep(
            obs=obs,
            action_mask=mask,
            reward=interleave([step.reward for step in steps]),
            action_valid=interleave([step.action_valid for step in steps]),
            terminated=interleave([step.terminated for step in steps]),
            truncated=interleave([step.truncated for step in steps]),
            ended=ended[order],
            final_obs=torch.cat([step.final_obs for step in steps])[order],
            final_action_mask=torch.cat([step.final_action_mask for step in steps])[order],
            episodes=[episodes[index] for index in order.tolist()],
        )

    def capture(self) -> list[dict[str, Any]]:
        """Return the state of the envs of each game, if they can tell it."""
        return [vector.capture() for vector in self._vectors]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Bring the envs back to a captured state; return obs and mask."""
        pairs = zip(self._vectors, state, strict=True)
        return self._interleaved([vector.restore(one) for vector, one in pairs])

    def close(self) -> None:
        """Close the envs."""
        for vector in self._vectors:
            vector.close()

    def _interleaved(self, seen: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        obs, masks = zip(*seen, strict=True)
        return interleave(obs), interleave(masks)
