"""Othello (Reversi): turn the other player's stones, and have more at the end.

## Description
Black and White take turns to place a stone on the board of 8 x 8 so that it encloses, between
itself and another stone of its colour, at least one line of the other's stones, in any of eight
directions. All stones so enclosed turn to its colour. Who has no such move passes. A step is a move
of the agent and the reply of the opponent; without an opponent (`opponent="none"`) it is the move
or the pass of the player whose turn it is.

## Action Space
`Discrete(65)`: 8 y + x places a stone in row y and column x; 64 passes.

## Action mask
Valid are the squares where a stone turns others; the pass if there is none, and only then.

## Observation Space
`Box(0, 255, (8, 8, 3), uint8)`; planes: 0 the agent's stones, 1 the opponent's, 2 the squares that
are valid for the agent. Without an opponent: 0 the stones of the player whose turn it is, 1 those
of who has just moved, 2 the squares that are valid for the former, at the end of an episode as
well.

## Rewards
1 for a win (more stones than the opponent), -1 for a loss, 0 for a draw and before the end. Without
an opponent, the reward is that of who has just moved: -1 if the move ends the game and the other
player has more stones. The next observation is the other player's, so what is to come from there
counts negatively (negamax).

## Starting State
Two stones of each in the middle, Black's on the rising diagonal. Black moves first: if that is the
opponent, its first move has been made.

## Episode End
Terminated: neither player has a move.

## Arguments
`opponent`: "random", uniform over the valid moves; "heuristic", which takes a corner if it can,
else makes the move after which the sum of the weights of its stones less that of the agent's is
highest, and is random among equals; or "none", for self-play and opponents of one's own. `seat`:
whether the agent moves "first", "second", or either at "random", drawn for each episode; it goes
with an opponent only.

The weights are those of the heuristic player in Szubert, Jaskowski and Krawiec 2011, Learning Board
Evaluation Function for Othello by Hybridizing Coevolution with Temporal Difference Learning.
"""

import numpy as np
from numba import njit

from rlmask_envs import drawing
from rlmask_envs.planes import ON, plane_space
from rlmask_envs.rng import random_integer
from rlmask_envs.rules import Setup
from rlmask_envs.two_players import (
    AGENT,
    HEURISTIC,
    NONE,
    OPPONENT,
    agent_begins,
    check_players,
)

SIZE = 8
PASS = SIZE * SIZE

# A set of squares is 64 bits of an unsigned integer; square 8 y + x is bit 8 y + x. All numbers
# that meet one are unsigned, too: Numba makes a float of an unsigned and a signed one.
ZERO, ONE = np.uint64(0), np.uint64(1)
BLACK_START = np.uint64(1 << 28 | 1 << 35)
WHITE_START = np.uint64(1 << 27 | 1 << 36)
CORNERS = np.uint64(1 << 0 | 1 << 7 | 1 << 56 | 1 << 63)

# Eight directions: bits move up by so many in the first four (right, down left, down, down right),
# down in the others. Whoever leaves the board at one side arrives at the other, and is dropped.
ALL, NOT_LEFT, NOT_RIGHT = 0xFFFFFFFFFFFFFFFF, 0xFEFEFEFEFEFEFEFE, 0x7F7F7F7F7F7F7F7F
SHIFTS = np.array([1, 7, 8, 9, 1, 7, 8, 9], np.uint64)
ARRIVALS = np.array(
    [NOT_LEFT, NOT_RIGHT, ALL, NOT_LEFT, NOT_RIGHT, NOT_LEFT, ALL, NOT_RIGHT], np.uint64
)

WEIGHTS = np.array([
    100, -25, 10,  5,  5, 10, -25, 100,
    -25, -25,  1,  1,  1,  1, -25, -25,
     10,   1,  5,  2,  2,  5,   1,  10,
      5,   1,  2,  1,  1,  2,   1,   5,
      5,   1,  2,  1,  1,  2,   1,   5,
     10,   1,  5,  2,  2,  5,   1,  10,
    -25, -25,  1,  1,  1,  1, -25, -25,
    100, -25, 10,  5,  5, 10, -25, 100,
])  # fmt: skip

DARK_GREEN = (44, 104, 60)


def setup(opponent: str = "random", seat: str = "random") -> Setup:
    """Return what depends on the opponent and on who moves first."""
    fields = [
        ("stones", np.uint64, (2,)),  # the squares of AGENT and OPPONENT
        ("player", np.int32),  # whose turn it is: AGENT if there is an opponent
        ("moves", np.uint64),  # the squares that are valid for that player
        ("is_black", np.int32),  # whether the agent is
        ("last", np.int32),  # the other player's last move; -1 before it
    ]
    options = check_players(opponent, seat)
    return Setup(np.dtype(fields), options, plane_space(SIZE, SIZE, 3), PASS + 1)


@njit
def has(squares, square):
    """Return whether a square is in a set."""
    return (squares >> np.uint64(square)) & ONE != ZERO


@njit
def shifted(squares, direction):
    """Return the neighbours of all squares of a set in a direction."""
    if direction < 4:
        return (squares << SHIFTS[direction]) & ARRIVALS[direction]
    return (squares >> SHIFTS[direction]) & ARRIVALS[direction]


@njit
def run(start, other, direction):
    """Return all stones of `other` that follow those of `start` without a gap."""
    stones = shifted(start, direction) & other
    for _ in range(5):  # at most six fit between two stones
        stones |= shifted(stones, direction) & other
    return stones


@njit
def legal_moves(own, other):
    """Return the squares where a stone of `own` turns some of `other`."""
    moves = ZERO
    for direction in range(8):
        moves |= shifted(run(own, other, direction), direction)
    return moves & ~(own | other)


@njit
def turned(own, other, square):
    """Return the stones of `other` that a stone of `own` on a square turns."""
    stone, stones = ONE << np.uint64(square), ZERO
    for direction in range(8):
        enclosed = run(stone, other, direction)
        if shifted(enclosed, direction) & own != ZERO:
            stones |= enclosed
    return stones


@njit
def moves_of(state, player):
    """Return the squares that are valid for a player."""
    return legal_moves(state.stones[player], state.stones[1 - player])


@njit
def place(state, square, player):
    """Make a move of a player, which is not a pass."""
    stones = turned(state.stones[player], state.stones[1 - player], square)
    state.stones[player] |= stones | ONE << np.uint64(square)
    state.stones[1 - player] &= ~stones


@njit
def lead(state, player):
    """Return how many more stones a player has than the other."""
    difference = 0
    for square in range(PASS):
        if has(state.stones[player], square):
            difference += 1
        if has(state.stones[1 - player], square):
            difference -= 1
    return difference


@njit
def start(state, black):
    """Lay out the first four stones for a player who is Black."""
    state.stones[black] = BLACK_START
    state.stones[1 - black] = WHITE_START


@njit
def opponent_action(state, rng, options):
    """Return the opponent's move."""
    moves = moves_of(state, OPPONENT)
    if moves == ZERO:
        return PASS
    if options.opponent == HEURISTIC:
        return heuristic_action(state, moves, rng)
    return random_action(moves, rng)


@njit
def random_action(moves, rng):
    """Choose any of these squares; there is one."""
    count = 0
    for square in range(PASS):
        if has(moves, square):
            count += 1
    left = random_integer(rng, count)
    for square in range(PASS):
        if has(moves, square):
            if left == 0:
                return square
            left -= 1
    return PASS  # never reached


@njit
def heuristic_action(state, moves, rng):
    """Choose one of the squares that look best."""
    if moves & CORNERS != ZERO:
        moves &= CORNERS
    best, highest = ZERO, 0
    for square in range(PASS):
        if has(moves, square):
            value = heuristic_value(state, square)
            if best == ZERO or value > highest:
                best, highest = ZERO, value
            if value == highest:
                best |= ONE << np.uint64(square)
    return random_action(best, rng)


@njit
def heuristic_value(state, square):
    """Return by how much a move raises the weights of the opponent's stones less the agent's."""
    stones = turned(state.stones[OPPONENT], state.stones[AGENT], square)
    value = WEIGHTS[square]
    for other in range(PASS):
        if has(stones, other):
            value += 2 * WEIGHTS[other]
    return value


@njit
def reply(state, rng, options):
    """Let the opponent move."""
    state.last = opponent_action(state, rng, options)
    if state.last != PASS:
        place(state, state.last, OPPONENT)


@njit
def reset(state, rng, options):
    """Lay out the first stones, and let the opponent begin if it is Black."""
    is_black = agent_begins(rng, options)
    state.is_black = is_black
    start(state, AGENT if is_black else OPPONENT)
    state.player = AGENT
    state.last = -1
    if not is_black:
        reply(state, rng, options)
    state.moves = moves_of(state, AGENT)


@njit
def step(state, action, rng, options):
    """Make a move, and let the opponent reply; if there is none, it is the other player's turn."""
    player = state.player
    if action != PASS:
        place(state, action, player)
    if options.opponent == NONE:
        state.player, state.last = 1 - player, action
    else:
        reply(state, rng, options)
    state.moves = moves_of(state, state.player)
    if state.moves != ZERO or moves_of(state, 1 - state.player) != ZERO:
        return 0.0, False
    difference = lead(state, player)
    return 1.0 if difference > 0 else -1.0 if difference < 0 else 0.0, True


@njit
def observe(state, obs, options):
    """Write the planes."""
    for y in range(SIZE):
        for x in range(SIZE):
            square = SIZE * y + x
            if has(state.stones[state.player], square):
                obs[y, x, 0] = ON
            if has(state.stones[1 - state.player], square):
                obs[y, x, 1] = ON
            if has(state.moves, square):
                obs[y, x, 2] = ON


@njit
def valid_actions(state, mask, options):
    """Allow the player's moves; the pass if it has none but the other player has."""
    for square in range(PASS):
        mask[square] = has(state.moves, square)
    if state.moves == ZERO:
        mask[PASS] = moves_of(state, 1 - state.player) != ZERO


def image(state, options):
    """Return a picture; dots are where the player may play, and on the other's last stone."""
    picture = drawing.blank(SIZE + 1, SIZE, drawing.INK)
    picture[: SIZE * drawing.CELL] = drawing.board(SIZE, SIZE, drawing.GREEN, DARK_GREEN)
    colors = [drawing.BLACK, drawing.WHITE] if state.is_black else [drawing.WHITE, drawing.BLACK]
    for y in range(SIZE):
        for x in range(SIZE):
            square = SIZE * y + x
            for player in (AGENT, OPPONENT):
                if has(state.stones[player], square):
                    drawing.disc(picture, y, x, colors[player], 0.4)
            if has(state.moves, square):
                drawing.disc(picture, y, x, DARK_GREEN, 0.12)
            if square == state.last:
                drawing.disc(picture, y, x, drawing.RED, 0.1)
    for player, name in enumerate(names(options)):
        x = 4 * player
        drawing.disc(picture, SIZE, x, drawing.GREY, 0.36)
        drawing.disc(picture, SIZE, x, colors[player], 0.32)
        label = f"{name} {int(state.stones[player]).bit_count()}"
        drawing.write(picture, SIZE + 0.5, x + 1.1 + len(label) / 8, label, drawing.PAPER, 0.3)
    return picture


def names(options):
    """Return what AGENT and OPPONENT are called."""
    return ("black", "white") if options.opponent == NONE else ("agent", "opponent")


def text(state, options):
    """Return lines of text: x black, o white, * where the player may play."""
    own, other = "xo" if state.is_black else "ox"

    def letter_at(y, x):
        square = SIZE * y + x
        if has(state.stones[AGENT], square):
            return own
        if has(state.stones[OPPONENT], square):
            return other
        return "*" if has(state.moves, square) else "."

    scores = [
        f"{name} {color} {int(stones).bit_count()}"
        for name, color, stones in zip(names(options), (own, other), state.stones, strict=True)
    ]
    return drawing.letters(SIZE, SIZE, letter_at) + "\n" + ", ".join(scores)
