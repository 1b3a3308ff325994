"""Any Gymnasium env in, one mask convention out. The only place that knows Gymnasium."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from rlmask.vector.check import Finding, check_env, list_envs
from rlmask.vector.env import MaskedEnv, episode_seed
from rlmask.vector.games import (
    Game,
    VectorSpec,
    game_names,
    games_of,
    join,
    probe,
    short_names,
    slug,
)
from rlmask.vector.joint import JointVector
from rlmask.vector.mask import MASK_SOURCES, MaskError, MaskSource
from rlmask.vector.native import NativeVector
from rlmask.vector.spaces import EnvError, SpaceError
from rlmask.vector.vectorize import AsyncVector, ReplayWarning, SyncVector, VectorStep

Vectorization = Literal["sync", "async", "native"]


@runtime_checkable
class VectorEnv(Protocol):
    """What a trainer and an evaluation need; `make_vector` makes one."""

    spec: VectorSpec
    num_envs: int

    def reset(self) -> tuple[Tensor, Tensor]:
        """Start an episode in every env; return obs [N, *obs] and mask [N, A]."""
        ...

    def step(self, action: Tensor) -> VectorStep:
        """Take one action [N, *parts] in every env."""
        ...

    def capture(self) -> Any:
        """Return the state of the envs, as a tree that a checkpoint can hold."""
        ...

    def restore(self, state: Any) -> tuple[Tensor, Tensor]:
        """Bring the envs back to a captured state; return obs and mask."""
        ...

    def close(self) -> None:
        """Close the envs."""
        ...


def make_vector(
    games: tuple[Game, ...],
    num_envs: int,
    seed: int,
    *,
    vectorization: Vectorization = "sync",
    num_actions: int | None = None,
    stream: int = 0,
    enforce: bool = True,
    max_episode_steps: int | None = None,
) -> SyncVector | AsyncVector | NativeVector | JointVector:
    """Make N envs of one game, or of several in turn, over one union of actions.

    Args:
        games: env i plays game i modulo the number of games.
        num_envs: N, a multiple of the number of games.
        seed: of the run; every episode of every env has its own seed, derived from it.
        vectorization: `sync`, one process; `async`, one process an env; `native`, the env's own.
        num_actions: size of the union; None: what the games need.
        stream: 0 for training, 1 for evaluation.
        enforce: raise on an invalid action; otherwise count it.
        max_episode_steps: truncate an episode here, if the env has not ended it before; a native
            vector env that has no limit of its own is left as it is.

    Raises:
        EnvError, SpaceError, MaskError: as the envs give cause.
        ValueError: if `num_envs` is not a multiple of the number of games.
    """
    if not games:
        raise ValueError("games is empty: name at least one")
    if num_envs < 1 or num_envs % len(games):
        raise ValueError(
            f"num_envs is {num_envs}; {len(games)} games need a multiple of {len(games)}, so that "
            "each has the same share"
        )
    if vectorization == "native":
        of_each = num_envs // len(games), seed, stream, num_actions, enforce, max_episode_steps
        places = [(place, len(games)) for place in range(len(games))]
        vectors = [
            NativeVector(game, *of_each, place=place)
            for game, place in zip(games, places, strict=True)
        ]
        return vectors[0] if len(vectors) == 1 else JointVector(vectors)
    spec = join(games, num_actions)
    make = partial(
        MaskedEnv,
        spec,
        seed=seed,
        stream=stream,
        enforce=enforce,
        max_episode_steps=max_episode_steps,
    )
    if vectorization == "async":
        return AsyncVector(spec, num_envs, make)
    with collector_paused():
        return SyncVector(spec, [make(index=index) for index in range(num_envs)])


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no cycles for a while: many envs are many objects, gone through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def envs_of(config: Any) -> SyncVector | AsyncVector | NativeVector | JointVector:
    """Make the envs of an algorithm's settings; raises as `make_vector`."""
    return make_vector(
        config.all_games,
        config.num_envs,
        config.seed,
        vectorization=config.vectorization,
        num_actions=config.num_actions,
    )


__all__ = [
    "MASK_SOURCES",
    "AsyncVector",
    "EnvError",
    "Finding",
    "Game",
    "JointVector",
    "MaskError",
    "MaskSource",
    "MaskedEnv",
    "NativeVector",
    "ReplayWarning",
    "SpaceError",
    "SyncVector",
    "VectorEnv",
    "VectorSpec",
    "VectorStep",
    "Vectorization",
    "check_env",
    "envs_of",
    "episode_seed",
    "game_names",
    "games_of",
    "join",
    "list_envs",
    "make_vector",
    "probe",
    "short_names",
    "slug",
]
