"""The stages of an experiment, each done once: experts, students, evaluations, report."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlmask.board import Board
from rlmask.checkpoint import replace_synced
from rlmask.config import to_settings
from rlmask.episodes import metric_suffixes
from rlmask.evaluations import Task, evaluate_all, read_figures
from rlmask.experiment import Experiment
from rlmask.experts import load_teacher
from rlmask.jobs import Job, check_settings, newest_figures, run_jobs
from rlmask.log import read_metrics, versions
from rlmask.report import write_report
from rlmask.runs import parse_config, spec_of
from rlmask.scores import Curve, Player, Results

CURVE_POINTS = 200  # of a learning curve in the report


def run_experiment(experiment: Experiment, num_workers: int, board: Board) -> Path:
    """Do what is not done yet of an experiment; return where the page of its report is.

    Args:
        num_workers: processes at once; 0: as many as there are cores.

    Raises:
        ConfigError, SpaceError, EnvError, TeacherError, RunError: see `check`.
        JobError: if a run fails.
        Interrupted: on a signal; what was running is saved, and the next call goes on.
    """
    directory, workers = experiment.directory, num_workers or os.cpu_count() or 1
    students, baselines = experiment.students(), experiment.baselines()
    check(experiment, students, baselines)
    directory.mkdir(parents=True, exist_ok=True)
    stages = Stages(directory / "stages.json")
    experts = [expert for expert in experiment.experts if isinstance(expert, Job)]
    with stages.timed("experts"):
        run_jobs(experts, workers, board)
    with stages.timed("students"):
        run_jobs(students["student"], workers, board)
    others = [*students.items(), *baselines.items()][1:]
    with stages.timed("variants and baselines"):
        run_jobs([job for _, jobs in others for job in jobs], workers, board)
    with stages.timed("evaluations"):
        evaluate_all(tasks(experiment, {**students, **baselines}), workers, board)
    write_report(directory, results_of(experiment, students, baselines, stages.seconds))
    return directory / "report.html"


def check(
    experiment: Experiment,
    students: Mapping[str, Sequence[Job]],
    baselines: Mapping[str, Sequence[Job]],
) -> None:
    """Find now what would go wrong hours later.

    Raises:
        ConfigError: if settings of a run do not hold, or are not those that it was begun with.
        SpaceError, EnvError: if the games cannot be played together, or one cannot be made.
        TeacherError, RunError: if an expert that is given is missing, or does not fit its game.
    """
    runs = {**students, **baselines}
    for jobs in runs.values():
        for job in jobs:
            check_settings(job)
    for name in ("student", *baselines):
        for job in runs[name][:1]:
            settings = parse_config(job.settings, name).settings
            spec_of(settings, settings.all_games)
    for expert, game in zip(experiment.experts, experiment.games, strict=True):
        if isinstance(expert, str):
            load_teacher(expert, game, 0, torch.device("cpu"))


class Stages:
    """Wall time of each stage, over all calls that worked at it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that something takes to a stage."""
        begin = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begin
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + spent, 1)
            replace_synced(self._path, json.dumps(self.seconds, indent=1).encode())


def tasks(experiment: Experiment, runs: Mapping[str, Sequence[Job]]) -> list[Task]:
    """Return all evaluations of an experiment."""
    config = experiment.evaluation()
    settings = {"algo": config.algo, **to_settings(config.settings), **to_settings(config.options)}
    settings["seed"] = experiment.config.eval_seed
    folder = experiment.directory / "evaluations"
    found = [
        Task(path=folder / f"{kind}.json", kind=kind, run_dir="", settings=settings)
        for kind in ("teacher", "random")
    ]
    return found + [
        Task(
            path=folder / f"{job.run_dir.name}.json",
            kind="student" if job.settings["algo"] == "distill" else "baseline",
            run_dir=str(job.run_dir),
            settings=settings,
        )
        for jobs in runs.values()
        for job in jobs
    ]


def results_of(
    experiment: Experiment,
    students: Mapping[str, Sequence[Job]],
    baselines: Mapping[str, Sequence[Job]],
    seconds: Mapping[str, float],
) -> Results:
    """Gather what a report shows."""
    config, student = experiment.config, students["student"]
    figures = newest_figures(student[0].run_dir)[1]
    notes = {
        **{name: describe(changes) for name, changes in config.variants.items()},
        **{name: describe(changes) for name, changes in config.baselines.items()},
    }
    players = [
        player(experiment, "teacher", "teacher", []),
        player(experiment, "random", "random", []),
    ]
    for name, jobs in students.items():
        kind = "student" if name == "student" else "variant"
        players.append(player(experiment, name, kind, jobs, notes.get(name, "")))
    players += [player(experiment, n, "baseline", jobs, notes[n]) for n, jobs in baselines.items()]
    suffixes = metric_suffixes(experiment.full_names)
    temperatures = {
        name: figures[f"distill/temperature{suffix}"]
        for name, suffix in zip(experiment.names, suffixes, strict=True)
        if f"distill/temperature{suffix}" in figures
    }
    options = experiment.evaluation().options
    return Results(
        title=f"Actor-Mimic: {experiment.directory.name}",
        games=tuple(experiment.names),
        players=tuple(players),
        curves=tuple(curves_of(experiment, student, suffixes)),
        protocol={
            "episodes of each game": config.eval_episodes,
            "actions": "drawn from the policy" if config.eval_stochastic else "the best valid one",
            "seeds of the student": list(config.seeds),
            "seed of the episodes": config.eval_seed,
            "longest episode": options.eval_max_episode_steps,
        },
        temperatures=temperatures,
        seconds=seconds,
        versions={k: str(v) for k, v in versions().items() if k != "command"},
    )


def player(
    experiment: Experiment, name: str, kind: Any, jobs: Sequence[Job], note: str = ""
) -> Player:
    """Read the figures of a player, of all seeds."""
    stems = [job.run_dir.name for job in jobs] or [name]
    folder = experiment.directory / "evaluations"
    read = [read_figures(folder / f"{stem}.json") for stem in stems]
    names = list(zip(experiment.full_names, experiment.names, strict=True))
    logged = [newest_figures(job.run_dir) for job in jobs]
    return Player(
        name=name,
        kind=kind,
        played={short: tuple(played[full] for played, _ in read) for full, short in names},
        fidelity={
            short: tuple(fidelity[full] for _, fidelity in read)
            for full, short in names
            if all(full in fidelity for _, fidelity in read)
        },
        note=note,
        env_steps=logged[0][0] if logged else 0,
        seconds=sum(record.get("seconds", 0.0) for _, record in logged) / max(1, len(logged)),
    )


def curves_of(
    experiment: Experiment, students: Sequence[Job], suffixes: Sequence[str]
) -> Iterator[Curve]:
    """Give the learning curves of experts and students, in env steps of each game."""
    for name, expert in zip(experiment.names, experiment.experts, strict=True):
        if isinstance(expert, Job):
            yield curve(expert, name, "teacher", 0, "", 1)
    for job in students:
        for name, suffix in zip(experiment.names, suffixes, strict=True):
            seed = job.settings["seed"]
            yield curve(job, name, "student", seed, suffix, len(experiment.games))


def curve(job: Job, game: str, who: str, seed: int, suffix: str, num_games: int) -> Curve:
    """Return the learning curve of a run in one of its games, thinned."""
    key = f"rollout/episode_return{suffix}"
    points = [(r["env_steps"], r[key]) for r in read_metrics(job.run_dir) if key in r]
    points = points[:: max(1, len(points) // CURVE_POINTS)]
    return Curve(
        game=game,
        player=who,
        seed=seed,
        steps=tuple(steps // num_games for steps, _ in points),
        returns=tuple(value for _, value in points),
    )


def describe(changes: Mapping[str, Any]) -> str:
    """Return settings as text."""
    return ", ".join(f"{name} {value}" for name, value in changes.items() if name != "config")
