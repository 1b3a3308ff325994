"""How `rlmask train` shows itself: a live panel on a terminal, plain lines elsewhere."""

import io
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


@contextmanager
def writing(stream: Any = None) -> Iterator[None]:
    """Print to a stream (None: standard output); once its reader has gone, to nowhere.

    `rlmask envs | head` is no error, and training goes on when the `tee` beside it was killed.
    """
    to = sys.stdout if stream is None else stream
    try:
        yield
        to.flush()
    except (BrokenPipeError, SystemExit):  # the second is rich's word for the first
        with suppress(io.UnsupportedOperation), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), to.fileno())


class LiveDisplay:
    """One line that moves: a bar, steps, return, steps/s, time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.fields[steps]}"),
            # short of the edge, where the ^C that a terminal prints would break the line
            BarColumn(bar_width=max(8, min(40, console.width - 68))),
            TextColumn("return [bold]{task.fields[returns]}[/]"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[left]} left"),
            console=console,
        )
        self._clock = Clock()

    def start(self, run_dir: Path, total_steps: int, env_steps: int) -> None:
        """Show the empty bar."""
        self._clock.start(total_steps, env_steps)
        self._console.print(f"run directory [bold]{run_dir}[/]", highlight=False)
        self._task = self._progress.add_task(
            "train",
            total=total_steps,
            completed=env_steps,
            steps=f"{short(env_steps)} of {short(total_steps)} steps",
            returns="-",
            speed="",
            left="?",
        )
        self._progress.start()

    def update(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """Move the bar."""
        self._clock.tick(env_steps)
        self._progress.update(
            self._task,
            completed=env_steps,
            steps=f"{short(env_steps)} of {short(self._clock.total)} steps",
            returns=returns(metrics),
            speed=f"{short(self._clock.steps_per_second)} steps/s",
            left=duration(self._clock.seconds_left),
        )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, style="yellow", highlight=False)

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


class PlainDisplay:
    """A line every few seconds, for logs."""

    def __init__(self, period_seconds: float = 5.0) -> None:
        self._period_seconds = period_seconds
        self._clock = Clock()
        self._shown_at = -math.inf

    def start(self, run_dir: Path, total_steps: int, env_steps: int) -> None:
        """Print where the run is."""
        self._clock.start(total_steps, env_steps)
        with writing():
            print(f"run directory {run_dir}")

    def update(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """Print a line if it is time, or the last one."""
        self._clock.tick(env_steps)
        now = time.monotonic()
        if now - self._shown_at < self._period_seconds and env_steps < self._clock.total:
            return
        self._shown_at = now
        with writing():
            print(
                f"{env_steps:>12,} of {self._clock.total:,} steps   return {returns(metrics):>8}   "
                f"{self._clock.steps_per_second:>9,.0f} steps/s   "
                f"{duration(self._clock.seconds_left)} left"
            )

    def say(self, text: str) -> None:
        """Print a line to standard error."""
        with writing(sys.stderr):
            print(text, file=sys.stderr)

    def stop(self) -> None:
        """Nothing to take down."""


class Clock:
    """Steps per second of this process, and what they promise.

    The first update, in which envs are made and libraries loaded, counts only until the second.
    """

    def start(self, total: int, env_steps: int) -> None:
        """Begin at some env steps of a total."""
        self.total, self._first, self._done = total, env_steps, env_steps
        self._begin = time.monotonic()
        self._ticks = 0

    def tick(self, env_steps: int) -> None:
        """Take note of the env steps done."""
        self._ticks += 1
        if self._ticks == 2:
            self._first, self._begin = self._done, self._last
        self._done, self._last = env_steps, time.monotonic()

    @property
    def steps_per_second(self) -> float:
        """Mean speed so far."""
        return (self._done - self._first) / max(time.monotonic() - self._begin, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Time to the end at that speed."""
        return (self.total - self._done) / max(self.steps_per_second, 1e-9)


def make_display() -> LiveDisplay | PlainDisplay:
    """Return the live display on a terminal, else plain lines."""
    console = Console()
    return LiveDisplay(console) if console.is_terminal else PlainDisplay()


def returns(metrics: Mapping[str, float]) -> str:
    """Return the mean return of recent episodes, over all games, or `-` before the first ends."""
    values = [v for name, v in metrics.items() if name.startswith("rollout/episode_return")]
    return f"{sum(values) / len(values):.2f}" if values else "-"


def short(number: int | float) -> str:
    """Return 1234567 as 1.23M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
