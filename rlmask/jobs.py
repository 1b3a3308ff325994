"""Training runs in processes of their own, some at a time, each resumed if it was begun before."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlmask.board import Board
from rlmask.config import ConfigError
from rlmask.experts import settled
from rlmask.run import Interrupted, stop_on_signal
from rlmask.runs import RunConfig, create, parse_config, read_config

POLL_SECONDS = 0.5


class JobError(RuntimeError):
    """A training run in another process failed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to be trained.

    Attributes:
        name: as a reader sees it.
        run_dir: where it is, or goes.
        settings: its config, `algo` among them; of a run that is there they have to be the same.
    """

    name: str
    run_dir: Path
    settings: dict[str, Any]

    @property
    def is_done(self) -> bool:
        """Whether the run is complete."""
        return (self.run_dir / "result.json").is_file()

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.run_dir.with_name(self.run_dir.name + ".log")


def run_jobs(jobs: Sequence[Job], num_workers: int, board: Board) -> None:
    """Train all runs that are not complete, so many at a time.

    A signal stops them all once, so that each saves itself; then it is raised here.

    Raises:
        ConfigError: if the settings of a job do not hold, or are not those of its run.
        JobError: if a run fails; the others are stopped, and saved.
        Interrupted: on SIGINT or SIGTERM.
    """
    prepare(jobs)
    waiting = [job for job in jobs if not job.is_done]
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    board.begin({job.name: total_steps(job.run_dir) for job in waiting})
    with stop_on_signal(board.say) as stop_requested, stopped_at_the_end(running, board):
        while (waiting or running) and not stop_requested():
            while waiting and len(running) < num_workers:
                job = waiting.pop(0)
                running.append((job, start(job)))
                board.start(job.name)
            time.sleep(POLL_SECONDS)
            for job, process in list(running):
                board.progress(job.name, *newest_figures(job.run_dir))
                if process.poll() is not None:
                    running.remove((job, process))
                    if not job.is_done and not stop_requested():
                        raise JobError(
                            f"{job.name} failed: {last_line(job.log)} (all of it: {job.log})"
                        )
                    board.finish(job.name)
    if stop_requested():
        raise Interrupted(stop_requested())


def prepare(jobs: Sequence[Job]) -> None:
    """Make the run directories of jobs that have none, once all of them are known to hold.

    Raises:
        ConfigError: if the settings of one do not hold, or are not those of its run.
        RunError, TeacherError, TransferError, ...: as `settled` and `create`.
    """
    configs = [(job, check_settings(job)) for job in jobs]
    new = [(job, settled(config)) for job, config in configs if not job.run_dir.exists()]
    for job, config in new:
        job.run_dir.parent.mkdir(parents=True, exist_ok=True)
        create(job.run_dir, config)


def check_settings(job: Job) -> RunConfig:
    """Return the config of a job.

    Raises:
        ConfigError: if its settings do not hold, or are not those that its run was begun with.
    """
    config = parse_config(job.settings, job.name)
    if not job.run_dir.exists():
        return config
    before = read_config(job.run_dir)
    if before.algo != config.algo:
        raise ConfigError(f"{job.name}: {job.run_dir} is a run of {before.algo}, not {config.algo}")
    for name, value in vars(config.settings).items():
        old = getattr(before.settings, name)
        if name not in ("device", "num_threads", "debug", "teachers") and old != value:
            raise ConfigError(
                f"{job.name}: {name} is {value!r}, but {job.run_dir} was begun with {old!r}; "
                "change it back, or remove that directory to begin anew"
            )
    return config


def start(job: Job) -> "subprocess.Popen[bytes]":
    """Start the process of a job, in a session of its own: it gets no Ctrl-C but ours."""
    command = [sys.executable, "-m", "rlmask.cli", "train", "--resume", str(job.run_dir)]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with job.log.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread},
            start_new_session=True,
        )


@contextlib.contextmanager
def stopped_at_the_end(
    running: "list[tuple[Job, subprocess.Popen[bytes]]]", board: Board
) -> Iterator[None]:
    """Leave no process behind: what still runs is interrupted once, and waited for."""
    try:
        yield
    finally:
        for _, process in running:
            process.send_signal(signal.SIGINT)
        for _, process in running:
            process.wait()
        board.end()


def total_steps(run_dir: Path) -> int:
    """Return the env steps of a whole run."""
    settings = read_config(run_dir).settings
    return settings.num_updates * settings.steps_per_update


def newest_figures(run_dir: Path) -> tuple[int, dict[str, float]]:
    """Return the env steps and metrics that a run logged last; 0 and none before that."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2**16))
            lines = file.read().splitlines()
    except OSError:
        return 0, {}
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            return record["env_steps"], {k: float(v) for k, v in record.items() if v is not None}
    return 0, {}


def last_line(log: Path) -> str:
    """Return the last line of a log."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
