"""The command line: `rlmask train`, `eval`, `check-env`, `envs`.

Every error that a user can cause is one line and exit code 2; a signal is 128 plus its number.
"""

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from rlmask import __version__, run, runs
from rlmask.checkpoint import CheckpointError
from rlmask.config import ConfigError, read_yaml, suggest, to_settings
from rlmask.display import make_display, writing
from rlmask.evaluate import Evaluation
from rlmask.flags import check_range, games_of, parse
from rlmask.networks import DeviceError
from rlmask.ops import EmptyMaskError, InvalidActionError
from rlmask.record import VideoError, check_video_path, record_video
from rlmask.replay import ReplayError
from rlmask.torso import NetworkError
from rlmask.vector import EnvError, Game, MaskError, MaskSource, SpaceError, check_env, list_envs

USAGE = """\
rlmask: reinforcement learning where not every action is valid in every state

  rlmask train CONFIG.yaml [--learning-rate 1e-3 --seed 3 ...]
                             train a run; every setting of the config is a flag too
  rlmask train --resume RUN  go on with a run, exactly where it stopped
  rlmask eval RUN            play episodes with the policy of a run
  rlmask check-env ID        test whether an env keeps the mask contract
  rlmask envs                list the envs that have discrete actions, and their masks

`rlmask COMMAND --help` says more. Start with: rlmask train configs/ppo/taxi.yaml
"""

# what a user, a disk or an env can cause; anything else is a bug, and keeps its traceback
EXPECTED_ERRORS = (
    CheckpointError,
    ConfigError,
    DeviceError,
    EmptyMaskError,
    EnvError,
    FloatingPointError,
    InvalidActionError,
    MaskError,
    NetworkError,
    ReplayError,
    SpaceError,
    VideoError,
    runs.RunError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code.

    Modules of the working directory can be named in a config; what is installed goes before them.
    """
    warnings.showwarning = show_warning
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        run_command(list(sys.argv[1:] if arguments is None else arguments))
    except EXPECTED_ERRORS as error:
        return fail(str(error))
    except run.Interrupted as error:
        return error.exit_code
    except OSError as error:
        return fail(f"{error.filename or type(error).__name__}: {error.strerror or error}")
    except SystemExit as error:
        return fail(error.code) if isinstance(error.code, str) else int(error.code or 0)
    except KeyboardInterrupt:
        return 130
    finally:
        with writing():
            pass  # what is still in the buffer
    return 0


def run_command(words: list[str]) -> None:
    """Run the command that is the first word, with the rest as its arguments."""
    command, *arguments = words or ["--help"]
    if command in ("-h", "--help", "--version"):
        with writing():
            print(f"rlmask {__version__}\n" if command == "--version" else USAGE, end="")
    elif command in COMMANDS:
        COMMANDS[command](arguments)
    else:
        raise ConfigError(f"there is no command `{command}`{suggest(command, list(COMMANDS))}")


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
    config = runs.parse_config(settings, "command line")
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
    seed = config.settings.seed if options.seed is None else options.seed
    policy = run.load(options.run, greedy=not options.stochastic, seed=seed)
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


COMMANDS = {"train": train, "eval": evaluate, "check-env": check, "envs": envs}


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


def fail(message: str) -> int:
    """Print one line to standard error; return exit code 2."""
    print(f"rlmask: {' '.join(message.split())}", file=sys.stderr)
    return 2


def show_warning(message: Warning | str, *context: Any, **more: Any) -> None:
    """Print a warning as one line."""
    print(f"rlmask: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
