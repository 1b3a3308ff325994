"""What a run writes down: metrics.jsonl, TensorBoard, the learning curve, the versions."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch.utils.tensorboard.writer import SummaryWriter

RETURNS = ("rollout/episode_return", "eval/mean_return")  # how the names of what is drawn begin


class Log:
    """One line of metrics.jsonl and one TensorBoard step an update.

    Opened at update `at` of a resumed run: what was written after it is dropped and written again.
    """

    def __init__(self, run_dir: Path, at: int) -> None:
        self._path = run_dir / "metrics.jsonl"
        kept, last_step = [], 0
        for record in read_metrics(run_dir):
            if record["update"] <= at:
                kept.append(json.dumps(record) + "\n")
                last_step = record["env_steps"]
        partial = self._path.with_suffix(".partial")
        with partial.open("w") as file:  # on the disk before it takes the place of the old one
            file.write("".join(kept))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)
        self._file = self._path.open("a")
        # tells TensorBoard to forget what an earlier process wrote after this step
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=last_step + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._writer.close()

    def write(
        self, update: int, env_steps: int, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        """Write the metrics of an update; NaN is null in the JSON."""
        record = {"update": update, "env_steps": env_steps, "seconds": round(seconds, 3)}
        values = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({**record, **values}) + "\n")
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, env_steps)

    def flush(self) -> None:
        """Bring everything to the disk; done before each checkpoint, which must not be ahead."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._writer.flush()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl; a last line that was cut short is left out."""
    path = run_dir / "metrics.jsonl"
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def plot_learning_curve(run_dir: Path) -> Path:
    """Draw return over env steps as learning_curve.png, a panel a game; return its path."""
    records = read_metrics(run_dir)
    names = {name for record in records for name in record if name.startswith(RETURNS)}
    games = sorted({_game(name) for name in names}) or [""]
    columns = min(2, len(games))
    rows = -(-len(games) // columns)
    size = (8, 4.5) if len(games) == 1 else (5.5 * columns, 3 * rows + 0.5)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, game in zip(panels, games, strict=False):
        _plot_game(axes, records, sorted(name for name in names if _game(name) == game))
        axes.set_title(game or run_dir.resolve().name, loc="left")
    for axes in panels[len(games) :]:
        axes.axis("off")
    if len(games) > 1:
        figure.suptitle(run_dir.resolve().name, x=0.01, ha="left")
    path = run_dir / "learning_curve.png"
    figure.savefig(path)
    return path


def _plot_game(axes: Axes, records: list[dict[str, Any]], names: list[str]) -> None:
    for name in names:
        points = [(r["env_steps"], r[name]) for r in records if r.get(name) is not None]
        is_eval = name.startswith("eval/")
        axes.plot(
            *zip(*points, strict=True),
            "o" if is_eval else "-",
            label="evaluation" if is_eval else "training, last 100 episodes",
            markersize=7,
            linewidth=1.6,
            zorder=3 if is_eval else 2,
        )
        if is_eval and points:
            steps, value = points[-1]
            axes.annotate(
                f"{value:.2f}",
                (steps, value),
                xytext=(0, -16),
                textcoords="offset points",
                ha="right",
            )
    axes.set_xlabel("env steps")
    axes.set_ylabel("episode return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(y=0.15)  # the last value is written below its point
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if names:
        axes.legend(frameon=False)


def _game(name: str) -> str:
    """Return the game at the end of a metric's name, or nothing."""
    return name.partition("_return")[2].removeprefix("/")


def versions() -> dict[str, Any]:
    """Return what this process runs on: versions of packages, git commit, command line."""
    packages = ("rlmask", "torch", "numpy", "gymnasium", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in packages},
        "git_commit": _git_commit(),
        "command": sys.argv,
    }


def _git_commit() -> str | None:
    """Return the commit of the rlmask checkout, `+` if it was changed; None if it is none."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(here.parent), *arguments)
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)  # else it is installed in somebody's checkout
        output = git("describe", "--always", "--abbrev=40", "--dirty=+")
    except (OSError, subprocess.SubprocessError):
        return None
    return output.strip()
