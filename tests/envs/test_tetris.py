"""Tetris: positions derived by hand, and random play against a model of sets."""

import numpy as np
import pytest
from playing import make_vec, play
from reference_games import tetris as reference

from rlmask_envs import tetris
from rlmask_envs.suite import DOWN, LEFT, PRIMARY, RIGHT, UP

I, O, T, S, Z, J, L = range(7)  # noqa: E741
EMPTY = ["." * 10] * 10


def position(rows, piece=O, turns=0, y=0, x=0, next_piece=O):
    """Return a state, its options, and randomness; # is a filled cell of an O."""
    height, width = len(rows), len(rows[0])
    envs = make_vec("Tetris", 1, height=height, width=width)
    (state,) = envs.states
    state.cells[:height, :width] = [[O + 1 if mark == "#" else 0 for mark in row] for row in rows]
    state.piece, state.turns, state.y, state.x, state.next_piece = piece, turns, y, x, next_piece
    return state, envs.options, np.zeros(2, np.uint64)


def well(*rows):
    """Return a well of 10 rows that ends with these, empty above."""
    return EMPTY[: 10 - len(rows)] + list(rows)


def shown(state, options):
    """Return the state as text, but for where the piece would land."""
    return tetris.text(state, options).replace(":", ".").splitlines()[: options.height]


def mask_of(state, options):
    mask = np.zeros(6, np.int8)
    tetris.valid_actions(state, mask, options)
    return mask.tolist()


@pytest.mark.parametrize("piece", range(7))
def test_pieces(piece):
    for turns in range(4):
        cells = {(int(y), int(x)) for y, x in tetris.PIECES[piece, turns]}
        assert cells == reference.cells_of(piece, turns)
        assert len(cells) == 4
    # A turn to the right takes the upper edge to the right: row y becomes column 2 - y
    first, second = tetris.PIECES[piece, 0], tetris.PIECES[piece, 1]
    middle = 1 if piece == O else 2
    assert {(x, middle - y) for y, x in first.tolist()} == set(map(tuple, second.tolist()))


def test_a_piece_looks_as_it_turns():
    # What is to be seen of the falling piece determines what each action makes of it
    seen = {}
    for piece in range(7):
        for turns in range(4):
            for y in range(4):
                for x in range(-2, 8):
                    now = frozenset(reference.cells_of(piece, turns, y, x))
                    turned = frozenset(reference.cells_of(piece, turns + 1, y, x))
                    assert seen.setdefault(now, turned) == turned
    assert len(seen) == (1 + 3 * 2 + 3 * 4) * 40


@pytest.mark.parametrize(
    "width, piece, top",
    [
        (10, I, ["...@@@@...", ".........."]),
        (10, O, ["....@@....", "....@@...."]),
        (10, T, ["....@.....", "...@@@...."]),
        (10, S, ["....@@....", "...@@....."]),
        (10, Z, ["...@@.....", "....@@...."]),
        (10, J, ["...@......", "...@@@...."]),
        (10, L, [".....@....", "...@@@...."]),
        (7, I, [".@@@@..", "......."]),
        (7, O, ["..@@...", "..@@..."]),
        (7, T, ["...@...", "..@@@.."]),
        (7, L, ["....@..", "..@@@.."]),
    ],
)
def test_pieces_appear_in_the_middle_of_the_top(width, piece, top):
    rows = EMPTY if width == 10 else ["." * width] * 6
    state, options, rng = position(rows, next_piece=piece)
    tetris.bring_next(state, rng, options)
    assert shown(state, options)[:2] == top


def test_turn_left_and_right_fall_by_a_row_and_soft_drop_is_one():
    for action, rows in [
        (UP, [".....@....", ".....@@...", ".....@...."]),
        (RIGHT, ["..........", "......@...", ".....@@@.."]),
        (DOWN, ["..........", ".....@....", "....@@@..."]),
        (LEFT, ["..........", "....@.....", "...@@@...."]),
    ]:
        state, options, rng = position(EMPTY, T, x=4)
        assert tetris.step(state, action, rng, options) == (0.0, False)
        expected = ["." * 10, *rows] if action == UP else rows
        assert shown(state, options)[: len(expected)] == expected


def test_hard_drop_lands_and_locks():
    state, options, rng = position(well("#........."), T, y=3, x=0, next_piece=I)
    assert tetris.step(state, PRIMARY, rng, options) == (0.0, False)
    # The T's flat side, columns 0 to 2, comes to lie on the filled cell in column 0
    rows = ["...@@@@...", *["." * 10] * 6, ".T........", "TTT.......", "O........."]
    assert shown(state, options) == rows
    assert state.turns == 0


def test_a_hard_drop_goes_no_further_than_a_ledge():
    # Below the ledge in row 5 is room for the piece, but it does not pass through
    rows = [*EMPTY[:5], "....##....", *EMPTY[:4]]
    state, options, rng = position(rows, O, x=4)
    tetris.step(state, PRIMARY, rng, options)
    assert state.cells[3, 4] == state.cells[4, 5] == O + 1 and (state.cells[6:] == 0).all()


def test_a_piece_locks_by_a_move_after_which_it_cannot_fall():
    # On the ground: right moves it once more, and locks
    state, options, rng = position(EMPTY, O, y=8, x=0, next_piece=T)
    assert mask_of(state, options) == [0, 1, 0, 0, 1, 0]  # no soft drop into the ground
    assert tetris.step(state, RIGHT, rng, options) == (0.0, False)
    assert shown(state, options)[8:] == [".OO.......", ".OO......."]
    assert shown(state, options)[0] == "....@....."


def test_a_piece_that_moves_off_a_ledge_falls_on():
    state, options, rng = position(well("##........"), O, y=7, x=1)
    assert mask_of(state, options) == [0, 1, 0, 1, 1, 0]
    tetris.step(state, RIGHT, rng, options)
    assert (state.y, state.x) == (8, 2) and (state.cells[:9] == 0).all()  # on the ground by now
    state, options, rng = position(well("##........"), O, y=7, x=1)
    tetris.step(state, LEFT, rng, options)
    assert state.cells[7, 0] == O + 1  # still on the ledge: locked


def test_a_soft_drop_onto_the_ground_does_not_lock():
    state, options, rng = position(EMPTY, O, y=7, x=0)
    tetris.step(state, DOWN, rng, options)
    assert (state.y, state.x) == (8, 0) and (state.cells == 0).all()


def test_turns_are_blocked_and_never_pushed_aside():
    for piece in range(7):
        state, options, _ = position(EMPTY, piece, x=3)
        assert mask_of(state, options)[UP] == (piece != O)
    # Upright T with its stem to the left at the right wall: its turn needs column 10
    state, options, _ = position(EMPTY, T, turns=3, y=3, x=8)
    assert mask_of(state, options) == [0, 0, 1, 1, 1, 0]
    # and its mirror image at the left wall needs column -1
    state, options, _ = position(EMPTY, T, turns=1, y=3, x=-1)
    assert mask_of(state, options) == [0, 1, 1, 0, 1, 0]
    # Flat I in the row above the ground: upright it would need four rows
    state, options, _ = position(EMPTY, I, y=7, x=3)
    assert mask_of(state, options) == [0, 1, 1, 1, 1, 0]
    state, options, _ = position(EMPTY, I, y=6, x=3)
    assert mask_of(state, options)[UP] == 1
    # A filled cell where the turned T would come to
    rows = [*EMPTY[:5], "....#.....", *EMPTY[:4]]
    state, options, _ = position(rows, T, y=3, x=3)
    assert mask_of(state, options) == [0, 1, 0, 1, 1, 0]


def test_walls_and_filled_cells_block_moves_sideways():
    state, options, _ = position(EMPTY, O, y=0, x=0)
    assert mask_of(state, options) == [0, 1, 1, 0, 1, 0]
    state, options, _ = position(EMPTY, O, y=0, x=8)
    assert mask_of(state, options) == [0, 0, 1, 1, 1, 0]
    rows = ["." * 10, "...#..#...", *EMPTY[:8]]
    state, options, _ = position(rows, O, y=0, x=4)
    assert mask_of(state, options) == [0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("full, reward", [(0, 0), (1, 1), (2, 3), (3, 6), (4, 10)])
def test_reward_is_triangular_in_rows_cleared_at_once(full, reward):
    rows = ["#########."] * full + ["########.."] * (4 - full)
    state, options, rng = position(well("#.........", *rows), I, turns=1, x=7, next_piece=T)
    assert tetris.step(state, PRIMARY, rng, options) == (reward, False)
    left = ["########.I"] * (4 - full)
    expected = well("#.........", *[row.replace("#", "O") for row in left])
    assert shown(state, options)[2:] == [row.replace("#", "O") for row in expected[2:]]


def test_rows_between_full_ones_stay():
    rows = ["#.#.......", "#########.", "##.######.", "#########.", "....#....."]
    state, options, rng = position(well(*rows), I, turns=1, x=7)
    # Upright in column 9 it falls to the ground, through all but the uppermost row
    assert tetris.step(state, PRIMARY, rng, options) == (3.0, False)
    rows = ["O.O.......", "OO.OOOOOOI", "....O....I"]
    assert shown(state, options)[3:] == well(*rows)[3:]


def test_game_ends_when_the_next_piece_has_no_room():
    # The first O lands out of the way; the next one needs rows 0 and 1 of columns 4 and 5
    rows = ["." * 10, "...#......", *EMPTY[:7], "#........."]
    state, options, rng = position(rows, O, y=8, x=7, next_piece=O)
    assert tetris.step(state, PRIMARY, rng, options) == (0.0, False)
    rows = ["." * 10, "....#.....", *EMPTY[:7], "#........."]
    state, options, rng = position(rows, O, y=8, x=7, next_piece=O)
    assert tetris.step(state, PRIMARY, rng, options) == (0.0, True)
    # Full rows are cleared before: what was in row 1 is in row 3 by then
    rows = ["." * 10, "....#.....", *EMPTY[:6], "########..", "########.."]
    state, options, rng = position(rows, O, y=7, x=8, next_piece=O)
    assert tetris.step(state, PRIMARY, rng, options) == (3.0, False)
    rows = ["....#.....", "....#.....", "....#.....", *EMPTY[:6], "########.."]
    state, options, rng = position(rows, O, y=7, x=8, next_piece=O)
    assert tetris.step(state, PRIMARY, rng, options) == (1.0, True)
    # The end can be shown as well
    mask_of(state, options)
    obs = np.zeros((10, 10, 16), np.uint8)
    tetris.observe(state, obs, options)
    tetris.image(state, options)


def test_planes():
    rows = ["." * 7] * 5 + ["##....."]
    state, options, _ = position(rows, T, turns=1, y=0, x=0, next_piece=Z)
    obs = np.zeros((10, 10, 16), np.uint8)
    tetris.observe(state, obs, options)
    expected = np.zeros_like(obs)
    for plane, cells in enumerate(
        [
            [(5, 0), (5, 1)],
            [(0, 1), (1, 1), (2, 1), (1, 2)],
            [(2, 1), (3, 1), (4, 1), (3, 2)],  # on the filled cell in column 1
            [(0, 0), (0, 1), (1, 1), (1, 2)],
            [(y, x) for y in range(6) for x in range(7)],
        ]
    ):
        for y, x in cells:
            expected[y, x, plane] = 255
    assert (obs == expected).all()


def test_random_play_is_that_of_the_model():
    state, options, rng = position(EMPTY)
    draws = np.random.default_rng(0)
    tetris.reset(state, rng, options)
    rewards, locks, ends = [], 0, 0
    for _ in range(6000):
        mask = mask_of(state, options)
        assert list(map(bool, mask)) == reference.valid(state, options)
        action = int(draws.choice(np.flatnonzero(mask)))
        cells, filled, reward = reference.after(state, action, options)
        follower = int(state.next_piece)
        given, terminated = tetris.step(state, action, rng, options)
        assert given == reward
        assert reference.filled_of(state) == filled
        now = reference.cells_of(state.piece, state.turns, int(state.y), int(state.x))
        if cells is None:
            locks += 1
            rewards.append(reward)
            assert state.piece == follower and min(now)[0] == 0
            assert terminated == bool(now & filled)
        else:
            assert now == cells and not terminated
        if terminated:
            ends += 1
            tetris.reset(state, rng, options)
            assert (state.cells == 0).all() and state.turns == 0 and state.y == 0
            # Rows with a gap that a piece may close
            if ends % 2 == 0:
                state.cells[6:] = 1
                gap = int(draws.integers(8))
                state.cells[6:, gap : gap + 1 + ends % 3] = 0
    assert locks > 500 and ends > 50
    assert {1, 3} < set(rewards)


def test_envs_play_small_wells():
    envs = make_vec("Tetris", 8, height=6, width=7)
    for _, obs, reward, terminated, _, info in play(envs, 300):
        mask = info["action_mask"]
        assert (mask[:, 4] == 1).all() and (mask[:, 5] == 0).all()
        assert (obs[:, 6:, :, 4] == 0).all() and (obs[:, :, 7:, :3] == 0).all()
        assert (obs[..., 1] > 0).sum((1, 2)).tolist() == [4] * 8
        assert (obs[..., 2] > 0).sum((1, 2)).tolist() == [4] * 8
        assert ((obs[..., 0] > 0) & (obs[..., 1:3] > 0).any(-1)).sum() == 0
        assert set(reward) <= {0, 1, 3, 6, 10}
        states = envs.states
        assert (states.cells[terminated] == 0).all()


def test_pieces_are_drawn_uniformly():
    state, options, rng = position(EMPTY)
    pairs = np.zeros((7, 7), int)
    for _ in range(4900):
        tetris.reset(state, rng, options)
        pairs[state.piece, state.next_piece] += 1
    assert np.abs(pairs - 100).max() < 50  # five standard deviations


@pytest.mark.parametrize("name", ["height", "width"])
@pytest.mark.parametrize("value", [5, 11, 6.0, True, "8"])
def test_sizes_are_checked(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*; it takes an integer of 6 to 10"):
        tetris.setup(**{name: value})


def test_text_and_image():
    state, options, _ = position(well("###......."), J, turns=1, y=1, x=0, next_piece=S)
    lines = tetris.text(state, options).splitlines()
    assert lines[1:4] == [".@@.......", ".@........", ".@........"]
    assert lines[6:] == [".::.......", ".:........", ".:........", "OOO.......", "next: S"]
    picture = tetris.image(state, options)
    assert picture.shape == (320, 480, 3) and picture.dtype == np.uint8
    state.next_piece = T
    assert (picture != tetris.image(state, options)).any()
