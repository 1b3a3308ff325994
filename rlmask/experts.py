"""Experts as teachers: from the run directory of any trainer, or from a function."""

import hashlib
import importlib
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlmask.networks import choose_device
from rlmask.policies import as_known
from rlmask.runs import ALGORITHMS, RunConfig, read_run, spec_of
from rlmask.teachers import Teacher, TeacherError, padded_obs
from rlmask.transfer import Initial, TransferError, initial_weights
from rlmask.types import ObsSpec, captured_specs
from rlmask.vector import Game, probe


def load_teachers(settings: Any) -> list[Teacher]:
    """Return the teachers of a distillation's settings, one a game.

    Raises:
        RunError: if one is a run without a checkpoint.
        TeacherError: if one is missing, or does not fit its game.
        CheckpointError: if every checkpoint of a run is corrupt.
        EnvError, SpaceError, MaskError: if a game cannot be played.
    """
    games = settings.all_games
    if len(settings.teachers) != len(games):
        raise TeacherError(
            f"teachers names {len(settings.teachers)} for {len(games)} games; give each a run "
            "directory or module:function, or let `rlmask distill` train them"
        )
    offsets = spec_of(settings, games).obs_offsets
    device = choose_device(settings.device)
    triples = zip(settings.teachers, games, offsets, strict=True)
    return [load_teacher(name, game, offset, device) for name, game, offset in triples]


def settled(config: RunConfig) -> RunConfig:
    """Return the config of a run with the runs that it needs found, and named from the root.

    Raises:
        RunError: if a run that it needs has no checkpoint.
        TeacherError: if a teacher is missing, or does not fit its game.
        TransferError: if the weights of `init_from` do not fit.
    """
    if config.options.init_from:
        check_initial(config)
        first = replace(config.options, init_from=absolute(config.options.init_from))
        config = replace(config, options=first)
    if config.algo != "distill":
        return config
    load_teachers(config.settings)
    paths = {
        "teachers": tuple(map(absolute, config.settings.teachers)),
        "recorded": absolute(config.settings.recorded),
    }
    return replace(config, settings=replace(config.settings, **paths))


def check_initial(config: RunConfig) -> None:
    """Raise `TransferError` unless the weights of `init_from` fit the network of a run.

    Raises:
        RunError, CheckpointError: as `initial_of`.
    """
    initial, settings = initial_of(config), config.settings
    spec = spec_of(settings, settings.all_games)
    make_network = ALGORITHMS[config.algo].make_network
    initial(make_network(settings, spec.obs, spec.action, torch.Generator()).state_dict())


def initial_of(config: RunConfig) -> Initial:
    """Return what makes the first weights of a run, of random ones and those of `init_from`.

    Raises:
        TransferError: if the algorithm cannot begin with given weights.
        RunError, CheckpointError: if there is no such run, or no good checkpoint.
    """
    if config.algo == "distill":
        raise TransferError("init_from is for ppo, dqn and pqn; a student begins with its teachers")
    source, state = read_run(Path(config.options.init_from))
    if "recurrent_ppo" in (config.algo, source.algo):
        raise TransferError(
            "init_from does not take weights of recurrent_ppo, nor give it any: its layers are no "
            "other network's. Set init_from to a run of ppo, dqn, pqn or distill, for one of these"
        )
    return partial(
        initial_weights,
        state["network"],
        parts=config.options.init_parts,
        source_stems=getattr(source.settings, "game_stems", False),
    )


def absolute(name: str) -> str:
    """Return a path from the root, if something is there; else the name as it is."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def load_teacher(name: str, game: Game, offset: int, device: torch.device) -> Teacher:
    """Return the teacher of a game.

    Args:
        name: a run directory, or module:function.
        offset: of the game's discrete observations within the union's.

    Raises:
        RunError: if it is a run without a checkpoint.
        TeacherError: if there is none of this name, or it does not fit the game.
    """
    _, obs, action = probe(game)
    ids = tuple(range(action.num_actions)) if game.action_ids is None else game.action_ids
    if (Path(name) / "config.yaml").is_file():
        known = from_run(Path(name), game, obs, len(ids), device)
    elif re.fullmatch(r"[\w.]+:\w+", name):
        known = from_function(name)
    else:
        raise TeacherError(f"teacher {name} is neither a run directory nor module:function")
    return Teacher(name=name, obs=obs, obs_offset=offset, action_ids=ids, **known)


def from_function(name: str) -> dict[str, Any]:
    """Return what a teacher knows whose scores come from a function (obs, mask) -> logits.

    Raises:
        TeacherError: if it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise TeacherError(f"teacher {name} cannot be imported: {error}") from error

    def score(obs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(function(obs, mask)), torch.zeros((len(mask), 0))

    return {"score": score, "kind": "policy"}


def from_run(
    run_dir: Path, game: Game, own: ObsSpec, num_actions: int, device: torch.device
) -> dict[str, Any]:
    """Return what a teacher knows whose scores come from the newest checkpoint of a run.

    Args:
        own: an observation of the game itself.
        num_actions: of the game itself.

    Raises:
        RunError: if it has no checkpoint yet.
        TeacherError: if it was trained on something else, or its scores are not of every action.
    """
    config, state = read_run(run_dir)
    if config.algo == "recurrent_ppo":
        raise TeacherError(
            f"teacher {run_dir} is a run of recurrent_ppo, whose scores depend on what the episode "
            "has shown before; a teacher scores states one by one. Train one by ppo, dqn or pqn"
        )
    if getattr(config.settings, "learned_mask", False):
        raise TeacherError(
            f"teacher {run_dir} is a run with a learned mask; it never learned scores for what "
            "that rules out, and a student does not see it. Train one with learned_mask: false"
        )
    seen, action = captured_specs(state)
    place = place_of(game, config, run_dir)
    action_ids = config.settings.all_games[place].action_ids
    ids = tuple(range(action.num_actions)) if action_ids is None else action_ids
    if len(ids) != num_actions:
        raise TeacherError(
            f"teacher {run_dir} knows {len(ids)} actions of {game.env_id}, which has {num_actions}"
        )
    check_obs(seen, own, run_dir, game)
    several = len(config.settings.all_games) > 1
    offset = 0
    if several and seen.kind == "discrete":
        offset = spec_of(config.settings, config.settings.all_games).obs_offsets[place]
    network = ALGORITHMS[config.algo].load_network(config.settings, state).to(device)
    columns = torch.tensor(ids, device=device)

    def score(obs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        known = as_known(padded_obs(obs, seen, offset), seen.torch_dtype).to(device)
        shape = (len(mask), action.num_actions)
        union_mask = torch.zeros(shape, dtype=torch.bool, device=device)
        union_mask.index_copy_(1, columns, mask.to(device))
        index = torch.full((len(mask),), place, device=device) if several else None
        scores, features = network.scores(known, union_mask, index)
        return scores.index_select(1, columns).to(mask.device), features.to(mask.device)

    return {
        "score": score,
        "kind": "policy" if config.algo in ("ppo", "distill") else "values",
        "num_features": config.settings.hidden_sizes[-1],
        "digest": digest_of(network),
    }


def place_of(game: Game, config: RunConfig, run_dir: Path) -> int:
    """Return which game of a run this is: of the same id, and of the same arguments if several are.

    Raises:
        TeacherError: if it is none of them.
    """
    games = config.settings.all_games
    alike = [place for place, other in enumerate(games) if other.env_id == game.env_id]
    same = [place for place in alike if dict(games[place].env_kwargs) == dict(game.env_kwargs)]
    if same or len(alike) == 1:
        return (same or alike)[0]
    names = ", ".join(other.env_id for other in games)
    raise TeacherError(f"teacher {run_dir} was trained on {names}, not on {game.env_id}")


def check_obs(seen: ObsSpec, own: ObsSpec, run_dir: Path, game: Game) -> None:
    """Raise `TeacherError` unless a teacher that sees `seen` can see a game's own observations."""
    is_alike = (seen.kind, seen.dtype, len(seen.shape)) == (own.kind, own.dtype, len(own.shape))
    pairs = zip((seen.n, *seen.shape), (own.n, *own.shape), strict=False)
    if not is_alike or any(theirs < ours for theirs, ours in pairs):
        raise TeacherError(
            f"teacher {run_dir} sees observations of {seen.dtype} {seen.shape or seen.n}, but "
            f"{game.env_id} shows {own.dtype} {own.shape or own.n}: was it trained with other "
            "env_kwargs?"
        )


def digest_of(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    weights: Mapping[str, Tensor] = network.state_dict()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
