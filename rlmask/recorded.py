"""Files of the states that a policy visits, to distil from without playing.

One safetensors file: `obs` and `action_mask` of all games in turn (row i is of game i modulo G),
and in its metadata which games they are.
"""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rlmask.checkpoint import replace_synced
from rlmask.config import to_settings
from rlmask.types import Policy, forget
from rlmask.vector import Game, Vectorization, make_vector

FORMAT_VERSION = "1"
ENVS_PER_GAME = 16


class RecordedError(ValueError):
    """A file of recorded states is missing, corrupt, or of other games."""


def record_states(
    games: tuple[Game, ...],
    num_actions: int | None,
    policy: Policy,
    path: Path,
    *,
    num_states: int,
    seed: int,
    vectorization: Vectorization = "sync",
) -> int:
    """Play all games with a policy and write the states that it sees; return how many of each.

    Args:
        games: to be played.
        num_actions: size of their union, see `rlmask.vector.join`.
        policy: gets rows of all games in turn.
        path: ends in .safetensors.
        num_states: of each game, rounded up to a multiple of 16.
        seed: of the episodes.

    Raises:
        OSError: if the file cannot be written; one of that name stays as it was.
        EnvError, SpaceError, MaskError: as the envs give cause.
    """
    num_envs = ENVS_PER_GAME * len(games)
    envs = make_vector(games, num_envs, seed, vectorization=vectorization, num_actions=num_actions)
    seen: list[tuple[Tensor, Tensor]] = []
    with closing(envs):
        obs, mask = envs.reset()
        forget(policy)
        for _ in range(-(-num_states // ENVS_PER_GAME)):
            seen.append((obs, mask))
            step = envs.step(policy(obs, mask))
            obs, mask = step.obs, step.action_mask
            forget(policy, step.ended)
    all_obs, masks = (torch.cat(rows) for rows in zip(*seen, strict=True))
    metadata = {
        "format_version": FORMAT_VERSION,
        "games": json.dumps([played(game) for game in games]),
    }
    data = save({"obs": all_obs.contiguous(), "action_mask": masks.contiguous()}, metadata)
    replace_synced(path, data)
    return len(all_obs) // len(games)


def read_states(path: Path, games: Sequence[Game]) -> tuple[Tensor, Bool[Tensor, " B A"]]:
    """Return the observations [B, *obs] and masks of a file, rows of all games in turn.

    Args:
        games: that they have to be of.

    Raises:
        RecordedError: if the file is missing, corrupt, or of other games.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format_version") != FORMAT_VERSION:
                raise RecordedError(
                    f"{path} holds no recorded states of this version of rlmask; make it by "
                    "`rlmask record RUN FILE.safetensors`"
                )
            obs, mask = file.get_tensor("obs"), file.get_tensor("action_mask")
            recorded = json.loads(metadata["games"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise RecordedError(f"{path} cannot be read as recorded states: {error}") from error
    wanted = json.loads(json.dumps([played(game) for game in games]))
    if recorded != wanted:
        theirs = ", ".join(game["env_id"] for game in recorded)
        raise RecordedError(
            f"{path} is of {theirs}, with their own arguments and action_ids; the config's games "
            "are others, or in another order"
        )
    return obs, mask


def played(game: Game) -> dict[str, object]:
    """Return what a game is, as plain values, without where it has its mask."""
    settings = to_settings(game)
    return {name: settings[name] for name in ("env_id", "env_kwargs", "action_ids")}
