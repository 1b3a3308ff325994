"""The one driver: log, evaluate and checkpoint while `train` yields.

A run is a directory:

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
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from rlmask import checkpoint, ppo
from rlmask.checkpoint import CheckpointError
from rlmask.config import ConfigError, build, read_yaml, suggest, to_settings
from rlmask.evaluate import Evaluation, evaluate, summarize
from rlmask.log import Log, plot_learning_curve, versions
from rlmask.types import Policy, Update
from rlmask.vector import join, make_vector

# name in a config -> settings, trainer, and the policy of a checkpoint
ALGORITHMS = {"ppo": (ppo.PPOConfig, ppo.train, ppo.load_policy)}


class RunError(ValueError):
    """A run directory is missing, in use, or in the way."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the driver does beside training; the result of the training does not depend on it."""

    eval_period: int = 0
    """Updates between two evaluations; 0: only at the end."""
    eval_episodes: int = 100
    """Greedy episodes of an evaluation, of each game."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints; 0: one after every update."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the field and the remedy.
        """
        if self.eval_period < 0 or self.checkpoint_seconds < 0:
            raise ValueError("eval_period and checkpoint_seconds must not be negative")
        if self.eval_episodes < 1:
            raise ValueError(f"eval_episodes is {self.eval_episodes}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All of a run: which algorithm, its settings, and the driver's."""

    algo: str
    settings: Any
    options: RunOptions


@runtime_checkable
class Display(Protocol):
    """How a run shows itself to the person who watches."""

    def start(self, run_dir: Path, total_steps: int, env_steps: int) -> None:
        """Called before the first update, with the env steps that are already done."""
        ...

    def update(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """Called after every update."""
        ...

    def say(self, text: str) -> None:
        """Called with one line of news."""
        ...

    def stop(self) -> None:
        """Called at the end, whatever the reason."""
        ...


def parse_config(settings: Mapping[str, Any], source: str) -> RunConfig:
    """Return the config of a run from flat settings, `algo` among them.

    Raises:
        ConfigError: names the source, the key, and the remedy.
    """
    algo = settings.get("algo")
    if algo not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        raise ConfigError(f"{source}: algo is {algo!r}; set it to one of {known}")
    cls = ALGORITHMS[algo][0]
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


def create(run_dir: Path, config: RunConfig) -> None:
    """Make a run directory with its config, whole or not at all.

    Raises:
        RunError: if there is something at that place already.
        EnvError, SpaceError, MaskError: if its games cannot be played.
    """
    if run_dir.exists():
        raise RunError(
            f"{run_dir} exists; go on with it by `rlmask train --resume {run_dir}`, "
            "or choose another --run-dir"
        )
    if config.settings.vectorization != "native":  # which would make all its envs for this
        join(config.settings.all_games, config.settings.num_actions)
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
        raise RunError(f"cannot make run directory {run_dir}: {error.strerror}") from error


def train(run_dir: Path, display: Display) -> Evaluation:
    """Train the run in a directory from where it stands; return the final evaluation.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after the update was finished and saved. A second signal
            exits at once.
        RunError, ConfigError, CheckpointError: if the run cannot be gone on with.
        EnvError, MaskError, FloatingPointError, ...: as training gives cause; the last checkpoint
            stands, and the run can be resumed from it.
    """
    config = read_config(run_dir)
    state, at = newest_checkpoint(run_dir, display.say)
    with locked(run_dir), Log(run_dir, at) as log, stop_on_signal(display.say) as stop_requested:
        return _train(run_dir, config, state, log, display, stop_requested)


def _train(
    run_dir: Path,
    config: RunConfig,
    state: dict[str, Any] | None,
    log: "Log",
    display: Display,
    stop_requested: Callable[[], int],
) -> Evaluation:
    _, train_algo, _ = ALGORITHMS[config.algo]
    settings, options = config.settings, config.options
    run_state = state["run"] if state else {"seconds": 0.0, "env_steps": 0}
    start = time.perf_counter()
    before, done = run_state["seconds"], run_state["env_steps"]
    saved_at, last_time = start, start
    evaluation = None
    updates = train_algo(settings, resume=state)
    display.start(run_dir, settings.num_updates * settings.batch_size, done)
    try:
        for update in updates:
            now = time.perf_counter()
            metrics = dict(update.metrics)
            metrics["speed/env_steps_per_second"] = settings.batch_size / (now - last_time)
            is_last = update.update == settings.num_updates
            if is_last or (options.eval_period and update.update % options.eval_period == 0):
                evaluation, by_name = evaluate_games(settings, update.policy, options.eval_episodes)
                metrics.update(by_name)
            log.write(update.update, update.env_steps, before + now - start, metrics)
            display.update(update.env_steps, metrics)
            stopping = stop_requested()
            if is_last or stopping or now - saved_at >= options.checkpoint_seconds:
                seconds = before + time.perf_counter() - start
                run = {"seconds": seconds, "env_steps": update.env_steps}
                log.flush()
                save(run_dir, update, run)
                saved_at = time.perf_counter()
            if stopping and not is_last:
                raise Interrupted(stopping)
            last_time = time.perf_counter()
    finally:
        updates.close()  # closes the envs
        display.stop()
    if evaluation is None:  # the run was complete already
        evaluation, _ = evaluate_games(settings, load(run_dir), options.eval_episodes)
    plot_learning_curve(run_dir)
    result = json.dumps(asdict(evaluation), indent=1)
    checkpoint.write_synced(run_dir / "result.json", result.encode())
    return evaluation


def evaluate_games(
    settings: Any,
    policy: Policy,
    num_episodes: int,
    *,
    seed: int | None = None,
    use_mask: bool = True,
) -> tuple[Evaluation, dict[str, float]]:
    """Evaluate a policy on every game of a run; return all figures together, and by metric name.

    Args:
        num_episodes: of each game.
        seed: of the episodes; None: the run's. Training never sees the episodes of any seed here.
        use_mask: False hides the mask from the policy, see `evaluate`.
    """
    games = settings.all_games
    envs_per_game = min(num_episodes, 16)
    envs = make_vector(
        games,
        envs_per_game * len(games),
        settings.seed if seed is None else seed,
        vectorization="native" if settings.vectorization == "native" else "sync",
        num_actions=settings.num_actions,
        stream=1,
        enforce=use_mask,
    )
    try:
        episodes = evaluate(policy, envs, num_episodes * len(games), use_mask=use_mask)
    finally:
        envs.close()
    by_name = {}
    for index, game in enumerate(games):
        figures = summarize([episode for episode in episodes if episode.game == index])
        suffix = f"/{game.env_id}" if len(games) > 1 else ""
        by_name.update({f"eval/{name}{suffix}": value for name, value in asdict(figures).items()})
    return summarize(episodes), by_name


def load(run_dir: str | Path, *, greedy: bool = True, seed: int = 0) -> Policy:
    """Return the policy of a run's newest good checkpoint.

    Args:
        run_dir: a directory that `rlmask train` made.
        greedy: always the best valid action; otherwise draw from the softmax over the valid ones.
        seed: of the draws.

    Raises:
        RunError: if there is no run, or it has no checkpoint yet.
        CheckpointError: if every checkpoint is corrupt.
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    state, _ = newest_checkpoint(run_dir, lambda text: print(text, file=sys.stderr))
    if state is None:
        raise RunError(f"{run_dir} has no checkpoint yet; train it by `rlmask train --resume`")
    _, _, load_policy = ALGORITHMS[config.algo]
    return load_policy(config.settings, state, greedy=greedy, seed=seed)


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


def save(run_dir: Path, update: Update, run: Mapping[str, Any]) -> None:
    """Write a checkpoint of a run and remove all but the newest two.

    Raises:
        CheckpointError: if it cannot be written; the earlier ones stay.
    """
    directory = run_dir / "checkpoints" / f"{update.update:06d}"
    directory.parent.mkdir(exist_ok=True)
    if directory.exists():  # it was corrupt, else this run would have begun after it
        _remove(directory)
    checkpoint.save(directory, {**update.capture(), "run": dict(run)})
    for old in checkpoints(run_dir)[:-2]:
        _remove(old)


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    found = (run_dir / "checkpoints").glob("[0-9]*")
    return sorted(found, key=lambda path: int(path.name))


def newest_checkpoint(
    run_dir: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, int]:
    """Return the state of the newest good checkpoint and its update; None and 0 if there is none.

    Raises:
        CheckpointError: if there are checkpoints, but none is good.
    """
    problems = []
    for directory in reversed(checkpoints(run_dir)):
        try:
            state = checkpoint.load(directory)
        except CheckpointError as error:
            problems.append(error)
            say(f"{error}; trying the one before")
        else:
            return state, state["update"]
    if problems:
        raise CheckpointError(
            f"no checkpoint of {run_dir} is good; delete {run_dir / 'checkpoints'} to start over"
        )
    return None, 0


def _remove(directory: Path) -> None:
    doomed = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)  # at once, so that nobody sees half of it
    shutil.rmtree(doomed)


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


class Interrupted(Exception):
    """A signal ended the run after it was saved; `exit_code` is 128 plus the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


@contextmanager
def stop_on_signal(say: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Give a function that returns the first SIGINT or SIGTERM received, else 0.

    The handler only takes a note; a second signal exits at once.
    """
    received = 0

    def handle(signum: int, frame: Any) -> None:
        nonlocal received
        if received:
            os._exit(128 + signum)
        received = signum
        say(f"{signal.Signals(signum).name}: finishing this update and saving; again to exit now")

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
