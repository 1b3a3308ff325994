"""The command line: `rlmask train`, `eval`, `check-env`, `envs`.

Every error that a user can cause is one line and exit code 2; a signal is 128 plus its number.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from rlmask import __version__, commands, export_command, run, runs
from rlmask.checkpoint import CheckpointError
from rlmask.config import ConfigError, suggest
from rlmask.display import writing
from rlmask.export import ExportError
from rlmask.jobs import JobError
from rlmask.networks import DeviceError
from rlmask.ops import EmptyMaskError, InvalidActionError
from rlmask.record import VideoError
from rlmask.recorded import RecordedError
from rlmask.replay import ReplayError
from rlmask.states import StatesError
from rlmask.teachers import TeacherError
from rlmask.torso import NetworkError
from rlmask.transfer import TransferError
from rlmask.vector import EnvError, MaskError, SpaceError

USAGE = """\
rlmask: reinforcement learning where not every action is valid in every state

  rlmask train CONFIG.yaml [--learning-rate 1e-3 --seed 3 ...]
                             train a run; every setting of the config is a flag too
  rlmask train --resume RUN  go on with a run, exactly where it stopped
  rlmask eval RUN            play episodes with the policy of a run
  rlmask record RUN FILE     a video of all its games (.gif, .mp4), or states (.safetensors)
  rlmask distill EXPERIMENT.yaml
                             experts of several games into one policy, with a report
  rlmask transfer RUN CONFIG.yaml
                             a new game from a student's weights, against random ones
  rlmask export RUN          its policy as one file (ONNX, or PyTorch's .pt2), masks included
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
    ExportError,
    FloatingPointError,
    InvalidActionError,
    JobError,
    MaskError,
    NetworkError,
    RecordedError,
    ReplayError,
    SpaceError,
    StatesError,
    TeacherError,
    TransferError,
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
        where = error.filename or type(error).__name__
        where = os.fsdecode(where) if isinstance(where, bytes) else where
        return fail(f"{where}: {error.strerror or error}")
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


COMMANDS = {
    "train": commands.train,
    "eval": commands.evaluate,
    "record": commands.record,
    "distill": commands.distill,
    "transfer": commands.transfer,
    "export": export_command.export,
    "check-env": commands.check,
    "envs": commands.envs,
}


def fail(message: str) -> int:
    """Print one line to standard error; return exit code 2."""
    print(f"rlmask: {' '.join(message.split())}", file=sys.stderr)
    return 2


def show_warning(message: Warning | str, *context: Any, **more: Any) -> None:
    """Print a warning as one line."""
    print(f"rlmask: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
