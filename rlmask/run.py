"""The one driver: log, evaluate and checkpoint while `train` yields."""

import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from rlmask.checkpoint import replace_synced
from rlmask.episodes import metric_suffixes
from rlmask.evaluate import Evaluation, evaluate, summarize
from rlmask.experts import initial_of, load_teachers
from rlmask.log import Log, plot_learning_curve
from rlmask.runs import (
    ALGORITHMS,
    RunConfig,
    RunError,
    check_unchanged,
    locked,
    newest_checkpoint,
    read_config,
    read_run,
    save_checkpoint,
    settings_text,
    spec_of,
)
from rlmask.set_network import rows_of
from rlmask.torso import NetworkError
from rlmask.types import ActionSpec, Episode, ObsSpec, Policy, Update, captured_specs
from rlmask.vector import Game, game_names, make_vector


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
    with locked(run_dir), stop_on_signal(display.say) as stop_requested:
        state, saved = newest_checkpoint(run_dir, display.say)
        if state is not None:
            check_unchanged(config, state, run_dir / "config.yaml")
        with Log(run_dir, state["update"] if state else 0) as log:
            return _train(run_dir, config, state, saved, log, display, stop_requested)


def _train(
    run_dir: Path,
    config: RunConfig,
    state: dict[str, Any] | None,
    saved: Path | None,
    log: "Log",
    display: Display,
    stop_requested: Callable[[], int],
) -> Evaluation:
    settings, options = config.settings, config.options
    run_state = state["run"] if state else {"seconds": 0.0, "env_steps": 0}
    start = time.perf_counter()
    before, done = run_state["seconds"], run_state["env_steps"]
    saved_at, last_time = start, start
    evaluation = None
    more: dict[str, Any] = {"teachers": load_teachers(settings)} if config.algo == "distill" else {}
    if options.init_from and state is None:
        more["initial"] = initial_of(config)
    updates = ALGORITHMS[config.algo].train(settings, resume=state, **more)
    display.start(run_dir, settings.num_updates * settings.steps_per_update, done)
    try:
        for update in updates:
            if state:  # restored by now; the trainer's frame would keep it to the end
                state.clear()
            now = time.perf_counter()
            metrics = dict(update.metrics)
            metrics["speed/env_steps_per_second"] = settings.steps_per_update / (now - last_time)
            is_last = update.update == settings.num_updates
            failure = None
            if is_last or (options.eval_period and update.update % options.eval_period == 0):
                try:
                    evaluation, by_name = evaluate_games(config, policy_of(config, update))
                    metrics.update(by_name)
                except Exception as error:  # raised below, after the update is saved
                    failure = error
            log.write(update.update, update.env_steps, before + now - start, metrics)
            display.update(update.env_steps, metrics)
            stopping = stop_requested()
            is_due = now - saved_at >= options.checkpoint_seconds
            if is_last or stopping or is_due or failure:
                seconds = before + time.perf_counter() - start
                text = settings_text(config)
                run = {"seconds": seconds, "env_steps": update.env_steps, "settings": text}
                log.flush()
                saved = save_checkpoint(run_dir, update, run, saved)
                saved_at = time.perf_counter()
            if failure is not None:
                raise failure
            if stopping and not is_last:
                raise Interrupted(stopping)
            last_time = time.perf_counter()
    finally:
        updates.close()  # closes the envs
        display.stop()
    if evaluation is None:  # the run was complete already
        evaluation, _ = evaluate_games(config, load(run_dir, greedy=not options.eval_stochastic))
    plot_learning_curve(run_dir)
    result = json.dumps(evaluation.as_json(), indent=1)
    replace_synced(run_dir / "result.json", result.encode())
    return evaluation


def policy_of(config: RunConfig, update: Update) -> Policy:
    """Return the policy that an evaluation plays."""
    if not config.options.eval_stochastic:
        return update.policy
    settings, load_policy = config.settings, ALGORITHMS[config.algo].load_policy
    return load_policy(settings, update.capture(), greedy=False, seed=settings.seed)


def evaluate_games(
    config: RunConfig,
    policy: Policy,
    *,
    num_episodes: int | None = None,
    seed: int | None = None,
    use_mask: bool = True,
) -> tuple[Evaluation, dict[str, float]]:
    """Evaluate a policy on every game of a run; return all figures together, and by metric name.

    Arguments and warnings are those of `play_games`.
    """
    episodes = play_games(config, policy, num_episodes=num_episodes, seed=seed, use_mask=use_mask)
    games, by_name = config.eval_games, {}
    for index, suffix in enumerate(metric_suffixes(game_names(games))):
        figures = summarize([episode for episode in episodes if episode.game == index])
        by_name.update({f"eval/{key}{suffix}": value for key, value in asdict(figures).items()})
    return summarize(episodes), by_name


def play_games(
    config: RunConfig,
    policy: Policy,
    *,
    num_episodes: int | None = None,
    seed: int | None = None,
    use_mask: bool = True,
) -> list[Episode]:
    """Play every game of a run with a policy, and return the episodes.

    Warns if an episode was cut.

    Args:
        num_episodes: of each game; None: as many as the run's config says.
        seed: of the episodes; None: the run's. Training never sees the episodes of any seed here.
        use_mask: False hides the mask from the policy, see `evaluate`.
    """
    settings, options = config.settings, config.options
    num_episodes = options.eval_episodes if num_episodes is None else num_episodes
    torch.set_num_threads(settings.num_threads)  # sums round differently with their number
    games = config.eval_games
    envs_per_game = min(num_episodes, 16)
    envs = make_vector(
        games,
        envs_per_game * len(games),
        settings.seed if seed is None else seed,
        vectorization=config.eval_vectorization,
        num_actions=settings.num_actions,
        stream=1,
        enforce=use_mask,
        max_episode_steps=options.eval_max_episode_steps,
    )
    try:
        episodes = evaluate(
            policy,
            envs,
            num_episodes * len(games),
            use_mask=use_mask,
            max_episode_steps=options.eval_max_episode_steps + 1,  # not cut by the envs
        )
    finally:
        envs.close()
    cut = sum(e.episode_length >= options.eval_max_episode_steps for e in episodes)
    if cut:
        warnings.warn(
            f"{cut} of {len(episodes)} evaluation episodes were cut after "
            f"{options.eval_max_episode_steps} steps (eval_max_episode_steps)",
            CutWarning,
            stacklevel=2,
        )
    return episodes


class CutWarning(UserWarning):
    """Episodes of an evaluation did not end by themselves."""


def load(
    run_dir: str | Path,
    *,
    greedy: bool = True,
    seed: int = 0,
    games: tuple[Game, ...] | None = None,
) -> Policy:
    """Return the policy of a run's newest good checkpoint.

    Args:
        run_dir: a directory that `rlmask train` made.
        greedy: always the best valid action; otherwise as in training: drawn from PPO's softmax
            over the valid ones, or epsilon-greedy at the last epsilon of DQN and PQN.
        seed: of the draws.
        games: to play in place of its own; of another size only if its network fits any, and with
            rows of the same numbers.

    Raises:
        RunError: if there is no run, it has no checkpoint yet, or its network does not fit `games`.
        CheckpointError: if every checkpoint is corrupt.
        EnvError, SpaceError, MaskError: if `games` cannot be played.
    """
    run_dir = Path(run_dir)
    config, state = read_run(run_dir)
    own = captured_specs(state)
    if games is not None:
        state.update(spec_of(config.settings, games).capture())
    obs, action = captured_specs(state)
    is_set = getattr(config.settings, "encoder", "layers") == "set"
    if (obs, action) != own and not (is_set and have_the_same_rows(own, (obs, action))):
        remedy = "train it with `encoder: set` for problems of any size"
        if is_set:
            remedy = "its rows are of another width: play problems of the game it was trained on"
        raise RunError(
            f"the policy of {run_dir} is for {own[1].num_actions} actions and observations of "
            f"{own[0].shape or own[0].n}, not for {action.num_actions} and {obs.shape or obs.n}; "
            f"{remedy}"
        )
    load_policy = ALGORITHMS[config.algo].load_policy
    return load_policy(config.settings, state, greedy=greedy, seed=seed)


def have_the_same_rows(*specs: tuple[ObsSpec, ActionSpec]) -> bool:
    """Return whether a network for sets that is made for one of them fits all."""
    try:
        return len({rows_of(obs, action) for obs, action in specs}) == 1
    except NetworkError:  # no rows at all
        return False


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
