"""How `rlmask distill` and `rlmask transfer` show many runs at once."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rlmask.display import Clock, duration, returns, short, writing

PLAIN_SECONDS = 60.0  # between two lines a run, where nobody watches


class Board:
    """A line a run: a bar, steps, return, time left. Without a terminal, a line now and then."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._clocks: dict[str, Clock] = {}  # of runs that have said something
        self._steps: dict[str, int] = {}
        self._shown: dict[str, float] = {}

    def begin(self, totals: Mapping[str, int]) -> None:
        """Take note of the runs to come, and how many env steps each has."""
        self._totals = dict(totals)
        if self._console.is_terminal and totals:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=max(8, min(30, self._console.width - 76))),
                TextColumn("{task.fields[said]}"),
                console=self._console,
            )
            self._tasks = {
                name: self._progress.add_task(name, total=total, said="waiting")
                for name, total in totals.items()
            }
            self._progress.start()

    def start(self, name: str) -> None:
        """A run begins, or goes on."""
        self._shown[name] = time.monotonic()
        if self._progress is None:
            self.say(f"{name}: {short(self._totals[name])} env steps")
        else:
            self._progress.update(self._tasks[name], said="starting")

    def progress(self, name: str, env_steps: int, metrics: Mapping[str, float]) -> None:
        """A run is so far."""
        if not env_steps or env_steps == self._steps.get(name):
            return
        if name not in self._clocks:
            self._clocks[name] = Clock()
            self._clocks[name].start(self._totals[name], env_steps)
        self._steps[name] = env_steps
        clock = self._clocks[name]
        clock.tick(env_steps)
        said = f"{short(env_steps)} of {short(clock.total)}  {figure(metrics)}"
        if clock.steps_per_second > 0:
            speed, left = short(clock.steps_per_second), duration(clock.seconds_left)
            said += f"  {speed} steps/s  {left} left"
        if self._progress is not None:
            self._progress.update(self._tasks[name], completed=env_steps, said=said)
        elif time.monotonic() - self._shown[name] >= PLAIN_SECONDS:
            self._shown[name] = time.monotonic()
            self.say(f"{name}: {said}")

    def finish(self, name: str) -> None:
        """A run has ended."""
        if self._progress is None:
            self.say(f"{name}: done")
        else:
            task = self._tasks[name]
            self._progress.update(task, completed=self._totals[name], said="done")

    def say(self, text: str) -> None:
        """Print a line."""
        with writing():
            if self._progress is None:
                print(text, flush=True)
            else:
                self._console.print(text, highlight=False, markup=False)

    def end(self) -> None:
        """Leave the bars as they are."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def figure(metrics: Mapping[str, float]) -> str:
    """Return the one figure of a run that says most: a student's KL, else the return."""
    if "loss/distill" in metrics:
        return f"loss {metrics['loss/distill']:.3f}"
    return f"return {returns(metrics)}"
