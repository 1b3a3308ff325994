import numpy as np
import pytest
from playing import make_vec, play

from rlmask_envs import connect_four
from rlmask_envs.connect_four import AGENT, EMPTY, OPPONENT

HEIGHT, WIDTH = 6, 7
SMALL = {"height": 4, "width": 5}
WAYS = {"row": (0, 1), "column": (1, 0), "falling": (1, 1), "rising": (1, -1)}


def one(rows=(), **sizes):
    """Return an env and its state, rng and options; the lowest rows of its board are `rows`."""
    envs = make_vec("ConnectFour", 1, **sizes)
    envs.reset(seed=0)
    state, options = envs.states[0], envs.options
    lay_out(state, options, rows)
    return envs, state, envs._batch.rngs[0], options


def lay_out(state, options, rows):
    connect_four.clear(state, options)
    for y, row in enumerate(reversed(rows)):
        for x, letter in enumerate(row):
            if letter != ".":
                assert state.filled[x] == y, "a stone hangs in the air"
                connect_four.place(state, x, "XO".index(letter), options)


def lines(state, options):
    return connect_four.text(state, options).split("\n")[:-1]


def replies(rows, num_draws=60, **sizes):
    """Return the columns that the heuristic chooses in a position."""
    _, state, rng, options = one(rows, opponent="heuristic", **sizes)
    return {connect_four.opponent_action(state, rng, options) for _ in range(num_draws)}


def test_stones_fall_onto_each_other():
    _, state, _, options = one()
    assert not connect_four.place(state, 2, AGENT, options)
    assert not connect_four.place(state, 2, OPPONENT, options)
    assert not connect_four.place(state, 6, OPPONENT, options)
    assert lines(state, options)[-2:] == ["..O....", "..X...O"]
    assert state.filled.tolist() == [0, 0, 2, 0, 0, 0, 1]
    assert (state.stones, state.last) == (3, 6)
    assert connect_four.landing(state, 2, options) == HEIGHT - 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("player", [AGENT, OPPONENT])
def test_four_in_a_line_anywhere_on_the_board(way, player):
    dy, dx = WAYS[way]
    _, state, _, options = one()
    num_lines = 0
    for y in range(HEIGHT):
        for x in range(WIDTH):
            cells = [(y + i * dy, x + i * dx) for i in range(4)]
            if all(0 <= j < HEIGHT and 0 <= k < WIDTH for j, k in cells):
                num_lines += 1
                for last in cells:
                    state.board[:] = EMPTY
                    for cell in cells:
                        if cell != last:
                            state.board[cell] = player
                    assert connect_four.makes_four(state, *last, player, options)
                    assert not connect_four.makes_four(state, *last, 1 - player, options)
                    for cell in cells:
                        if cell != last:
                            state.board[cell] = 1 - player  # as are the others but one
                            assert not connect_four.makes_four(state, *last, player, options)
                            state.board[cell] = player
    # a line starts in 4 of 7 columns, 3 of 6 rows, or both
    assert num_lines == {"row": 4 * 6, "column": 7 * 3, "falling": 12, "rising": 12}[way]


def test_a_line_does_not_go_on_at_the_other_side():
    _, state, _, options = one()
    for cells, last in [
        ([(4, 4), (4, 5), (4, 6)], (4, 0)),  # the other end of the row
        ([(4, 0), (4, 1), (4, 2)], (3, 6)),  # the start of the next row
        ([(4, 0), (4, 1), (4, 2)], (4, 6)),
        ([(3, 4), (3, 5), (3, 6)], (4, 0)),
        ([(3, 2), (4, 2), (5, 2)], (0, 2)),  # the other end of the column
    ]:
        state.board[:] = EMPTY
        for cell in cells:
            state.board[cell] = AGENT
        assert not connect_four.makes_four(state, *last, AGENT, options)


def test_a_stone_between_three_and_three_wins():
    _, state, _, options = one(["XXX.XXX"])
    assert connect_four.place(state, 3, AGENT, options)


def test_full_columns_are_invalid():
    rows = ["O......", "X...X..", "O...O..", "X...X..", "O...O..", "X...X.."]
    envs, *_ = one(rows)
    mask = envs.restore_state(envs.capture_state())[1]["action_mask"]
    assert mask.tolist() == [[0, 1, 1, 1, 1, 1, 1]]


def test_the_agent_wins_before_the_opponent_could():
    _, state, rng, options = one(["OOO....", "XXX...."])
    assert connect_four.step(state, 3, rng, options) == (1.0, True)
    assert lines(state, options)[-2:] == ["OOO....", "XXXX..."]  # no reply


def test_the_opponent_wins():
    _, state, rng, options = one(["XXX....", "OOO...."], opponent="heuristic")
    assert connect_four.step(state, 6, rng, options) == (-1.0, True)
    assert lines(state, options)[-2:] == ["XXX....", "OOOO..X"]


def test_the_game_goes_on():
    _, state, rng, options = one(["XX.....", "OOO...X"], opponent="heuristic")
    assert connect_four.step(state, 3, rng, options) == (0.0, False)
    assert state.stones == 8


def test_a_full_board_is_a_draw():
    _, state, rng, options = one(["X.OXO", "OOXOX", "XXOXO", "OXXOO"], **SMALL)
    assert connect_four.step(state, 1, rng, options) == (0.0, True)  # no room for a reply
    assert lines(state, options)[0] == "XXOXO"
    _, state, rng, options = one([".XOX.", "XOXOX", "XOXOO", "OXOXX"], **SMALL)
    assert connect_four.step(state, 0, rng, options) == (0.0, True)  # the reply was the last
    assert lines(state, options)[0] == "XXOXO"


def test_four_by_the_last_stone_is_a_win():
    _, state, rng, options = one([".OXOX", "XOXOX", "XXOXO", "XOXOO"], **SMALL)
    assert connect_four.step(state, 0, rng, options) == (1.0, True)
    assert connect_four.is_full(state, options)
    _, state, rng, options = one([".OXX.", "OXXOO", "XOOXO", "XXOXO"], **SMALL)
    assert connect_four.step(state, 0, rng, options) == (-1.0, True)
    assert connect_four.is_full(state, options)


def test_the_heuristic_wins_if_it_can():
    assert replies(["XXX....", "OOO...."]) == {3}
    assert replies(["O.....X", "O.....X", "O.....X"]) == {0}  # rather than block at 6
    assert replies(["..OOO.."]) == {1, 5}


def test_the_heuristic_blocks_if_it_must():
    assert replies(["X......", "X.....O", "X.....O"]) == {0}
    assert replies(["..XXX.."]) == {1, 5}  # though one is not enough
    assert replies(["..XO...", ".XXO...", "XOOX..."]) == {3}  # the rising diagonal


def test_the_heuristic_does_not_prepare_a_win():
    # X needs the cell above the lowest of column 3
    assert replies(["XXX....", "OXO...."]) == {0, 1, 2, 4, 5, 6}
    rows = ["OOOX.", "XOXO.", "OXXX.", "OOXO."]  # so here, but no other column is open
    _, state, _, options = one(rows, **SMALL)
    assert connect_four.heuristic_value(state, 4, options) == connect_four.GIVES_WIN
    assert replies(rows, **SMALL) == {4}


def test_the_heuristic_is_random_among_equals():
    assert replies([], num_draws=200) == set(range(7))


def test_random_opponents_choose_any_open_column():
    _, state, rng, options = one(["O...X", "X...O", "O...X", "X...O"], **SMALL)
    drawn = [connect_four.opponent_action(state, rng, options) for _ in range(300)]
    assert sorted(set(drawn)) == [1, 2, 3]
    # 100 each are expected; the standard deviation is sqrt(300 * 1/3 * 2/3) = 8.2
    assert min(drawn.count(column) for column in (1, 2, 3)) > 60


@pytest.mark.parametrize(("seat", "low", "high"), [("first", 0, 0), ("second", 1, 1)])
def test_seat(seat, low, high):
    envs = make_vec("ConnectFour", 200, seat=seat)
    obs, _ = envs.reset(seed=0)
    assert (obs[..., 0] == 0).all()
    stones = (obs[..., 1] != 0).sum((1, 2))
    assert (stones.min(), stones.max()) == (low, high)
    assert (envs.states.stones == stones).all()


def test_seats_are_drawn():
    obs, _ = make_vec("ConnectFour", 400).reset(seed=0)
    seconds = int((obs != 0).any((1, 2, 3)).sum())
    assert 150 < seconds < 250  # 200 are expected, the standard deviation is 10


@pytest.mark.parametrize("opponent", ["random", "heuristic"])
@pytest.mark.parametrize("sizes", [{}, SMALL])
def test_random_play(opponent, sizes):
    envs = make_vec("ConnectFour", 16, opponent=opponent, **sizes)
    states, options = envs.states, envs.options
    stones, seen = None, set()
    for _, obs, reward, terminated, truncated, info in play(envs, 100):
        assert not truncated.any()
        assert (reward[~terminated] == 0).all()
        seen |= set(reward[terminated].tolist())
        if stones is not None:
            assert (states.stones - stones)[~terminated].tolist() == [2] * int((~terminated).sum())
        assert (states.stones[terminated] <= 1).all()
        stones = states.stones.copy()
        assert (info["action_mask"].sum(1) > 0).all()
        is_stone = states.board != EMPTY
        assert (obs[..., AGENT] == 255 * (states.board == AGENT)).all()
        assert (obs[..., OPPONENT] == 255 * (states.board == OPPONENT)).all()
        assert (is_stone.sum(1) == states.filled).all()
        assert (is_stone[:, 1:] >= is_stone[:, :-1]).all()  # none hangs in the air
        assert not connect_four.fours(states[0], options)
    assert seen >= {1.0, -1.0}


@pytest.mark.parametrize("result", [1.0, -1.0])
def test_final_boards_show_the_four(result):
    envs = make_vec("ConnectFour", 16, opponent="heuristic")
    options = envs.options
    _, state, _, _ = one()
    found = 0
    for _, _, reward, terminated, _, info in play(envs, 60):
        for i in np.flatnonzero(terminated & (reward == result)):
            planes = info["final_obs"][i]
            state.board[:] = np.where(planes[..., 0] != 0, AGENT, EMPTY)
            state.board[planes[..., 1] != 0] = OPPONENT
            winners = {int(state.board[y, x]) for y, x, *_ in connect_four.fours(state, options)}
            assert winners == {AGENT if result == 1 else OPPONENT}
            found += 1
    assert found > 0


def test_the_heuristic_is_better_than_random():
    rewards = []
    for _, _, reward, terminated, _, _ in play(
        make_vec("ConnectFour", 64, opponent="heuristic"), 60
    ):
        rewards += reward[terminated].tolist()
    assert len(rewards) > 200
    assert np.mean(rewards) < -0.8


def test_reset_sets_every_field():
    envs, other = make_vec("ConnectFour", 8), make_vec("ConnectFour", 8)
    for _ in play(envs, 30):
        pass
    envs.states.view(np.uint8)[:] = 77
    envs.reset(seed=5)
    other.reset(seed=5)
    for name in envs.states.dtype.names:
        assert (envs.states[name] == other.states[name]).all(), name


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": 3}, "height is 3; it takes an integer of 4 to 10"),
        ({"width": 11}, "width is 11; it takes an integer of 4 to 10"),
        ({"opponent": "perfect"}, "it takes 'random', 'heuristic' or 'none'"),
        ({"seat": "third"}, "seat is 'third'; it takes 'first', 'second' or 'random'"),
        ({"opponent": "none", "seat": "second"}, "seat is 'second'; without an opponent"),
    ],
)
def test_what_setup_refuses(sizes, message):
    with pytest.raises(ValueError, match=message):
        connect_four.setup(**sizes)


def test_text_and_image():
    envs, state, _, options = one(["XO.....", "XO.....", "XO.....", "XO....."], seat="first")
    assert connect_four.text(state, options) == (
        ".......\n.......\nXO.....\nXO.....\nXO.....\nXO.....\n0123456"
    )
    assert connect_four.fours(state, options) == [(2, 0, 1, 0), (2, 1, 1, 0)]
    picture = connect_four.image(state, options)
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    envs.reset(seed=0)
    assert (connect_four.image(state, options) != picture).any()  # and nothing was last
