"""Keyword arguments of games."""

import numpy as np
import pytest

from rlmask_envs import (
    connect_four,
    courier,
    cvrp,
    game2048,
    job_shop,
    minesweeper,
    snake,
    sokoban,
    tetris,
)
from rlmask_envs.batch import make_options
from rlmask_envs.settings import check_choice, check_size


@pytest.mark.parametrize("kind", [int, np.int64, np.int8, np.uint16, np.array])
def test_integers_are_sizes(kind):
    for value in (2, 7, 10):
        size = check_size("height", kind(value), 2, 10)
        assert size == value and type(size) is int


@pytest.mark.parametrize(
    "value", [1, 11, -3, True, np.True_, 4.0, np.float32(4), "4", None, [4], np.int64(300)]
)
def test_what_is_no_size(value):
    with pytest.raises(ValueError, match=r"height is .*; it takes an integer of 2 to 10"):
        check_size("height", value, 2, 10)


def test_choices():
    assert [check_choice("seat", name, ("a", "b")) for name in ("a", "b")] == [0, 1]
    for value in ("third", 1, None):
        with pytest.raises(ValueError, match=f"seat is {value!r}; it takes 'a', 'b' or 'c'"):
            check_choice("seat", value, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("game", "sizes"),
    [
        (connect_four, {"height": 5, "width": 6}),
        (courier, {"height": 8, "width": 9, "num_doors": 1}),
        (cvrp, {"num_customers": 12, "capacity": 30}),
        (game2048, {"size": 5, "max_tile": 64}),
        (job_shop, {"num_jobs": 3, "num_machines": 4}),
        (minesweeper, {"height": 20, "width": 30, "num_mines": 99}),
        (snake, {"height": 5, "width": 6}),
        (sokoban, {"height": 8, "width": 9, "num_boxes": 2, "num_pulls": 4}),
        (tetris, {"height": 7, "width": 8}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sizes_may_be_numpys(game, sizes):
    setup = game.setup(**sizes)
    other = game.setup(**{name: np.uint8(value) for name, value in sizes.items()})
    assert setup.state == other.state
    assert setup.observation_space == other.observation_space
    assert make_options(setup).dtype == make_options(other).dtype
    assert make_options(setup).tobytes() == make_options(other).tobytes()
