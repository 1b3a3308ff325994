"""Teachers: what an expert of one game says of the union of actions.

A teacher sees its game's own observations and own actions, as it was trained with. Whatever the
size of its head, each of its outputs is put where the game's `action_ids` say, never by its place.

Dimension key: `B` batch, `A` union actions, `K` the game's own actions, `H` features, `G` games.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from rlmask.ops import masked_argmax, masked_sample
from rlmask.states import Labelled
from rlmask.types import ObsSpec, Policy

Score = Callable[[Tensor, Tensor], Tensor]  # own obs, own mask [B, K] -> scores [B, K]
ScoreAndFeatures = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # the same, and [B, H]
NEVER = -1e6  # in place of -inf: exp of it is 0, and arithmetic stays finite


class TeacherError(ValueError):
    """A teacher is missing, does not fit its game, or gives what no scores are."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """An expert of one game.

    Attributes:
        name: a run directory, or module:function.
        score: the game's own observations [B, *obs] and masks [B, K] -> scores [B, K] and features
            [B, H]. What it gives for invalid actions is not looked at.
        kind: `policy`, its scores are logits; `values`, they are action values.
        num_features: H, 0 if it has none.
        obs: one of the game's own observations.
        obs_offset: of a discrete observation within the union's.
        action_ids: the union action that each of the game's actions is [K].
        digest: of its weights, so that a run is not resumed with another; empty for a function.
    """

    name: str
    score: ScoreAndFeatures
    kind: Literal["policy", "values"]
    num_features: int = 0
    obs: ObsSpec
    obs_offset: int = 0
    action_ids: tuple[int, ...]
    digest: str = ""

    def widened(
        self, obs: Tensor, action_mask: Bool[Tensor, " B A"]
    ) -> tuple[Float[Tensor, " B A"], Float[Tensor, " B H"]]:
        """Return scores over the union, 0 where the game has no action, and features.

        A policy may give -inf to what it would never do.

        Raises:
            TeacherError: if scores of valid actions are missing, NaN or +inf, or all -inf.
        """
        ids = torch.tensor(self.action_ids, device=obs.device)
        mask = action_mask.index_select(1, ids)
        own, features = self.score(own_obs(obs, self.obs, self.obs_offset), mask)
        if own.shape != mask.shape:
            raise TeacherError(
                f"teacher {self.name} gives scores of shape {tuple(own.shape)} for masks of "
                f"{tuple(mask.shape)}: one a row and action of its game is needed"
            )
        if ((own.isnan() | own.isposinf()) & mask).any():
            raise TeacherError(f"teacher {self.name} gives a valid action NaN or inf")
        never = own.isneginf()
        if (never | ~mask).all(-1).any():
            raise TeacherError(f"teacher {self.name} gives -inf to all valid actions")
        own = own.float().masked_fill(never, NEVER)
        scores = torch.zeros(action_mask.shape, device=obs.device)
        scores.index_copy_(1, ids, own)
        return scores, features


def own_obs(obs: Tensor, spec: ObsSpec, offset: int) -> Tensor:
    """Return a game's own observations, out of the union that pads and shifts them."""
    if spec.kind == "discrete":
        return obs - offset
    own = (slice(None), *(slice(size) for size in spec.shape))
    return obs[own]


def padded_obs(obs: Tensor, spec: ObsSpec, offset: int) -> Tensor:
    """Return a game's own observations as a union of games shows them; undoes `own_obs`."""
    if spec.kind == "discrete":
        return obs + offset
    missing = [
        size for n, m in zip(obs.shape[:0:-1], spec.shape[::-1], strict=True) for size in (0, m - n)
    ]
    return functional.pad(obs, missing)


@torch.inference_mode()
def label(
    teachers: Sequence[Teacher],
    obs: Tensor,
    action_mask: Bool[Tensor, " B A"],
    num_features: int = 0,
) -> Labelled:
    """Ask each game's teacher about its rows, row i being of game i modulo G.

    Args:
        num_features: columns to keep of the features; those of smaller teachers are padded.
    """
    count, num_games = len(obs), len(teachers)
    scores = torch.empty(action_mask.shape, device=obs.device)
    features = torch.zeros((count, num_features), device=obs.device)
    for game, teacher in enumerate(teachers):
        rows = slice(game, None, num_games)
        own_scores, own_features = teacher.widened(obs[rows], action_mask[rows])
        scores[rows] = own_scores
        if num_features:
            features[rows, : teacher.num_features] = own_features
    return Labelled(obs=obs, action_mask=action_mask, scores=scores, features=features)


def teacher_policy(teachers: Sequence[Teacher], *, greedy: bool, seed: int) -> Policy:
    """Return a policy that plays each game as its teacher does; rows are of the games in turn.

    Args:
        greedy: the best valid action; otherwise draw from the softmax of a teacher's logits (of
            action values still the best: they are no distribution).
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.tensor([not greedy and teacher.kind == "policy" for teacher in teachers])

    @torch.inference_mode()
    def policy(obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B"]:
        scores = label(teachers, obs, action_mask).scores
        best = masked_argmax(scores, action_mask)
        if not draws.any():
            return best
        drawn, _ = masked_sample(scores, action_mask, generator)
        return torch.where(draws.repeat(len(obs) // len(teachers)), drawn, best)

    return policy


def random_policy(seed: int) -> Policy:
    """Return a policy that draws each valid action with the same probability.

    Args:
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)

    def policy(obs: Tensor, action_mask: Bool[Tensor, " B A"]) -> Int[Tensor, " B"]:
        return masked_sample(torch.zeros(action_mask.shape), action_mask, generator)[0]

    return policy
