import numpy as np
import pytest
from playing import make_vec, play
from reference_games import othello as reference

from rlmask_envs import othello
from rlmask_envs.othello import AGENT, OPPONENT, PASS

WAYS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
EMPTY_ROW = "." * 8


def bits(squares):
    """Return a set of squares (y, x) as the rules keep it."""
    return np.uint64(sum(1 << (8 * y + x) for y, x in squares))


def squares(number):
    return {divmod(square, 8) for square in range(64) if int(number) >> square & 1}


def one(rows=None, **keywords):
    """Return a state and its rng and options; `rows` {y: "XO......"}, X is the agent."""
    envs = make_vec("Othello", 1, **keywords)
    envs.reset(seed=0)
    state = envs.states[0]
    if rows is not None:
        cells = [(y, x, letter) for y, row in rows.items() for x, letter in enumerate(row)]
        for player in (AGENT, OPPONENT):
            state.stones[player] = bits((y, x) for y, x, letter in cells if letter == "XO"[player])
        state.moves = othello.moves_of(state, state.player)
    return state, envs._batch.rngs[0], envs.options


def valid(state, options):
    mask = np.zeros(65, np.int8)
    othello.valid_actions(state, mask, options)
    return np.flatnonzero(mask).tolist()


def line(dy, dx):
    """Return the eight squares from one side of the board to the other, in a direction."""
    y = {1: 0, -1: 7, 0: 3}[dy]
    x = {1: 0, -1: 7, 0: 5}[dx]
    return [(y + i * dy, x + i * dx) for i in range(8)]


def test_start():
    # d4 and e5 are White's, e4 and d5 Black's; Black may play d3, c4, f5, e6 (World Othello
    # Federation's rules)
    state, _, _ = one(seat="first")
    assert squares(state.stones[AGENT]) == {(3, 4), (4, 3)}
    assert squares(state.stones[OPPONENT]) == {(3, 3), (4, 4)}
    assert state.is_black
    assert squares(state.moves) == {(2, 3), (3, 2), (4, 5), (5, 4)}
    assert state.last == -1


def test_the_opponent_begins():
    envs = make_vec("Othello", 200, seat="second")
    obs, info = envs.reset(seed=0)
    states = envs.states
    assert not states.is_black.any()
    assert ((obs != 0).sum((1, 2)) == [1, 4, 3]).all()  # White has three moves by symmetry
    assert (info["action_mask"].sum(1) == 3).all()
    assert set(states.last.tolist()) == {19, 26, 37, 44}
    # 50 each are expected, the standard deviation is sqrt(200 * 1/4 * 3/4) = 6.1
    assert np.bincount(states.last)[[19, 26, 37, 44]].min() > 25


def test_seats_are_drawn():
    envs = make_vec("Othello", 400)
    envs.reset(seed=0)
    assert 150 < envs.states.is_black.sum() < 250  # 200 expected, standard deviation 10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", range(1, 7))
def test_an_enclosed_line_turns(way, length):
    first, *rest = line(*way)
    other, last = rest[:length], rest[length]
    assert squares(othello.turned(bits([last]), bits(other), 8 * first[0] + first[1])) == set(other)
    assert squares(othello.legal_moves(bits([last]), bits(other))) == {first}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_else_turns(way):
    first, *rest = line(*way)
    square = 8 * first[0] + first[1]
    assert othello.turned(bits([]), bits(rest), square) == 0  # nothing behind them
    assert othello.turned(bits([rest[0]]), bits([]), square) == 0  # nothing between
    assert othello.turned(bits([rest[3]]), bits([rest[0], rest[2]]), square) == 0  # a gap
    assert othello.legal_moves(bits([]), bits(rest)) == 0
    assert othello.legal_moves(bits(rest[3:4]), bits([rest[0]])) == 0
    # one's own stones behind the line stay out of it
    stones = othello.turned(bits([rest[1], rest[3]]), bits([rest[0], rest[2]]), square)
    assert squares(stones) == {rest[0]}


def test_lines_end_at_the_sides():
    # the end of a row and the start of the next one (or the one after) are no neighbours
    for own, other in [((4, 0), (3, 7)), ((3, 7), (4, 0)), ((5, 0), (3, 7)), ((3, 7), (5, 0))]:
        assert othello.legal_moves(bits([own]), bits([other])) == 0
    assert othello.legal_moves(bits([(3, 7)]), bits([(3, 0)])) == 0
    assert othello.legal_moves(bits([(0, 3)]), bits([(7, 3)])) == 0
    for x in (0, 7):
        assert othello.turned(bits([(4, 7 - x)]), bits([(3, x)]), 8 * 3 + abs(x - 1)) == 0


def test_random_positions():
    rng = np.random.default_rng(0)
    for share in np.linspace(0.2, 0.95, 60):
        kind = rng.choice(3, 64, p=[1 - share, share / 2, share / 2])
        own, other = ({divmod(int(i), 8) for i in np.flatnonzero(kind == k)} for k in (1, 2))
        moves = squares(othello.legal_moves(bits(own), bits(other)))
        assert moves == {divmod(i, 8) for i in np.flatnonzero(reference.moves(own, other))}
        for y, x in moves:
            found = squares(othello.turned(bits(own), bits(other), 8 * y + x))
            assert found == reference.captured(own, other, (y, x))


def test_a_move_turns_all_directions_at_once():
    rows = {0: "X.X.X...", 1: ".OOO....", 2: "XO.OX...", 3: ".OOO....", 4: "X.X.O..."}
    state, _, _ = one(rows)
    before = [squares(stones) for stones in state.stones]
    othello.place(state, 8 * 2 + 2, AGENT)
    around = {(2 + dy, 2 + dx) for dy, dx in WAYS} - {(3, 3)}  # that one has (4, 4) behind it
    assert squares(state.stones[AGENT]) == before[AGENT] | around | {(2, 2)}
    assert squares(state.stones[OPPONENT]) == before[OPPONENT] - around


def test_a_step_is_a_move_and_a_reply():
    # X can only play at 3, then O only at 4, which turns all between
    state, rng, options = one({3: "OXO....."}, seat="first")
    assert valid(state, options) == [8 * 3 + 3]
    assert othello.step(state, 27, rng, options) == (-1.0, True)
    assert squares(state.stones[OPPONENT]) == {(3, x) for x in range(5)}
    assert (state.stones[AGENT], state.last) == (0, 8 * 3 + 4)


def test_the_agent_passes():
    state, rng, options = one({3: "OOX.....", 4: "...X...."})
    assert valid(state, options) == [PASS]
    assert othello.step(state, PASS, rng, options) == (0.0, False)
    # O could only enclose (3, 2); the agent may now enclose that again, or the stone at (3, 3)
    assert state.last == 8 * 3 + 3
    assert squares(state.stones[OPPONENT]) == {(3, 0), (3, 1), (3, 2), (3, 3)}
    assert squares(state.stones[AGENT]) == {(4, 3)}
    assert valid(state, options) == [8 * 2 + 1, 8 * 2 + 3]


def test_the_opponent_passes_within_a_step():
    state, rng, options = one({3: "XXO.....", 6: "XXO....."})
    assert valid(state, options) == [8 * 3 + 3, 8 * 6 + 3]
    assert othello.step(state, 8 * 3 + 3, rng, options) == (0.0, False)
    assert state.last == PASS
    assert squares(state.stones[AGENT]) == {(3, 0), (3, 1), (3, 2), (3, 3), (6, 0), (6, 1)}
    assert valid(state, options) == [8 * 6 + 3]
    assert othello.step(state, 8 * 6 + 3, rng, options) == (1.0, True)  # no stone of O is left
    assert valid(state, options) == []


@pytest.mark.parametrize(
    ("row", "reward"), [("OO......", 1.0), ("OOO.....", 0.0), ("OOOO....", -1.0)]
)
def test_more_stones_win_when_nobody_can_move(row, reward):
    state, rng, options = one({0: "XO......", 7: row})
    assert othello.step(state, 2, rng, options) == (reward, True)  # the agent has three


def test_the_last_reply_ends_the_game():
    state, rng, options = one({0: "OX......"})
    assert othello.step(state, PASS, rng, options) == (-1.0, True)
    assert squares(state.stones[OPPONENT]) == {(0, 0), (0, 1), (0, 2)}


def heuristic_replies(rows, num_draws=60):
    state, rng, options = one(rows, opponent="heuristic")
    return {othello.opponent_action(state, rng, options) for _ in range(num_draws)}, state


def test_the_heuristic_takes_corners():
    # the corner turns three neighbours of it, of -25 each: 100 - 2 * 75 = -50, while the other
    # move has 5 and turns a stone of 2: 5 + 2 * 2 = 9
    rows = {0: ".XO.....", 1: "XX......", 2: "O.O.....", 5: "...OX..."}
    actions, state = heuristic_replies(rows)
    assert othello.heuristic_value(state, 0) == -50
    assert othello.heuristic_value(state, 8 * 5 + 5) == 9
    assert actions == {0}


def test_the_heuristic_goes_by_the_weights():
    # (0, 2) has 10 but turns one of -25: 10 - 2 * 25; (1, 1) has -25 and turns one of 1
    rows = {0: "OX......", 1: "..XO....", 5: "...OX..."}
    actions, state = heuristic_replies(rows)
    assert othello.heuristic_value(state, 2) == -40
    assert othello.heuristic_value(state, 8 + 1) == -23
    assert actions == {8 * 5 + 5}


def test_the_heuristic_is_random_among_equals():
    assert heuristic_replies({3: "...XO...", 4: "...OX..."})[0] == {19, 26, 37, 44}
    assert heuristic_replies({0: "OX......", 7: "......XO"})[0] == {2, 8 * 7 + 5}


def test_weights_are_symmetric():
    weights = othello.WEIGHTS.reshape(8, 8)
    for other in (weights.T, weights[::-1], weights[:, ::-1]):
        assert (weights == other).all()


def test_opponents_pass_only_if_they_must():
    for opponent in ("random", "heuristic"):
        state, rng, options = one({0: "XO......"}, opponent=opponent)
        assert othello.opponent_action(state, rng, options) == PASS


@pytest.mark.parametrize("opponent", ["random", "heuristic"])
def test_random_play(opponent):
    envs = make_vec("Othello", 32, opponent=opponent)
    states, options = envs.states, envs.options
    total, seen, passes = None, set(), 0
    for action, obs, reward, terminated, truncated, info in play(envs, 120):
        assert not truncated.any()
        assert (reward[~terminated] == 0).all()
        mask = info["action_mask"]
        stones = (obs[..., :2] != 0).sum((1, 2, 3))
        assert (mask[:, :PASS].any(1) != mask[:, PASS]).all()
        assert ((obs[..., 2] == 255).reshape(-1, 64) == mask[:, :PASS]).all()
        assert not ((obs != 0).sum(3) > 1).any()  # no two stones on a square, none on a valid one
        assert set(np.unique(obs)) <= {0, 255}
        if total is not None:
            placed = (action != PASS).astype(int) + (states.last != PASS)
            assert (stones - total == placed)[~terminated].all()
        total = stones
        passes += int((action == PASS).sum()) + int((states.last == PASS).sum())
        for i in np.flatnonzero(terminated):
            agent, other, moves = (info["final_obs"][i] != 0).sum((0, 1))
            assert (reward[i], moves) == (np.sign(agent - other), 0)
            assert not info["final_info"]["action_mask"][i].any()
            assert 4 <= agent + other <= 64
            seen.add(float(reward[i]))
        own, other = (squares(number) for number in states[0].stones)
        assert mask[0, :PASS].tolist() == reference.moves(own, other)
        assert mask[0].tolist() == reference.valid(states[0], options)
    assert seen >= {1.0, -1.0}
    assert passes > 0


def test_the_heuristic_is_better_than_random():
    rewards = []
    for _, _, reward, terminated, _, _ in play(make_vec("Othello", 128, opponent="heuristic"), 70):
        rewards += reward[terminated].tolist()
    assert len(rewards) > 200
    assert np.mean(rewards) < -0.4


def test_reset_sets_every_field():
    envs, other = make_vec("Othello", 8), make_vec("Othello", 8)
    for _ in play(envs, 10):
        pass
    envs.states.view(np.uint8)[:] = 77
    envs.reset(seed=5)
    other.reset(seed=5)
    for name in envs.states.dtype.names:
        assert (envs.states[name] == other.states[name]).all(), name


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"opponent": "perfect"}, "it takes 'random', 'heuristic' or 'none'"),
        ({"seat": "black"}, "seat is 'black'; it takes 'first', 'second' or 'random'"),
        ({"opponent": "none", "seat": "first"}, "seat is 'first'; without an opponent"),
    ],
)
def test_what_setup_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        othello.setup(**keywords)


def test_text_and_image():
    state, rng, options = one(seat="first")
    assert othello.text(state, options).split("\n") == [
        *[EMPTY_ROW] * 2,
        "...*....",
        "..*ox...",
        "...xo*..",
        "....*...",
        *[EMPTY_ROW] * 2,
        "agent x 2, opponent o 2",
    ]
    picture = othello.image(state, options)
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    othello.step(state, 19, rng, options)
    assert (othello.image(state, options) != picture).any()
    state, _, options = one(seat="second")
    assert othello.text(state, options).endswith("agent o 1, opponent x 4")
    othello.image(state, options)
