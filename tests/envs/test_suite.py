"""What the five games of the suite have in common."""

import numpy as np
import pytest
from playing import make_vec, play

from rlmask_envs import suite
from rlmask_envs.suite import DOWN, LEFT, PRIMARY, RIGHT, SECONDARY, UP

OTHER_SIZES = {
    "Courier": {"height": 7, "width": 8, "num_doors": 1},
    "Game2048": {"size": 3, "max_tile": 64},
    "Snake": {"height": 4, "width": 5},
    "Sokoban": {"height": 6, "width": 7, "num_boxes": 1, "num_pulls": 3},
    "Tetris": {"height": 8, "width": 6},
}
# what is neither 0 nor 255, by game and plane
GRADED = {("Snake", 1): set(range(1, 255)), ("Courier", 10): {128}}


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_all_sizes_are_compiled_as_one(name):
    envs, other = make_vec(name, 1), make_vec(name, 1, **OTHER_SIZES[name])
    assert envs.states.dtype == other.states.dtype
    assert envs.options.dtype == other.options.dtype
    assert envs.observation_space == other.observation_space


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_planes_are_255_or_0_but_for_two(name):
    seen = set()
    for _, obs, *_ in play(make_vec(name, 16), 200):
        for plane in range(suite.NUM_PLANES):
            values = set(np.unique(obs[..., plane]).tolist()) - {0, 255}
            assert values <= GRADED.get((name, plane), set())
            seen |= {(name, plane)} if values else set()
    assert seen == {graded for graded in GRADED if graded[0] == name}


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_small_boards_are_in_the_upper_left_corner(name):
    sizes = OTHER_SIZES[name]
    height, width = sizes.get("height", 3), sizes.get("width", 3)
    for _, obs, *_ in play(make_vec(name, 4, **sizes), 50):
        assert not obs[:, height:].any() and not obs[:, :, width:].any()


def test_directions():
    places = {
        action: (suite.row_ahead(5, action), suite.column_ahead(5, action))
        for action in (UP, RIGHT, DOWN, LEFT, PRIMARY, SECONDARY)
    }
    assert places == {
        **{UP: (4, 5), RIGHT: (5, 6), DOWN: (6, 5), LEFT: (5, 4)},
        **{PRIMARY: (5, 5), SECONDARY: (5, 5)},
    }
