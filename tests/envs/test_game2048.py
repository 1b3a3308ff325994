"""2048: merges and ends derived by hand, properties of random play."""

import numpy as np
import pytest
from playing import make_vec, play
from reference_games import game2048 as reference

from rlmask_envs import game2048
from rlmask_envs.suite import DOWN, LEFT, RIGHT, UP


def position(rows, **sizes):
    """Return a state set to rows of tile numbers, its options, and randomness."""
    side = len(rows)
    envs = make_vec("Game2048", 1, size=side, **sizes)
    (state,) = envs.states
    state.board[:side, :side] = [
        [0 if tile == 0 else tile.bit_length() - 1 for tile in row] for row in rows
    ]
    return state, envs.options, np.zeros(2, np.uint64)


def mask_of(state, options):
    mask = np.zeros(6, np.int8)
    game2048.valid_actions(state, mask, options)
    return mask.tolist()


@pytest.mark.parametrize(
    "line, after, reward",
    [
        ([0, 0, 0, 2], [2, 0, 0, 0], 0),
        ([2, 0, 4, 0], [2, 4, 0, 0], 0),
        ([2, 2, 0, 0], [4, 0, 0, 0], 4),
        ([2, 0, 0, 2], [4, 0, 0, 0], 4),
        ([2, 2, 2, 0], [4, 2, 0, 0], 4),  # the two next to the wall
        ([0, 2, 2, 2], [4, 2, 0, 0], 4),
        ([2, 2, 2, 2], [4, 4, 0, 0], 8),
        ([4, 4, 8, 8], [8, 16, 0, 0], 24),
        ([4, 2, 2, 0], [4, 4, 0, 0], 4),  # the new 4 merges no more
        ([2, 2, 4, 0], [4, 4, 0, 0], 4),
        ([4, 0, 2, 2], [4, 4, 0, 0], 4),
        ([2, 4, 2, 0], [2, 4, 2, 0], -1),  # nothing has changed
        ([2, 4, 8, 16], [2, 4, 8, 16], -1),
        ([0, 0, 0, 0], [0, 0, 0, 0], -1),
        ([32768, 0, 32768, 2], [65536, 2, 0, 0], 65536),
    ],
)
def test_a_line_slides_and_merges_in_every_direction(line, after, reward):
    blank = [[0] * 4 for _ in range(4)]
    for action in range(4):
        for index in range(4):
            before, expected = np.array(blank), np.array(blank)
            for board, tiles in ((before, line), (expected, after)):
                if action == LEFT:
                    board[index] = tiles
                elif action == RIGHT:
                    board[index] = tiles[::-1]
                elif action == UP:
                    board[:, index] = tiles
                else:
                    board[:, index] = tiles[::-1]
            state, options, _ = position(before.tolist())
            assert mask_of(state, options)[action] == (reward >= 0)
            assert game2048.slide(state, action, options) == reward
            assert reference.tiles(state, options) == expected.tolist()


def test_merges_of_all_lines_add_up():
    rows = [[2, 2, 0, 0], [8, 0, 8, 8], [0, 0, 0, 0], [64, 0, 0, 64]]
    state, options, _ = position(rows)
    assert game2048.slide(state, RIGHT, options) == 4 + 16 + 128
    assert reference.tiles(state, options) == [
        [0, 0, 0, 4],
        [0, 0, 8, 16],
        [0, 0, 0, 0],
        [0, 0, 0, 128],
    ]


def test_mask_is_of_the_moves_that_change_the_board():
    state, options, _ = position([[2, 0], [4, 0]])
    assert mask_of(state, options) == [0, 1, 0, 0, 0, 0]
    state, options, _ = position([[2, 4], [0, 0]])
    assert mask_of(state, options) == [0, 0, 1, 0, 0, 0]
    state, options, _ = position([[2, 2], [4, 8]])
    assert mask_of(state, options) == [0, 1, 0, 1, 0, 0]
    state, options, _ = position([[2, 4], [2, 8]])
    assert mask_of(state, options) == [1, 0, 1, 0, 0, 0]
    state, options, _ = position([[2, 4], [4, 2]])
    assert mask_of(state, options) == [0] * 6


def test_a_move_adds_one_tile_on_an_empty_cell():
    state, options, rng = position([[0, 0, 0], [0, 8, 0], [0, 0, 0]])
    assert game2048.step(state, UP, rng, options) == (0.0, False)
    rows = reference.tiles(state, options)
    assert rows[0][1] == 8
    assert sorted(np.ravel(rows)) in ([0] * 7 + [2, 8], [0] * 7 + [4, 8])


def test_new_tiles_are_everywhere_alike_and_a_tenth_are_fours():
    state, options, rng = position([[8, 16], [0, 0]])
    num_draws, counts = 6000, np.zeros((2, 2), int)
    for _ in range(num_draws):
        state.board[1] = 0
        game2048.add_tile(state, rng, options)
        assert state.board[0, :2].tolist() == [3, 4]
        assert (state.board > 0).sum() == 3  # none is beyond the board
        for x in range(2):
            if state.board[1, x]:
                counts[x, state.board[1, x] - 1] += 1
    for x in range(2):
        for value, share in enumerate((0.45, 0.05)):
            deviation = (num_draws * share * (1 - share)) ** 0.5
            assert abs(counts[x, value] - num_draws * share) < 5 * deviation


def test_game_ends_when_no_move_is_left():
    # The new tile, 2 or 4, fills the only empty cell, and differs from its neighbours
    state, options, rng = position([[8, 0], [16, 32]])
    assert game2048.step(state, RIGHT, rng, options) == (0.0, True)  # [new, 8], [16, 32]
    state, options, rng = position([[8, 8], [16, 32]])
    assert game2048.step(state, RIGHT, rng, options) == (16.0, True)  # [new, 16], [16, 32]
    state, options, rng = position([[8, 8], [16, 16]])
    assert game2048.step(state, LEFT, rng, options) == (48.0, False)  # a cell is left empty
    # A full board goes on if neighbours are equal: [16, 16], [new, 8] or [16, new], [16, 8]
    for action in (UP, LEFT):
        state, options, rng = position([[0, 16], [16, 8]])
        assert game2048.step(state, action, rng, options) == (0.0, False)
        assert (state.board[:2, :2] > 0).all()


def test_game_ends_at_the_greatest_tile():
    rows = [[8, 8, 0], [0, 0, 0], [0, 0, 0]]
    state, options, rng = position(rows, max_tile=16)
    assert game2048.step(state, LEFT, rng, options) == (16.0, True)
    assert reference.tiles(state, options) == [[16, 0, 0], [0, 0, 0], [0, 0, 0]]  # no new tile
    state, options, rng = position(rows, max_tile=32)
    assert game2048.step(state, LEFT, rng, options) == (16.0, False)
    rows = [[32768, 32768, 0], [0, 0, 0], [0, 0, 0]]
    state, options, rng = position(rows)
    assert game2048.step(state, LEFT, rng, options) == (65536.0, True)
    state, options, rng = position(rows, max_tile=2**30)
    assert game2048.step(state, LEFT, rng, options) == (65536.0, False)


def test_planes_are_the_exponents():
    state, options, _ = position([[0, 2, 4], [8, 65536, 131072], [2**29, 32768, 0]])
    expected = np.zeros((10, 10, 16), np.uint8)
    for y, x, plane in [
        (0, 1, 0), (0, 2, 1), (1, 0, 2), (1, 1, 15), (1, 2, 15), (2, 0, 15), (2, 1, 14)
    ]:  # fmt: skip
        expected[y, x, plane] = 255
    obs = np.zeros_like(expected)
    game2048.observe(state, obs, options)
    assert (obs == expected).all()


def earned(board):
    """Return what its tiles have earned if they are made of 2s alone: n log2(n / 2) for an n."""
    tiles = board[board > 0]
    return (tiles * (np.log2(tiles) - 1)).sum()


@pytest.mark.parametrize("size, max_tile, num_steps", [(4, 65536, 300), (10, 16, 60)])
def test_random_play(size, max_tile, num_steps):
    envs = make_vec("Game2048", 8, size=size, max_tile=max_tile)
    options, before, ends = envs.options, None, 0
    for action, obs, reward, terminated, truncated, info in play(envs, num_steps):
        assert not truncated.any()
        boards = [np.array(reference.tiles(state, options)) for state in envs.states]
        assert (info["action_mask"][:, 4:] == 0).all() and info["action_mask"].any(-1).all()
        assert (obs[:, size:] == 0).all() and (obs[:, :, size:] == 0).all()
        for i in np.flatnonzero(terminated):
            ends += 1
            assert (boards[i] > 0).sum() == 2  # a new episode
            end = info["final_obs"][i]
            reached = end[:, :, max_tile.bit_length() - 2].any()
            assert reached or not info["final_info"]["action_mask"][i].any()
        if before is not None:
            for i in np.flatnonzero(~terminated):
                moved = np.array(reference.moved(before[i].tolist(), action[i]))
                (new,), (old,) = boards[i][boards[i] != moved], moved[boards[i] != moved]
                assert new in (2, 4) and old == 0
                gift = 4 if new == 4 else 0  # a 4 that appears has earned nothing
                assert reward[i] == earned(boards[i]) - earned(before[i]) - gift
        before = boards
    assert ends > 0


def test_start():
    state, options, rng = position([[2, 4, 8, 16]] * 4)
    places = np.zeros((4, 4), int)
    for _ in range(300):
        game2048.reset(state, rng, options)
        assert (state.board > 0).sum() == 2 and state.board.max() <= 2
        places += state.board[:4, :4] > 0
    assert (places > 0).all()


@pytest.mark.parametrize("size", [1, 11, 4.0, True, "4"])
def test_size_is_checked(size):
    with pytest.raises(ValueError, match=r"size is .*; it takes an integer of 2 to 10"):
        game2048.setup(size=size)


@pytest.mark.parametrize("max_tile", [4, 0, -8, 2**31, 64.0, True, "64"])
def test_max_tile_is_checked(max_tile):
    with pytest.raises(ValueError, match=r"max_tile is .*; it takes an integer of 8 to 1073741824"):
        game2048.setup(max_tile=max_tile)


def test_max_tile_is_a_power_of_two():
    with pytest.raises(ValueError, match="max_tile is 24; it takes a power of two"):
        game2048.setup(max_tile=24)
    assert game2048.setup(max_tile=np.uint16(64)).options["max_exponent"] == 6


def test_text_and_image():
    state, options, _ = position([[0, 2, 0], [16, 0, 1024], [0, 0, 2**29]])
    assert game2048.text(state, options).splitlines() == [
        "        .         2         .",
        "       16         .      1024",
        "        .         . 536870912",
    ]
    picture = game2048.image(state, options)
    assert picture.shape == (192, 192, 3) and picture.dtype == np.uint8
    other, _, _ = position([[0, 4, 0], [16, 0, 1024], [0, 0, 2**29]])
    assert (picture != game2048.image(other, options)).any()


def test_down_is_towards_the_last_row():
    state, options, _ = position([[2, 0], [0, 0]])
    game2048.slide(state, DOWN, options)
    assert reference.tiles(state, options) == [[0, 0], [2, 0]]
