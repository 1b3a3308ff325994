"""Games, and what several of them have in common: one observation, one union of actions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym

from rlmask.types import ActionSpec, ObsSpec
from rlmask.vector.mask import MaskSource, Where, resolve_source
from rlmask.vector.spaces import (
    EnvError,
    SpaceError,
    action_spec,
    as_env_error,
    make_env,
    obs_spec,
    without_mask,
)


@dataclass(frozen=True, kw_only=True)
class Game:
    """One game of a vector env.

    Attributes:
        env_id: a Gymnasium id; `module:Name-v0` imports the module first.
        env_kwargs: keyword arguments of the env.
        action_ids: the union action that each of the env's actions is, in the env's order; needed
            where several games share one union. None: the union is the env's own action set.
        mask_source: where the env keeps its mask, see `rlmask.vector.mask`.
    """

    env_id: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    action_ids: tuple[int, ...] | None = None
    mask_source: MaskSource = "auto"


def games_of(config: Any) -> tuple[Game, ...]:
    """Return the games of an algorithm's settings; one of them if `env` is set."""
    if config.games:
        return config.games
    game = Game(env_id=config.env, env_kwargs=config.env_kwargs, mask_source=config.mask_source)
    return (game,)


def game_names(games: Sequence[Game]) -> list[str]:
    """Return a name for each game: its id, and if others have the same, what tells them apart.

    That is the values of the keyword arguments that differ, if they are short, else its place.
    """
    ids = [game.env_id for game in games]
    names = []
    for place, game in enumerate(games):
        alike = [other.env_kwargs for other in games if other.env_id == game.env_id]
        values = [str(value) for key, value in game.env_kwargs.items() if differs(key, alike)]
        suffix = "-".join(values)
        names.append(f"{game.env_id}-{suffix if 0 < len(suffix) <= 30 else place}")
    unique = len(set(names)) == len(names)
    own = names if unique else [f"{name}-{i}" for i, name in enumerate(ids)]
    return [full if ids.count(name) > 1 else name for name, full in zip(ids, own, strict=True)]


def short_names(names: Sequence[str]) -> list[str]:
    """Return `Snake` for `rlmask_envs:rlmask/Snake-v0`, if that tells the games apart.

    Args:
        names: as `game_names` gives them.
    """
    short = [re.sub(r"-v\d+", "", name.rpartition("/")[2]) for name in names]
    return short if len(set(short)) == len(short) else [slug(name) for name in names]


def slug(name: str) -> str:
    """Return a name as that of a file."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-")


def differs(key: str, alike: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a keyword argument is not the same in all of them."""
    return any(kwargs.get(key) != alike[0].get(key) for kwargs in alike)


@dataclass(frozen=True, kw_only=True)
class VectorSpec:
    """What the envs of a vector env have in common.

    Attributes:
        obs: the observation of every env, padded to the largest game's.
        action: the union action set.
        games: the games, with `mask_source` resolved.
        obs_offsets: first index of each game's own observations, 0 unless several games are
        discrete.
    """

    obs: ObsSpec
    action: ActionSpec
    games: tuple[Game, ...]
    obs_offsets: tuple[int, ...]

    def capture(self) -> dict[str, Any]:
        """Return what a checkpoint says of it, in plain values that `captured_specs` reads."""
        return {
            "obs_spec": vars(self.obs),
            "action_spec": vars(self.action),
            "games": [{"env_id": g.env_id, "action_ids": g.action_ids} for g in self.games],
        }


def probe(game: Game) -> tuple[Game, ObsSpec, ActionSpec]:
    """Make and reset a game once; return it with its mask source found, and its spaces.

    Raises:
        EnvError: if it cannot be made or reset.
        SpaceError: if its spaces are not supported.
        MaskError: if it does not have the mask source that it is said to have.
    """
    env = make_env(game.env_id, dict(game.env_kwargs))
    try:
        obs, info = env.reset(seed=0)
        has_method = env.has_wrapper_attr("action_masks")
        where = Where(game.env_id)
        source = resolve_source(game.mask_source, obs, info, has_method, where)
        space = env.observation_space
        if source == "obs":
            space, _ = without_mask(space)
        own_obs, _ = obs_spec(space)
        own_action, _ = action_spec(env.action_space)
    except gym.error.Error as error:
        raise as_env_error(game.env_id, error) from error
    except (TypeError, ValueError) as error:
        if isinstance(error, EnvError) or type(error) not in (TypeError, ValueError):
            raise
        raise EnvError(
            f"{game.env_id} does not follow Gymnasium's API (reset(seed=) -> obs, info): {error}"
        ) from error
    finally:
        env.close()
    return replace(game, mask_source=source), own_obs, own_action


def join(games: tuple[Game, ...], num_actions: int | None = None) -> VectorSpec:
    """Probe the games and return what they have in common.

    Args:
        num_actions: size of the union; None: the largest of the action ids plus 1.

    Raises:
        SpaceError: if the games cannot share one network.
    """
    probed = [probe(game) for game in games]
    resolved = tuple(game for game, _, _ in probed)
    obs, offsets = _union_obs([spec for _, spec, _ in probed], resolved)
    if len(games) == 1 and games[0].action_ids is None:
        if num_actions is not None and num_actions != probed[0][2].num_actions:
            raise SpaceError(
                f"{games[0].env_id} has {probed[0][2].num_actions} actions, num_actions is "
                f"{num_actions}; say with action_ids which of the union each of them is"
            )
        return VectorSpec(obs=obs, action=probed[0][2], games=resolved, obs_offsets=offsets)
    largest = 0
    for game, _, action in probed:
        ids = game.action_ids
        if len(action.nvec) > 1:
            raise SpaceError(f"{game.env_id}: only Discrete actions can be part of a union")
        if ids is None or len(ids) != action.num_actions or len(set(ids)) != len(ids):
            raise SpaceError(
                f"{game.env_id} has {action.num_actions} actions: action_ids must name a different "
                f"union action for each, not {ids}"
            )
        if min(ids) < 0 or (num_actions is not None and max(ids) >= num_actions):
            last = "" if num_actions is None else num_actions - 1
            raise SpaceError(f"{game.env_id}: action_ids {ids} leave the union 0..{last}")
        largest = max(largest, *ids)
    union = ActionSpec(nvec=(largest + 1 if num_actions is None else num_actions,))
    return VectorSpec(obs=obs, action=union, games=resolved, obs_offsets=offsets)


def _union_obs(specs: list[ObsSpec], games: tuple[Game, ...]) -> tuple[ObsSpec, tuple[int, ...]]:
    """Discrete games get rows of their own; vectors and images are padded with zeros at the end."""
    first = specs[0]
    for spec, game in zip(specs, games, strict=True):
        if (spec.kind, spec.dtype) != (first.kind, first.dtype):
            raise SpaceError(
                f"{games[0].env_id} has {first.kind} observations of {first.dtype}, {game.env_id} "
                f"{spec.kind} of {spec.dtype}: one network cannot take both; wrap one of the envs"
            )
    ns = [spec.n for spec in specs]
    offsets = tuple(sum(ns[:i]) for i in range(len(ns)))
    shape = tuple(max(sizes) for sizes in zip(*(spec.shape for spec in specs), strict=True))
    union = ObsSpec(kind=first.kind, shape=shape, dtype=first.dtype, n=sum(ns))
    return union, offsets
