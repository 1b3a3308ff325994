import math

import numpy as np
import pytest

from rlmask.scores import (
    Fidelity,
    Played,
    Player,
    mean_fidelity,
    mean_return,
    percent_of_teacher,
    resampled_means,
    scores_of,
    standard_error,
)


def played(*returns):
    return Played(returns=returns, lengths=(1,) * len(returns), invalid_actions=0)


def player(kind, **of_games):
    """A player whose seeds of each game are lists of returns."""
    games = {game: tuple(played(*seed) for seed in seeds) for game, seeds in of_games.items()}
    return Player(name=kind, kind=kind, played=games, fidelity={})


def test_scores_of_constant_returns_are_exact():
    teacher = player("teacher", a=[[10.0] * 3], b=[[-1.0] * 3], c=[[4.0] * 3])
    random = player("random", a=[[2.0] * 3], b=[[-5.0] * 3], c=[[0.0] * 3])
    student = player("student", a=[[8.0] * 3] * 2, b=[[-2.0] * 3] * 2, c=[[6.0] * 3] * 2)
    found = scores_of(student, teacher, random, ["a", "b", "c"])
    assert {game: e.value for game, e in found.of_game.items()} == {"a": 0.75, "b": 0.75, "c": 1.5}
    assert all(e.low == e.value == e.high for e in found.of_game.values())
    assert found.median == (0.75, 0.75, 0.75)
    assert found.minimum == (0.75, 0.75, 0.75)
    assert found.capped_mean.value == pytest.approx((0.75 + 0.75 + 1) / 3)


def test_a_game_whose_teacher_knows_nothing_has_no_score():
    teacher, random = (
        player("teacher", a=[[1.0]], b=[[3.0]]),
        player("random", a=[[1.0]], b=[[1.0]]),
    )
    student = player("student", a=[[5.0]], b=[[2.0]])
    found = scores_of(student, teacher, random, ["a", "b"])
    assert found.of_game["a"] is None
    assert found.median.value == found.minimum.value == 0.5
    nothing = scores_of(student, teacher, random, ["a"])
    assert nothing.median is nothing.capped_mean is nothing.minimum is None


def test_the_interval_is_that_of_seeds_and_episodes():
    # of one seed: the mean of n draws has the standard error σ / √n
    rng = np.random.default_rng(1)
    returns = rng.normal(5.0, 2.0, size=400)
    means = resampled_means([played(*returns)], np.random.default_rng(0))
    assert means.mean() == pytest.approx(returns.mean(), abs=0.02)
    assert means.std() == pytest.approx(returns.std() / 20, rel=0.1)
    # seeds of 0 and of 1 only: their mean of two is 0, ½ or 1 with chances 1 : 2 : 1
    means = resampled_means([played(0.0), played(1.0)], np.random.default_rng(0))
    assert set(means.tolist()) == {0.0, 0.5, 1.0}
    assert np.mean(means == 0.5) == pytest.approx(0.5, abs=0.05)


def test_means_and_errors_are_over_seeds():
    seeds = [played(1.0, 3.0), played(4.0, 4.0), played(6.0, 6.0)]
    assert mean_return(seeds) == 4.0
    assert standard_error(seeds) == pytest.approx(2 / math.sqrt(3))
    assert standard_error(seeds[:1]) == pytest.approx(1.0)  # of 1 and 3
    assert math.isnan(standard_error([played(1.0)]))


def test_percent_of_a_teacher_below_0_is_not_defined():
    assert percent_of_teacher(3.0, 4.0) == 75
    assert percent_of_teacher(3.0, -4.0) is None
    assert percent_of_teacher(3.0, 0.0) is None


def test_fidelity_is_the_mean_over_seeds():
    def fidelity(value, states):
        names = [n for n in Fidelity.__dataclass_fields__ if n != "states"]
        return Fidelity(**dict.fromkeys(names, value), states=states)

    assert mean_fidelity([fidelity(0.25, 10), fidelity(0.5, 20)]) == fidelity(0.375, 30)
