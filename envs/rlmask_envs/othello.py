"""Othello (Reversi): turn the opponent's stones, and have more at the end.

## Description
Black and White take turns to place a stone on the board of 8 x 8 so that it encloses, between
itself and another stone of its colour, at least one line of the other's stones, in any of eight
directions. All stones so enclosed turn to its colour. Who has no such move passes. A step is a move
of the agent and the reply of the opponent.

## Action Space
`Discrete(65)`: 8 y + x places a stone in row y and column x; 64 passes.

## Action mask
Valid are the squares where a stone turns others; the pass if there is none, and only then.

## Observation Space
`Box(0, 255, (8, 8, 3), uint8)`; planes: 0 the agent's stones, 1 the opponent's, 2 the squares that
are valid for the agent.

## Rewards
1 for a win (more stones than the opponent), -1 for a loss, 0 for a draw and before the end.

## Starting State
Two stones of each in the middle, Black's on the rising diagonal. Black moves first: if that is the
opponent, its first move has been made.

## Episode End
Terminated: neither player has a move.

## Arguments
`opponent`: "random", uniform over the valid moves, or "heuristic", which takes a corner if it can,
else makes the move after which the sum of the weights of its stones less that of the agent's is
highest, and is random among equals. `seat`: whether the agent moves "first", "second", or either at
"random", drawn for each episode.

The weights are those of the heuristic player in Szubert, Jaskowski and Krawiec 2011, Learning Board
Evaluation Function for Othello by Hybridizing Coevolution with Temporal Difference Learning.
"""

import numpy as np
from gymnasium import spaces
from numba import njit

from rlmask_envs import drawing
from rlmask_envs.rng import random_integer
from rlmask_envs.rules import Setup
from rlmask_envs.suite import ON

SIZE = 8
PASS = SIZE * SIZE
AGENT, OPPONENT = range(2)
OPPONENTS = ("random", "heuristic")
RANDOM, HEURISTIC = range(2)
SEATS = ("first", "second", "random")
FIRST, SECOND, EITHER = range(3)

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
    options = {
        "opponent": check_choice("opponent", opponent, OPPONENTS),
        "seat": check_choice("seat", seat, SEATS),
    }
    fields = [
        ("stones", np.uint64, (2,)),  # the squares of AGENT and OPPONENT
        ("moves", np.uint64),  # the squares that are valid for the agent
        ("is_black", np.int32),  # whether the agent is
        ("last", np.int32),  # the opponent's last move; -1 before it
    ]
    observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    return Setup(np.dtype(fields), options, observation_space, PASS + 1)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> int:
    """Return the index of a choice.

    Raises:
        ValueError: if it is none; names it and the choices.
    """
    if value not in choices:
        known = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise ValueError(f"{name} is {value!r}; it takes {known}")
    return choices.index(value)


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
    """Let the opponent move, and find the agent's moves."""
    state.last = opponent_action(state, rng, options)
    if state.last != PASS:
        place(state, state.last, OPPONENT)
    state.moves = moves_of(state, AGENT)


@njit
def reset(state, rng, options):
    """Lay out the first stones, and let the opponent begin if it is Black."""
    is_black = options.seat == FIRST
    if options.seat == EITHER:
        is_black = random_integer(rng, 2) == 0
    state.is_black = is_black
    start(state, AGENT if is_black else OPPONENT)
    state.moves = moves_of(state, AGENT)
    state.last = -1
    if not is_black:
        reply(state, rng, options)


@njit
def step(state, action, rng, options):
    """Make a move, and let the opponent reply."""
    if action != PASS:
        place(state, action, AGENT)
    reply(state, rng, options)
    if state.moves != ZERO or moves_of(state, OPPONENT) != ZERO:
        return 0.0, False
    difference = lead(state, AGENT)
    return 1.0 if difference > 0 else -1.0 if difference < 0 else 0.0, True


@njit
def observe(state, obs, options):
    """Write the planes."""
    for y in range(SIZE):
        for x in range(SIZE):
            square = SIZE * y + x
            if has(state.stones[AGENT], square):
                obs[y, x, 0] = ON
            if has(state.stones[OPPONENT], square):
                obs[y, x, 1] = ON
            if has(state.moves, square):
                obs[y, x, 2] = ON


@njit
def valid_actions(state, mask, options):
    """Allow the agent's moves; the pass if it has none but the opponent has."""
    for square in range(PASS):
        mask[square] = has(state.moves, square)
    if state.moves == ZERO:
        mask[PASS] = moves_of(state, OPPONENT) != ZERO


def image(state, options):
    """Return a picture with a dot where the agent may play and one on the opponent's last stone."""
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
    for player, name in ((AGENT, "agent"), (OPPONENT, "opponent")):
        x = 4 * player
        drawing.disc(picture, SIZE, x, drawing.GREY, 0.36)
        drawing.disc(picture, SIZE, x, colors[player], 0.32)
        label = f"{name} {int(state.stones[player]).bit_count()}"
        drawing.write(picture, SIZE + 0.5, x + 1.1 + len(label) / 8, label, drawing.PAPER, 0.3)
    return picture


def text(state, options):
    """Return lines of text: x black, o white, * where the agent may play."""
    own, other = "xo" if state.is_black else "ox"
    rows = []
    for y in range(SIZE):
        row = ""
        for square in range(SIZE * y, SIZE * y + SIZE):
            if has(state.stones[AGENT], square):
                row += own
            elif has(state.stones[OPPONENT], square):
                row += other
            else:
                row += "*" if has(state.moves, square) else "."
        rows.append(row)
    agent, opponent = (int(stones).bit_count() for stones in state.stones)
    return "\n".join([*rows, f"agent {own} {agent}, opponent {other} {opponent}"])
