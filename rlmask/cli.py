"""The command line: `rlmask train`, `eval`, `check-env`, `envs`.

Every error that a user can cause is one line and exit code 2; a signal is 128 plus its number.
"""

import contextlib
import io
import itertools
import json
import math
import os
import sys
import time
import typing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from rlmask import __version__, run, runs
from rlmask.checkpoint import CheckpointError
from rlmask.config import ConfigError, convert, read_yaml, suggest, to_settings
from rlmask.display import make_display
from rlmask.evaluate import Evaluation
from rlmask.networks import DeviceError
from rlmask.ops import EmptyMaskError, InvalidActionError
from rlmask.record import VideoError, check_video_path, record_video
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
    SpaceError,
    VideoError,
    runs.RunError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    warnings.showwarning = show_warning
    try:
        run_command(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except EXPECTED_ERRORS as error:
        return fail(str(error))
    except run.Interrupted as error:
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader, `head` for one, has seen enough
            with contextlib.suppress(io.UnsupportedOperation):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed on exit
            return 0
        return fail(f"{error.filename or 'input/output'}: {error.strerror}")
    except SystemExit as error:
        code = int(error.code or 0)
        return 0 if code == 1 else code  # 1 is rich's word for a closed pipe
    except KeyboardInterrupt:
        return 130
    return 0


def run_command(words: list[str]) -> None:
    """Run the command that is the first word, with the rest as its arguments."""
    command, *arguments = words or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE, end="")
    elif command == "--version":
        print(f"rlmask {__version__}")
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
    print_evaluation(evaluation, "final evaluation, greedy")
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
        if not settings.keys() & {"env", "games"} and (env := value_of("--env", arguments)):
            settings["env"] = env  # a config may leave the env to the command line
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
    run_dir = chosen.run_dir
    if run_dir is None:
        run_dir = default_run_dir(f"{chosen.config.stem}-{config.settings.seed}")
    print(*runs.create(run_dir, config), sep="\n", flush=True)
    return run_dir


def value_of(flag: str, arguments: list[str]) -> str | None:
    """Return the value of a flag, given as `--flag value` or `--flag=value`; None if it is not."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else following
    return None


def default_run_dir(name: str) -> Path:
    """Return `runs/<name>-<time>`, with a number behind it if there is one from this second."""
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())


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
    at_least("episodes", options.episodes, 1)
    at_least("seed", options.seed or 0, 0)
    if options.video is not None:
        check_video_path(options.video)  # before playing for minutes
    config = runs.read_config(options.run)
    seed = config.settings.seed if options.seed is None else options.seed
    policy = run.load(options.run, greedy=not options.stochastic, seed=seed)
    evaluation, by_name = run.evaluate_games(
        config.settings, policy, options.episodes, seed=seed, use_mask=not options.without_mask
    )
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
        record_video(config.settings, policy, options.video, seed)
        if not options.json:
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
    at_least("steps", options.steps, 1)
    at_least("seed", options.seed, 0)
    game = Game(env_id=options.env, env_kwargs=options.env_kwargs, mask_source=options.mask_source)
    findings = check_env(game, options.steps, options.seed)
    console = Console(highlight=False, soft_wrap=True)
    style = {"ok": "green", "note": "yellow", "error": "bold red"}
    for finding in findings:
        console.print(f"{finding.level:>5}", finding.text, style=style[finding.level], markup=False)
    if any(finding.level == "error" for finding in findings):
        raise SystemExit(2)


@dataclass(frozen=True)
class Envs:
    """List the installed envs that have discrete actions, those with masks first."""


def envs(arguments: list[str]) -> None:
    """`rlmask envs`."""
    parse(Envs, "envs", arguments)
    table = Table("id", "observation", "actions", "mask", box=None, pad_edge=False)
    for row in list_envs():
        table.add_row(*row[:3], "all valid" if row[3] == "none" else row[3])
    Console(highlight=False).print(table)


COMMANDS = {"train": train, "eval": evaluate, "check-env": check, "envs": envs}


def parse(cls: Any, command: str, arguments: list[str], default: Any = None) -> Any:
    """Return the dataclass that the arguments fill in.

    Raises:
        ConfigError: one line, if they do not.
        SystemExit: after `--help`.
    """
    registry = ConstructorRegistry()
    registry.primitive_rule(yaml_rule)
    keywords = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                cls, prog=f"rlmask {command}", args=arguments, registry=registry, **keywords
            )
    except SystemExit as error:
        if not error.code:
            raise
        lines = [line.strip("╭╮╰╯│─ ") for line in complaint.getvalue().splitlines()]
        text = " ".join(line for line in lines if line and not line.startswith("For full helptext"))
        raise ConfigError(text) from error
    except ValueError as error:  # what the dataclass itself refuses
        raise ConfigError(f"command line: {error}") from error


def at_least(name: str, value: int, least: int) -> None:
    """Raise `ConfigError` if a flag is too small."""
    if value < least:
        raise ConfigError(f"--{name} is {value}: it must be at least {least}")


def yaml_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read mappings and lists of games on the command line as YAML."""
    hint = info.type
    is_mapping = typing.get_origin(hint) is not None and hint == Mapping[str, Any]
    if not is_mapping and hint != tuple[Game, ...]:
        return None

    def read(words: list[str]) -> Any:
        try:
            value = yaml.safe_load(words[0])
        except yaml.YAMLError as error:
            raise ValueError(f"{words[0]!r} is not YAML: {' '.join(str(error).split())}") from error
        return convert(value, hint, "command line")

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="YAML",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Mapping | tuple),
        str_from_instance=lambda value: [
            yaml.safe_dump(to_settings(value), default_flow_style=True).strip()
        ],
    )


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
