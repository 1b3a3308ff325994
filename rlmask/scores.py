"""Scores of students by those of their teachers, with intervals.

A return means nothing by itself: 0 is what random valid moves reach, 1 what the teacher does. All
intervals are bootstraps at 95 %: seeds are drawn with replacement, then episodes within each.

Dimension key: `R` resamples, `G` games.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Played:
    """The episodes of one player, one training seed, one game."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    invalid_actions: int


def read_played(raw: Mapping[str, Any]) -> Played:
    """Return what was written as plain values."""
    return Played(
        returns=tuple(raw["returns"]),
        lengths=tuple(raw["lengths"]),
        invalid_actions=raw["invalid_actions"],
    )


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How one student follows its teacher in one game, on the states that the student visits.

    Attributes:
        agreement: share of the states in which both have the same best valid action.
        weighted_agreement: the same, each state weighted by the teacher's gap between its two best.
        kl: mean KL(teacher || student), nats.
        teacher_entropy: mean, nats; of the teacher at its temperature.
        student_entropy: mean, nats.
        invalid_mass: mean probability of invalid actions in a softmax without the mask.
        states: how many.
    """

    agreement: float
    weighted_agreement: float
    kl: float
    teacher_entropy: float
    student_entropy: float
    invalid_mass: float
    states: int


@dataclass(frozen=True, kw_only=True)
class Player:
    """Anything that was evaluated.

    Attributes:
        name: as a reader sees it.
        kind: `student` is what the experiment is about, `variant` a student that differs.
        played: game -> one a training seed.
        fidelity: game -> one a training seed; empty unless it has teachers.
        note: what differs.
        env_steps: of its training, over all games.
        seconds: of its training.
    """

    name: str
    kind: Literal["teacher", "student", "variant", "baseline", "random"]
    played: Mapping[str, tuple[Played, ...]]
    fidelity: Mapping[str, tuple[Fidelity, ...]]
    note: str = ""
    env_steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Returns of training, of one player, one training seed, one game."""

    game: str
    player: str
    seed: int
    steps: tuple[int, ...]
    returns: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """All of an experiment that its report shows.

    Attributes:
        protocol: of the evaluation, by name.
        temperatures: of the teachers, by game.
        seconds: wall time, by stage.
        versions: of what it ran on.
    """

    title: str
    games: tuple[str, ...]
    players: tuple[Player, ...]
    curves: tuple[Curve, ...]
    protocol: Mapping[str, Any]
    temperatures: Mapping[str, float]
    seconds: Mapping[str, float]
    versions: Mapping[str, Any]


class Estimate(NamedTuple):
    """A figure with its interval at 95 %."""

    value: float
    low: float
    high: float


class Scores(NamedTuple):
    """What one player reaches in all games, as (S - R) / (T - R).

    A game whose teacher is no better than random moves has no score, and does not count.
    """

    of_game: dict[str, Estimate | None]
    median: Estimate | None
    capped_mean: Estimate | None
    minimum: Estimate | None


def mean_return(played: Sequence[Played]) -> float:
    """Return the mean over seeds of the mean return."""
    return float(np.mean([np.mean(seed.returns) for seed in played]))


def standard_error(played: Sequence[Played]) -> float:
    """Return the standard error of `mean_return`: over seeds, or over the episodes of a single one.

    NaN of a single episode.
    """
    of_seeds = [float(np.mean(seed.returns)) for seed in played]
    values = of_seeds if len(of_seeds) > 1 else list(played[0].returns)
    if len(values) < 2:
        return float("nan")
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def percent_of_teacher(student: float, teacher: float) -> float | None:
    """Return 100 S / T, as published; None if T is not positive."""
    return 100 * student / teacher if teacher > 0 else None


def scores_of(player: Player, teacher: Player, random: Player, games: Sequence[str]) -> Scores:
    """Return the scores of a player against the teachers and the random player.

    The median of all games, the mean of scores cut at 1 (Sharma et al. 2017, arXiv:1702.06053), and
    the lowest; each interval is that of the aggregate over resamples (Agarwal et al. 2021,
    arXiv:2108.13264).
    """
    rng = np.random.default_rng(0)
    of_game: dict[str, Estimate | None] = {}
    points, samples = [], []
    for game in games:
        trio = [who.played[game] for who in (player, teacher, random)]
        point = normalized(*(mean_return(played) for played in trio))
        if not np.isfinite(point):
            of_game[game] = None
            continue
        sample = normalized(*(resampled_means(played, rng) for played in trio))
        of_game[game] = estimate(float(point), sample)
        points.append(float(point))
        samples.append(sample)
    if not points:
        return Scores(of_game, None, None, None)
    table = np.stack(samples)  # [G, R]
    return Scores(
        of_game,
        estimate(float(np.median(points)), np.median(table, 0)),
        estimate(float(np.minimum(points, 1).mean()), np.minimum(table, 1).mean(0)),
        estimate(min(points), table.min(0)),
    )


def normalized(student: Any, teacher: Any, random: Any) -> np.ndarray:
    """Return (S - R) / (T - R), of numbers or arrays; NaN unless T > R."""
    span = np.asarray(teacher, float) - random
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(span > 0, (np.asarray(student, float) - random) / span, np.nan)


def resampled_means(played: Sequence[Played], rng: np.random.Generator) -> np.ndarray:
    """Return the mean return of each of R resamples of seeds, and of episodes within each [R]."""
    means = np.empty((RESAMPLES, len(played)))
    for column in range(len(played)):
        seed = rng.integers(len(played), size=RESAMPLES)
        for index, of_seed in enumerate(played):
            chosen = seed == index
            returns = np.asarray(of_seed.returns, float)
            draws = rng.integers(len(returns), size=(int(chosen.sum()), len(returns)))
            means[chosen, column] = returns[draws].mean(1)
    return means.mean(1)


def estimate(value: float, sample: np.ndarray) -> Estimate:
    """Return a figure with the central 95 % of its resamples."""
    low, high = np.nanpercentile(sample, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def mean_fidelity(fidelity: Sequence[Fidelity]) -> Fidelity:
    """Return the mean of each figure over seeds, and the sum of the states."""
    names = [name for name in vars(fidelity[0]) if name != "states"]
    means = {name: float(np.mean([getattr(one, name) for one in fidelity])) for name in names}
    return Fidelity(**means, states=sum(one.states for one in fidelity))
