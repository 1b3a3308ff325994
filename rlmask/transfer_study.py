"""What a student is worth on a game that it has not seen: its weights against random ones.

DIRECTORY/
  runs/INIT-SEED/          INIT is random, trunk, or trunk_and_head
  transfer.json, transfer.md, transfer.svg
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlmask.board import Board
from rlmask.charts import transfer_chart
from rlmask.checkpoint import replace_synced
from rlmask.jobs import Job, run_jobs
from rlmask.log import read_metrics
from rlmask.words import markdown_table, plus_minus

INITS = ("random", "trunk", "trunk_and_head")
COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Training returns of one initialisation.

    Attributes:
        means: of each seed [S], the mean return in each tenth of the run [10].
    """

    init: str
    means: tuple[tuple[float, ...], ...]

    @property
    def area(self) -> tuple[float, ...]:
        """The mean over the whole run, a number a seed."""
        return tuple(float(np.mean(of_seed)) for of_seed in self.means)


def jobs_of(
    student: Path, settings: Mapping[str, Any], seeds: Sequence[int], directory: Path
) -> dict[str, list[Job]]:
    """Return the runs of each initialisation, one a seed.

    Args:
        student: run directory.
        settings: of the runs on the new game, `algo` among them.
    """
    jobs: dict[str, list[Job]] = {}
    for init in INITS:
        more = {} if init == "random" else {"init_from": str(student), "init_parts": init}
        jobs[init] = [
            Job(
                name=f"{init}, seed {seed}",
                run_dir=directory / "runs" / f"{init}-{seed}",
                settings={**settings, **more, "seed": seed},
            )
            for seed in seeds
        ]
    return jobs


def study(
    student: Path,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    directory: Path,
    num_workers: int,
    board: Board,
) -> str:
    """Train with each initialisation, what is not done yet; write table and picture; return both.

    Args:
        num_workers: processes at once; 0: as many as there are cores.

    Raises:
        TransferError: if the student's weights do not fit the new network.
        JobError, Interrupted, ConfigError: as `run_jobs`.
    """
    jobs = jobs_of(student, settings, seeds, directory)
    workers = num_workers or os.cpu_count() or 1
    run_jobs([job for of_init in jobs.values() for job in of_init], workers, board)
    curves = [
        Curves(init=init, means=tuple(tenths(job.run_dir) for job in of_init))
        for init, of_init in jobs.items()
    ]
    text = f"# Transfer of {student.name}\n\n" + table(curves)
    facts = {curve.init: curve.means for curve in curves}
    replace_synced(directory / "transfer.json", json.dumps(facts, indent=1).encode())
    replace_synced(directory / "transfer.md", text.encode())
    lines = [(curve.init, np.array(curve.means)) for curve in curves]
    replace_synced(directory / "transfer.svg", transfer_chart(lines).encode())
    return text


def tenths(run_dir: Path) -> tuple[float, ...]:
    """Return the mean training return in each tenth of a run; NaN where no episode had ended."""
    points = [
        (record["env_steps"], record["rollout/episode_return"])
        for record in read_metrics(run_dir)
        if "rollout/episode_return" in record
    ]
    last = points[-1][0] if points else 1
    means = []
    for column in range(COLUMNS):
        low, high = last * column / COLUMNS, last * (column + 1) / COLUMNS
        inside = [value for steps, value in points if low < steps <= high]
        means.append(float(np.mean(inside)) if inside else math.nan)
    return tuple(means)


def table(curves: Sequence[Curves]) -> str:
    """Return the learning curves as a Markdown table, a row an initialisation."""
    head = ["first weights", *(f"{10 * c}–{10 * c + 10} %" for c in range(COLUMNS)), "whole run"]
    rows = [
        [curve.init, *map(with_error, zip(*curve.means, strict=True)), with_error(curve.area)]
        for curve in curves
    ]
    note = (
        "Mean return of the last hundred training episodes, in each tenth of the run; ± standard "
        f"error over {len(curves[0].means)} seeds, the same for each row."
    )
    return f"{markdown_table(head, rows)}\n\n{note}\n"


def with_error(values: Sequence[float]) -> str:
    """Return a mean with its standard error."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "–"
    error = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return plus_minus(float(np.mean(known)), error)
