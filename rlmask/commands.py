"""What each command of `rlmask` does with its arguments."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from rlmask import run, runs
from rlmask.board import Board
from rlmask.config import ConfigError, read_yaml, to_settings
from rlmask.display import make_display, writing
from rlmask.evaluate import Evaluation
from rlmask.experiment import Experiment, read_experiment
from rlmask.experts import settled
from rlmask.flags import check_range, games_of, parse
from rlmask.pipeline import run_experiment
from rlmask.record import check_video_path, record_video
from rlmask.recorded import record_states
from rlmask.report import read_results, sentence
from rlmask.transfer_study import study
from rlmask.vector import Game, MaskSource, check_env, list_envs


def train(arguments: list[str]) -> None:
    """`rlmask train`: a new run from a config, or an old one with --resume."""
    if "--resume" in arguments or any(a.startswith("--resume=") for a in arguments):
        run_dir = parse(Resume, "train", arguments).resume
    else:
        run_dir = create_run(arguments)
    evaluation = run.train(run_dir, make_display())
    with writing():
        stochastic = runs.read_config(run_dir).options.eval_stochastic
        how = "stochastic" if stochastic else "greedy"
        print_evaluation(evaluation, f"final evaluation, {how}")
        print(f"TensorBoard     tensorboard --logdir {run_dir / 'tensorboard'}")
        print(f"learning curve  {run_dir / 'learning_curve.png'}")
        print(f"checkpoint      {runs.checkpoints(run_dir)[-1]}")


@dataclass(frozen=True)
class Resume:
    """Go on with a run, exactly where it stopped, with the settings it was started with."""

    resume: Path
    """The run directory."""


def create_run(arguments: list[str]) -> Path:
    """Make the run directory that the arguments ask for; return it."""
    asks_for_help = "-h" in arguments or "--help" in arguments
    path = next((Path(a) for a in arguments if a.endswith((".yaml", ".yml"))), None)
    if path is None and not asks_for_help:
        raise ConfigError(
            "rlmask train wants a config, such as configs/ppo/taxi.yaml, or --resume RUN"
        )
    if path is None:
        config = runs.parse_config({"algo": "ppo", "env": "Taxi-v4"}, "defaults")
    else:
        settings = read_yaml(path)
        if not settings.keys() & {"env", "games"}:  # left to the command line
            settings |= games_of(arguments) or ({"env": "..."} if asks_for_help else {})
        config = runs.parse_config(settings, str(path))
    flags = make_dataclass(
        "Train",
        [
            ("config", Positional[Path]),
            ("settings", Annotated[type(config.settings), arg(name="")]),
            ("options", Annotated[runs.RunOptions, arg(name="")]),
            (
                "run_dir",
                Annotated[Path | None, arg(help="Where the run goes.")],
                field(default=None),
            ),
        ],
    )
    flags.__doc__ = (
        "Train a run. The config gives the settings; flags override it.\n\n"
        "Or: rlmask train --resume RUN, which goes on with a run exactly where it stopped."
    )
    default = flags(path or Path("configs/ppo/taxi.yaml"), config.settings, config.options)
    chosen = parse(flags, "train", arguments, default)
    # flags are checked like the config they override: once more, in one place
    settings = {"algo": config.algo, **to_settings(chosen.settings), **to_settings(chosen.options)}
    config = settled(runs.parse_config(settings, "command line"))
    if chosen.run_dir is None:
        run_dir, news = create_default(f"{chosen.config.stem}-{config.settings.seed}", config)
    else:
        run_dir, news = chosen.run_dir, runs.create(chosen.run_dir, config)
    with writing():
        print(*news, sep="\n")
    return run_dir


def create_default(name: str, config: runs.RunConfig) -> tuple[Path, list[str]]:
    """Make `runs/<name>-<time>`, with a number behind it if there is one from this second."""
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir, number = first, 1
    while True:
        try:
            return run_dir, runs.create(run_dir, config)
        except runs.RunExistsError:
            number += 1
            run_dir = first.with_name(f"{first.name}-{number}")


@dataclass(frozen=True)
class Eval:
    """Play episodes with the policy of a run's newest checkpoint."""

    run: Positional[Path]
    """The run directory."""
    episodes: int = 100
    """How many episodes, of each game."""
    stochastic: bool = False
    """Draw actions from the policy; otherwise take the best valid one."""
    without_mask: bool = False
    """Hide the mask from the policy, to see how much it depends on it."""
    seed: int | None = None
    """Of the episodes and draws; otherwise the run's seed. Training never saw these episodes."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the envs in place of the run's: '{num_customers: 50}'."""
    json: bool = False
    """Print the figures as one JSON object."""
    video: Path | None = None
    """Record one episode of each game to this file (.gif, or .mp4 with the extra `video`)."""


def evaluate(arguments: list[str]) -> None:
    """`rlmask eval`."""
    options = parse(Eval, "eval", arguments)
    check_range("episodes", options.episodes, 1)
    check_range("seed", options.seed or 0, 0)
    if options.video is not None:
        check_video_path(options.video)  # before playing for minutes
    config = runs.read_config(options.run)
    more = {**config.options.eval_env_kwargs, **options.env_kwargs}
    config = replace(config, options=replace(config.options, eval_env_kwargs=more))
    seed = config.settings.seed if options.seed is None else options.seed
    games = config.eval_games if options.env_kwargs else None
    policy = run.load(options.run, greedy=not options.stochastic, seed=seed, games=games)
    evaluation, by_name = run.evaluate_games(
        config,
        policy,
        num_episodes=options.episodes,
        seed=seed,
        use_mask=not options.without_mask,
    )
    with writing():
        if options.json:
            print(json.dumps(evaluation.as_json()))
        else:
            how = "stochastic" if options.stochastic else "greedy"
            mask = ", mask hidden" if options.without_mask else ""
            print_evaluation(evaluation, f"{options.run.resolve().name}, {how}{mask}")
            if len(config.settings.all_games) > 1:
                for name, value in by_name.items():
                    print(f"{name}  {value:.4g}")
    if options.video is not None:
        num_actions = config.settings.num_actions
        record_video(config.eval_games, num_actions, policy, options.video, seed)
        if not options.json:
            with writing():
                print(f"video  {options.video}")


@dataclass(frozen=True)
class Record:
    """Write what a run's policy does, of all its games at once: a video, or the states it sees."""

    run: Positional[Path]
    """The run directory."""
    output: Positional[Path]
    """.gif, .mp4 (with the extra `video`): a video; .safetensors: states to distil from."""
    stochastic: bool = False
    """Draw actions from the policy; otherwise take the best valid one."""
    states: int = 20_000
    """How many states of each game a file of states has."""
    seed: int | None = None
    """Of the episodes and draws; otherwise the run's seed."""


def record(arguments: list[str]) -> None:
    """`rlmask record`."""
    options = parse(Record, "record", arguments)
    check_range("seed", options.seed or 0, 0)
    check_range("states", options.states, 1)
    is_video = options.output.suffix != ".safetensors"
    if is_video:
        check_video_path(options.output)
    config = runs.read_config(options.run)
    settings = config.settings
    seed = settings.seed if options.seed is None else options.seed
    policy = run.load(options.run, greedy=not options.stochastic, seed=seed)
    if is_video:
        record_video(config.eval_games, settings.num_actions, policy, options.output, seed)
        said = f"video  {options.output}"
    else:
        count = record_states(
            settings.all_games,
            settings.num_actions,
            policy,
            options.output,
            num_states=options.states,
            seed=seed,
            vectorization=config.eval_vectorization,
        )
        said = f"{count} states of each game  {options.output}"
    with writing():
        print(said)


@dataclass(frozen=True)
class Distill:
    """Train experts, distil them into one student, evaluate, and write a report.

    What is done already is not done again: the same command goes on after Ctrl-C, and a report of
    more variants trains only what is new.
    """

    config: Positional[Path]
    """The experiment, such as configs/distill/grid_suite.yaml."""
    directory: Path | None = None
    """Where everything goes; otherwise runs/ and the name of the config."""
    num_workers: int = 0
    """Processes at once; 0: as many as there are cores."""


def distill(arguments: list[str]) -> None:
    """`rlmask distill`."""
    options = parse(Distill, "distill", arguments)
    check_range("num-workers", options.num_workers, 0)
    directory = options.directory or Path("runs") / options.config.stem
    experiment = Experiment(read_experiment(options.config), directory)
    page = run_experiment(experiment, options.num_workers, Board())
    with writing():
        print(sentence(read_results(directory / "report.json")))
        print(f"report  {page}")


@dataclass(frozen=True)
class Transfer:
    """Learn a game that a student has not seen, from its weights and from random ones.

    The same config and seeds with random weights, the student's trunk, and its trunk and head; what
    is done already is not done again.
    """

    student: Positional[Path]
    """Run directory of the student."""
    config: Positional[Path]
    """The new game: a config of ppo, dqn or pqn, with the student's layers."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of each way to begin."""
    directory: Path | None = None
    """Where everything goes; otherwise runs/transfer- and the name of the config."""
    num_workers: int = 0
    """Processes at once; 0: as many as there are cores."""


def transfer(arguments: list[str]) -> None:
    """`rlmask transfer`."""
    options = parse(Transfer, "transfer", arguments)
    check_range("num-workers", options.num_workers, 0)
    if not options.seeds:
        raise ConfigError("--seeds names no seed")
    directory = options.directory or Path("runs") / f"transfer-{options.config.stem}"
    settings = read_yaml(options.config)
    runs.parse_config(settings, str(options.config))
    student, workers = options.student, options.num_workers
    text = study(student, settings, options.seeds, directory, workers, Board())
    with writing():
        print(text)
        print(f"picture  {directory / 'transfer.svg'}")


@dataclass(frozen=True)
class CheckEnv:
    """Test whether an env keeps the mask contract; only valid actions are sampled."""

    env: Positional[str]
    """Gymnasium id; `module:Name-v0` imports the module first."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the env, as YAML."""
    mask_source: MaskSource = "auto"
    """Where the env should have its mask."""
    steps: int = 5000
    """How many steps to play."""
    seed: int = 0
    """Of the episodes and the choices."""


def check(arguments: list[str]) -> None:
    """`rlmask check-env`."""
    options = parse(CheckEnv, "check-env", arguments)
    check_range("steps", options.steps, 1)
    check_range("seed", options.seed, 0)
    game = Game(env_id=options.env, env_kwargs=options.env_kwargs, mask_source=options.mask_source)
    findings = check_env(game, options.steps, options.seed)
    console = Console(highlight=False, soft_wrap=True)
    style = {"ok": "green", "note": "yellow", "error": "bold red"}
    with writing():
        for finding in findings:
            level = finding.level
            console.print(f"{level:>5}", finding.text, style=style[level], markup=False)
    if any(finding.level == "error" for finding in findings):
        raise SystemExit(2)


@dataclass(frozen=True)
class Envs:
    """List the installed envs that have discrete actions, those with masks first."""

    modules: Positional[tuple[str, ...]] = ("rlmask_envs",)
    """Packages to import first, for the envs that they register."""


def envs(arguments: list[str]) -> None:
    """`rlmask envs`."""
    options = parse(Envs, "envs", arguments)
    table = Table("id", "observation", "actions", "mask", box=None, pad_edge=False)
    for row in list_envs(options.modules):
        table.add_row(*row[:3], "all valid" if row[3] == "none" else row[3])
    with writing():
        Console(highlight=False).print(table)


def print_evaluation(evaluation: Evaluation, title: str) -> None:
    """Print the figures of an evaluation as a table."""
    table = Table(show_header=False)
    error = evaluation.standard_error
    plus_minus = f" ± {error:.2f}" if math.isfinite(error) else ""  # of one episode there is none
    table.add_row("mean return", f"{evaluation.mean_return:.2f}{plus_minus}")
    table.add_row("episodes", str(evaluation.episodes))
    table.add_row("mean length", f"{evaluation.mean_length:.1f} steps")
    table.add_row("invalid actions", f"{evaluation.invalid_actions:.2%} of the steps")
    console = Console(highlight=False)
    console.print(title, style="bold", markup=False)
    console.print(table)
