from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from playing import make_vec, play
from reference_games import minesweeper as reference

from rlmask_envs import drawing, minesweeper

HEIGHT, WIDTH = 5, 6  # of the boards by hand
FIELDS = ("shown", "mines", "around", "num_open", "cells")
CELLS = {(y, x) for y in range(HEIGHT) for x in range(WIDTH)}


def make(num_mines=10, num_envs=1):
    envs = make_vec(
        "Minesweeper", num_envs, height=HEIGHT, width=WIDTH, num_mines=num_mines, num_threads=1
    )
    envs.reset(seed=0)
    return envs, envs.states, envs.options


class Board:
    """One env with a position: * a mine, o an open cell, # a closed one."""

    def __init__(self, *rows):
        mines = {(y, x) for y, x in CELLS if rows[y][x] == "*"}
        self.envs, (self.state,), self.options = make(len(mines))
        for y, x in CELLS:
            number = len(mines & reference.around((y, x)))
            self.state.mines[y, x], self.state.around[y, x] = (y, x) in mines, number
            self.state.shown[y, x] = 1 + number if rows[y][x] == "o" else 0
        self.state.num_open = "".join(rows).count("o")

    def open(self, y, x):
        rng = self.envs._batch.rngs[0]
        return minesweeper.step(self.state, y * WIDTH + x, rng, self.options)

    @property
    def lines(self):
        return minesweeper.text(self.state, self.options).split("\n")

    @property
    def image(self):
        return minesweeper.image(self.state, self.options)

    @property
    def obs(self):
        obs = np.zeros((HEIGHT, WIDTH, 10), np.uint8)
        minesweeper.observe(self.state, obs, self.options)
        return obs

    @property
    def mask(self):
        mask = np.zeros(HEIGHT * WIDTH, np.int8)
        minesweeper.valid_actions(self.state, mask, self.options)
        return mask.reshape(HEIGHT, WIDTH)


WALL = ("##*###", "##*###", "##*###", "##*###", "##*##o")


def test_a_region_is_opened_up_to_its_numbers():
    board = Board(*WALL)
    # two columns of the 25 cells without a mine; two mines are next to the ends of a column
    # along the wall, three next to the others; nothing is opened around the edge of the board
    assert board.open(2, 0) == (10 / 25, False)
    assert board.lines == [".2####", ".3####", ".3####", ".3####", ".2###."]
    assert board.open(0, 3) == (1 / 25, False)  # a number opens alone
    assert board.lines == [".2#2##", ".3####", ".3####", ".3####", ".2###."]
    assert board.open(0, 4) == (13 / 25, True)  # 15 cells right of the wall, but for two
    assert board.lines == [".2#2..", ".3#3..", ".3#3..", ".3#3..", ".2#2.."]


def test_a_region_is_opened_across_corners():
    board = Board("######", "####*#", "###*o#", "#*####", "*#####")
    # the five cells at the upper left see no mine; (1, 3) and (2, 2), which see two, are reached
    # only across the corners of (0, 2) and (1, 1)
    assert board.open(0, 0) == (11 / 26, False)
    assert board.lines == ["...1##", "..12##", "112#2#", "######", "######"]


def test_a_mine_ends_the_episode_without_reward():
    board = Board(*WALL)
    assert board.open(3, 2) == (0.0, True)
    assert board.lines == ["######", "######", "######", "##*###", "#####."]
    assert not board.obs[3, 2].any()
    assert np.argwhere(board.mask == 0).tolist() == [[3, 2], [4, 5]]


def test_planes():
    board = Board("******", "#*###*", "*****#", "#####*", "o##*##")
    # counted by hand: (1, 2) has three mines above, one on its left and three below
    numbers = {(4, 5): 1, (3, 0): 2, (2, 5): 3, (3, 4): 4, (1, 0): 5, (1, 3): 6, (1, 2): 7}
    for (y, x), number in numbers.items():
        assert board.open(y, x) == (1 / 15, False)
        assert np.flatnonzero(board.obs[y, x]).tolist() == [1 + number]
    board = Board("****##", "*#**##", "****##", "#####o", "######")
    board.open(1, 1)
    assert np.flatnonzero(board.obs[1, 1]).tolist() == [9]  # surrounded
    assert np.flatnonzero(board.obs[3, 5]).tolist() == [1]
    assert np.flatnonzero(board.obs[0, 0]).tolist() == [0]
    assert set(np.unique(board.obs)) == {0, 255}


@pytest.mark.parametrize("first", [(0, 0), (0, 5), (2, 3), (4, 0)])
@pytest.mark.parametrize("num_mines", [1, 21, 22, 29])
def test_where_mines_may_be(first, num_mines):
    envs, states, options = make(num_mines, num_envs=64)
    free = {first} | (reference.around(first) if num_mines <= 21 else set())  # 30 cells less 9
    seen = set()
    for state, rng in zip(states, envs._batch.rngs, strict=True):
        minesweeper.place_mines(state, *first, rng, options)
        mines = {tuple(place) for place in np.argwhere(state.mines).tolist()}
        assert len(mines) == num_mines
        seen |= mines
        for cell in CELLS:
            assert state.around[cell] == len(mines & reference.around(cell))
    assert not seen & free
    assert seen == CELLS - free or num_mines == 1  # 64 draws of one mine may miss a cell


def test_every_set_of_mines_is_equally_likely():
    envs, (state,), options = make(2)
    counts = Counter()
    for _ in range(10500):
        minesweeper.reset(state, envs._batch.rngs[0], options)
        minesweeper.place_mines(state, 2, 2, envs._batch.rngs[0], options)
        y, x = np.nonzero(state.mines)
        counts[tuple(zip(y.tolist(), x.tolist(), strict=True))] += 1
    free = reference.around((2, 2)) | {(2, 2)}
    assert set(counts) == set(combinations(sorted(CELLS - free), 2))
    # 21 cells make 210 pairs: 50 each, and the standard deviation is sqrt(50) = 7
    assert max(abs(count - 50) for count in counts.values()) < 5 * 7


def test_a_full_board_is_solved_at_once():
    envs, _, _ = make(29, num_envs=4)
    _, reward, terminated, _, info = envs.step([0, 5, 24, 16])
    assert reward.tolist() == [1.0] * 4 and terminated.all()
    assert (info["final_info"]["action_mask"].sum(1) == 29).all()


def test_the_first_opening_opens_a_region():
    envs = make_vec("Minesweeper", 200)
    envs.reset(seed=0)
    _, reward, terminated, _, _ = envs.step(np.arange(200) % 100)
    corner = 4 / 90  # with its three neighbours
    assert reward.min() >= corner and not (terminated & (reward < 1)).any()


@pytest.mark.parametrize("sizes", [{}, {"height": HEIGHT, "width": WIDTH, "num_mines": 4}])
def test_random_play(sizes):
    envs = make_vec("Minesweeper", 16, num_threads=1, **sizes)
    states, options = envs.states, envs.options
    returns, outcomes = np.zeros(16), set()
    for _, obs, reward, terminated, truncated, info in play(envs, 200):
        assert not truncated.any()
        assert (obs.sum(-1, dtype=int) == 255).all()
        assert ((obs[..., 0] == 255).reshape(16, -1) == info["action_mask"]).all()
        for state, row in zip(states, info["action_mask"], strict=True):
            assert row.tolist() == reference.valid(state, options)
            assert state.num_open == (row == 0).sum()
        returns += reward
        for i in np.flatnonzero(terminated):
            is_solved = bool(reward[i] > 0)
            outcomes.add(is_solved)
            assert is_solved == (abs(returns[i] - 1) < 1e-9)
            without_plane = (info["final_obs"][i].max(-1) == 0).sum()
            assert without_plane == (0 if is_solved else 1)  # the opened mine
            if is_solved:
                assert info["final_info"]["action_mask"][i].sum() == options.num_mines
            assert info["action_mask"][i].all()
        returns[terminated] = 0
    assert outcomes == ({True, False} if sizes else {False})  # ten mines are too many for luck


def test_reset_sets_every_field():
    envs, (state,), options = make()
    for name in FIELDS:
        state[name] = 77
    minesweeper.reset(state, envs._batch.rngs[0], options)
    assert all(not np.any(state[name]) for name in FIELDS)
    assert set(state.dtype.names) == set(FIELDS)


def test_pictures():
    board = Board(*WALL)
    closed = board.image
    assert closed.shape == (HEIGHT * 32, WIDTH * 32, 3) and closed.dtype == np.uint8
    assert (closed[:, 2 * 32 : 3 * 32] == closed[:, :32]).all()  # it shows no mine
    board.open(2, 2)
    assert tuple(board.image[2 * 32 + 4, 2 * 32 + 4]) == drawing.RED  # where it was opened
    assert tuple(board.image[16, 2 * 32 + 16]) == drawing.BLACK  # and the other mines
    board = Board("oooooo", "oooooo", "#oo*oo", "oooooo", "oooooo")
    board.open(2, 0)
    assert tuple(board.image[2 * 32 + 12, 3 * 32 + 16]) == drawing.RED  # a flag
    assert board.lines == ["......", "..111.", "..1#1.", "..111.", "......"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": 3}, "height is 3; it takes an integer of 4 to 32"),
        ({"width": 33}, "width is 33; it takes an integer of 4 to 32"),
        ({"num_mines": 0}, "num_mines is 0; it takes an integer of 1 to 99"),
        ({"height": 4, "width": 5, "num_mines": 20}, "num_mines is 20; it takes .* 1 to 19"),
        ({"num_mines": 2.5}, r"num_mines is 2\.5; it takes an integer"),
    ],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        minesweeper.setup(**sizes)
