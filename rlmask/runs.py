"""Run directories: what is in them, and how it gets there whole.

config.yaml          the algorithm and all of its settings
versions.json        rlmask, Python and packages, git commit, command line
metrics.jsonl        one line an update
tensorboard/         the same for TensorBoard
checkpoints/000042/  the newest two; see `rlmask.checkpoint`
learning_curve.png   return over env steps
result.json          the final evaluation
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from rlmask import checkpoint, distill, dqn, ppo, pqn, recurrent_ppo
from rlmask.checkpoint import CheckpointError
from rlmask.config import ConfigError, build, read_yaml, suggest, to_settings
from rlmask.log import versions
from rlmask.networks import choose_device
from rlmask.transfer import Parts
from rlmask.types import Update
from rlmask.vector import Game, VectorSpec, join, make_vector


class Algorithm(NamedTuple):
    """What a name in a config stands for: settings, trainer, policy and networks."""

    config: Any
    train: Callable[..., Any]
    make_network: Callable[..., Any]
    load_policy: Callable[..., Any]
    load_network: Callable[..., Any]


ALGORITHMS = {
    "ppo": Algorithm(ppo.PPOConfig, ppo.train, ppo.make_network, ppo.load_policy, ppo.load_network),
    "dqn": Algorithm(dqn.DQNConfig, dqn.train, dqn.make_network, dqn.load_policy, dqn.load_network),
    "pqn": Algorithm(pqn.PQNConfig, pqn.train, pqn.make_network, pqn.load_policy, pqn.load_network),
    "recurrent_ppo": Algorithm(
        recurrent_ppo.RecurrentPPOConfig,
        recurrent_ppo.train,
        recurrent_ppo.make_network,
        recurrent_ppo.load_policy,
        recurrent_ppo.load_network,
    ),
    "distill": Algorithm(
        distill.DistillConfig,
        distill.train,
        distill.make_network,
        distill.load_policy,
        distill.load_network,
    ),
}


# what may differ between a checkpoint and the run that goes on from it
MAY_CHANGE = ("total_steps", "device", "num_threads", "debug", "teachers", "recorded")


class RunError(ValueError):
    """A run directory is missing, in use, or in the way."""


class RunExistsError(RunError):
    """There is something at the place of a new run."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the driver does beside training, whose result depends on `init_from` alone of these."""

    eval_period: int = 0
    """Updates between two evaluations; 0: only at the end."""
    eval_episodes: int = 100
    """Episodes of an evaluation, of each game."""
    eval_stochastic: bool = False
    """Draw actions in evaluations as training does, in place of always taking the best one."""
    eval_max_episode_steps: int = 27_000
    """Cut an episode of an evaluation here: a greedy policy can walk in circles for ever."""
    eval_env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of all envs of an evaluation besides, or in place of, their env_kwargs."""
    init_from: str = ""
    """Run whose weights are the first ones, in place of random ones (`rlmask transfer`)."""
    init_parts: Parts = "trunk_and_head"
    """What is taken of it: trunk, all layers but the last; or trunk_and_head."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints; 0: one after every update."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the field and the remedy.
        """
        if self.eval_period < 0 or not self.checkpoint_seconds >= 0:
            raise ValueError("eval_period and checkpoint_seconds must not be negative")
        for name in ("eval_episodes", "eval_max_episode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All of a run: which algorithm, its settings, and the driver's."""

    algo: str
    settings: Any
    options: RunOptions

    @property
    def eval_games(self) -> tuple[Game, ...]:
        """The games as they are played in an evaluation."""
        more = self.options.eval_env_kwargs
        games = self.settings.all_games
        return tuple(replace(game, env_kwargs={**game.env_kwargs, **more}) for game in games)

    @property
    def eval_vectorization(self) -> Literal["sync", "native"]:
        """How envs are stepped that do not train: in this process."""
        return "native" if self.settings.vectorization == "native" else "sync"


def parse_config(settings: Mapping[str, Any], source: str) -> RunConfig:
    """Return the config of a run from flat settings, `algo` among them.

    Raises:
        ConfigError: names the source, the key, and the remedy.
    """
    algo = settings.get("algo")
    if not isinstance(algo, str) or algo not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        raise ConfigError(f"{source}: algo is {algo!r}; set it to one of {known}")
    cls = ALGORITHMS[algo].config
    option_names = {field.name for field in fields(RunOptions)}
    names = {field.name for field in fields(cls)} | option_names
    for key in settings:
        if key != "algo" and key not in names:
            raise ConfigError(f"{source}: unknown key `{key}`{suggest(key, sorted(names))}")
    own = {k: v for k, v in settings.items() if k not in option_names and k != "algo"}
    options = {k: v for k, v in settings.items() if k in option_names}
    return RunConfig(
        algo=algo,
        settings=build(cls, own, source),
        options=build(RunOptions, options, source),
    )


def create(run_dir: Path, config: RunConfig) -> list[str]:
    """Make a run directory with its config, whole or not at all; say where each game has its mask.

    Raises:
        RunExistsError: if there is something at that place already.
        RunError: if it cannot be written.
        DeviceError: if its device does not exist.
        EnvError, SpaceError, MaskError: if its games cannot be played.
    """
    exists = RunExistsError(
        f"{run_dir} exists; go on with it by `rlmask train --resume {run_dir}`, "
        "or choose another --run-dir"
    )
    if run_dir.exists():
        raise exists
    # `auto` is settled here: a run does not change its device when it is resumed elsewhere
    device = choose_device(config.settings.device).type
    config = replace(config, settings=replace(config.settings, device=device))
    spec = spec_of(config.settings, config.settings.all_games)
    if config.options.eval_env_kwargs:
        as_evaluated = spec_of(config.settings, config.eval_games)
        if (as_evaluated.obs, as_evaluated.action) != (spec.obs, spec.action):
            raise ConfigError(
                "eval_env_kwargs change the observations or the actions; a policy plays with those "
                "that it was trained with"
            )
    partial = run_dir.with_name(f".{run_dir.name}.{os.getpid()}.partial")
    settings = {"algo": config.algo, **to_settings(config.settings), **to_settings(config.options)}
    try:
        partial.mkdir(parents=True)
        text = yaml.safe_dump(settings, sort_keys=False)
        checkpoint.write_synced(partial / "config.yaml", text.encode())
        checkpoint.write_synced(
            partial / "versions.json", json.dumps(versions(), indent=1).encode()
        )
        partial.rename(run_dir)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if run_dir.exists():  # another process was quicker
            raise exists from error
        raise RunError(f"cannot make run directory {run_dir}: {error.strerror}") from error
    return [
        f"{game.env_id}: no mask found, every action counts as valid"
        if game.mask_source == "none"
        else f"{game.env_id}: masks from `{game.mask_source}`"
        for game in spec.games
    ]


def spec_of(settings: Any, games: tuple[Game, ...]) -> VectorSpec:
    """Return what the envs of a run have in common, by making them once."""
    if settings.vectorization != "native":
        return join(games, settings.num_actions)
    envs = make_vector(
        games, len(games), 0, vectorization="native", num_actions=settings.num_actions
    )
    envs.close()
    return envs.spec


def read_config(run_dir: Path) -> RunConfig:
    """Return the config of a run.

    Raises:
        RunError: if the directory is not a run.
        ConfigError: if its config was edited into something that does not hold.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise RunError(f"{run_dir} is not a run: it has no config.yaml")
    return parse_config(read_yaml(path), str(path))


def save_checkpoint(
    run_dir: Path, update: Update, run: Mapping[str, Any], previous: Path | None
) -> Path:
    """Write a checkpoint of a run, remove all but the newest two, and return where it is.

    Args:
        run: what the driver needs to go on, beside the trainer's own state.
        previous: the checkpoint that this process loaded or wrote last; what has not changed since
            is shared with it. The version of a chunk says nothing about any other checkpoint.

    Raises:
        CheckpointError: if it cannot be written; the earlier ones stay.
    """
    directory = run_dir / "checkpoints" / f"{update.update:06d}"
    directory.parent.mkdir(exist_ok=True)
    if directory.exists():  # it was corrupt, else this run would have begun after it
        aside = _set_aside(directory)
        previous = aside if previous == directory else previous
    checkpoint.save(directory, {**update.capture(), "run": dict(run)}, previous)
    for old in checkpoints(run_dir)[:-2]:
        _remove(old)
    for ending in ("partial", "old"):  # set aside, or left by a process killed while it saved
        for remains in directory.parent.glob(f".*.{ending}"):
            shutil.rmtree(remains, ignore_errors=True)
    return directory


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    found = [path for path in (run_dir / "checkpoints").glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def newest_checkpoint(
    run_dir: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, Path | None]:
    """Return the state of the newest good checkpoint and where it is; None if there is none.

    Raises:
        CheckpointError: if there are checkpoints, but none is good.
    """
    found = checkpoints(run_dir)
    for index, directory in reversed(list(enumerate(found))):
        try:
            state = checkpoint.load(directory)
        except CheckpointError as error:
            if index == 0:
                raise CheckpointError(
                    f"no checkpoint of {run_dir} is good ({error}); "
                    f"delete {run_dir / 'checkpoints'} to start over"
                ) from error
            say(f"{error}; trying the one before")
        else:
            return state, directory
    return None, None


def _remove(directory: Path) -> None:
    shutil.rmtree(_set_aside(directory))  # under another name, so that nobody sees half of it


def _set_aside(directory: Path) -> Path:
    aside = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    return directory.rename(aside)


def settings_text(config: RunConfig) -> str:
    """Return the algorithm's settings as YAML, which can hold any keyword of an env."""
    return yaml.safe_dump(to_settings(config.settings), sort_keys=False)


def check_unchanged(config: RunConfig, state: Mapping[str, Any], path: Path) -> None:
    """Raise if a run's config no longer describes what its checkpoint was trained with.

    Raises:
        ConfigError: names the first setting that differs.
    """
    before, now = yaml.safe_load(state["run"]["settings"]), to_settings(config.settings)
    is_native = "native" in (before["vectorization"], now["vectorization"])
    may_change = (*MAY_CHANGE, *(() if is_native else ("vectorization",)))
    for name in filter(before.__contains__, now):  # an older version may not know them all
        # as text: NaN is not equal to itself
        if name not in may_change and yaml.safe_dump(now[name]) != yaml.safe_dump(before[name]):
            raise ConfigError(
                f"{path}: {name} is {now[name]!r}, but the checkpoint was trained with "
                f"{before[name]!r}; change it back, or start another run"
            )


def read_run(run_dir: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Return a run's config and the state of its newest good checkpoint.

    Raises:
        RunError: if there is no run, or it has no checkpoint yet.
        ConfigError: if its config no longer describes what the checkpoint was trained with.
        CheckpointError: if every checkpoint is corrupt.
    """
    config = read_config(run_dir)
    state, _ = newest_checkpoint(run_dir, lambda text: print(text, file=sys.stderr))
    if state is None:
        raise RunError(f"{run_dir} has no checkpoint yet; train it by `rlmask train --resume`")
    check_unchanged(config, state, run_dir / "config.yaml")
    return config, state


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep a second process from writing to the same run.

    Raises:
        RunError: if another process has the lock; the lock ends with its process, however that
        dies.
    """
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{run_dir} is being trained by another process") from error
        yield
