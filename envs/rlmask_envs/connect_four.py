"""Connect Four: be the first with four stones in a line.

## Description
The players take turns to drop a stone into a column, where it comes to lie on the ones below. Four
stones of a player in a row, a column or a diagonal win. A step is a move of the agent and the reply
of the opponent; without an opponent (`opponent="none"`) it is the move of the player whose turn it
is.

## Action Space
`Discrete(width)`: the column, from the left.

## Action mask
Valid are the columns that are not full. At least one is, as a full board is a draw.

## Observation Space
`Box(0, 255, (height, width, 2), uint8)`; planes: 0 the agent's stones, 1 the opponent's. Row 0 is
the upper one. Without an opponent: 0 the stones of the player whose turn it is, 1 those of who has
just moved, at the end of an episode as well.

## Rewards
1 for a win, -1 for a loss, 0 for a draw and before the end. Without an opponent, the reward is that
of who has just moved: 1 for a move that makes four, else 0. The next observation is the other
player's, so what is to come from there counts negatively (negamax).

## Starting State
An empty board, or one with a stone of the opponent if the opponent moves first.

## Episode End
Terminated: a player has four in a line, or the board is full.

## Arguments
`height` 6 and `width` 7 (4 to 10). `opponent`: "random", uniform over the valid columns;
"heuristic", which wins if it can, else blocks a win of the agent, else does not prepare one if it
need not, and is random among equals; or "none", for self-play and opponents of one's own. `seat`:
whether the agent moves "first", "second", or either at "random", drawn for each episode; it goes
with an opponent only.

Reference: Allis 1988, A Knowledge-based Approach of Connect-Four; on 6 x 7, whoever moves first can
win.
"""

import numpy as np
from numba import njit

from rlmask_envs import drawing
from rlmask_envs.planes import ON, plane_space
from rlmask_envs.rng import random_choice
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_size
from rlmask_envs.two_players import (
    AGENT,
    HEURISTIC,
    NONE,
    OPPONENT,
    agent_begins,
    check_players,
)

EMPTY = 2  # on the board; otherwise AGENT or OPPONENT
SMALLEST, GREATEST = 4, 10  # sides of the board
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (y, x)
FULL, GIVES_WIN, QUIET, BLOCKS, WINS = range(5)  # what the heuristic thinks of a column


def setup(height: int = 6, width: int = 7, opponent: str = "random", seat: str = "random") -> Setup:
    """Return what depends on the size of the board, the opponent, and who moves first."""
    height = check_size("height", height, SMALLEST, GREATEST)
    width = check_size("width", width, SMALLEST, GREATEST)
    options = {"height": height, "width": width, **check_players(opponent, seat)}
    fields = [
        ("board", np.int8, (height, width)),  # AGENT, OPPONENT or EMPTY
        ("filled", np.int32, (width,)),  # stones in a column
        ("stones", np.int32),
        ("last", np.int32),  # column of the last stone, or -1
        ("player", np.int32),  # whose turn it is: AGENT if there is an opponent
        ("values", np.int8, (width,)),  # for the opponent to choose by
        ("candidates", np.int8, (width,)),
    ]
    return Setup(np.dtype(fields), options, plane_space(height, width, 2), width)


@njit
def clear(state, options):
    """Empty the board."""
    for x in range(options.width):
        for y in range(options.height):
            state.board[y, x] = EMPTY
        state.filled[x] = 0
        state.values[x] = 0
        state.candidates[x] = 0
    state.stones = 0
    state.last = -1
    state.player = AGENT


@njit
def is_open(state, x, options):
    """Return whether a column has room for a stone of either player."""
    return state.filled[x] < options.height


@njit
def landing(state, x, options):
    """Return the row that a stone in this column would fall to; -1 if it is full."""
    return options.height - 1 - state.filled[x]


@njit
def place(state, x, player, options):
    """Drop a stone of a player into a column that is open; return whether it makes four."""
    y = landing(state, x, options)
    state.board[y, x] = player
    state.filled[x] += 1
    state.stones += 1
    state.last = x
    return makes_four(state, y, x, player, options)


@njit
def is_full(state, options):
    """Return whether no stone fits in."""
    return state.stones == options.height * options.width


@njit
def makes_four(state, y, x, player, options):
    """Return whether a stone of a player at (y, x), there or not, is in a line of four."""
    for dy, dx in DIRECTIONS:
        before = run_length(state, y, x, -dy, -dx, player, options)
        if before + run_length(state, y, x, dy, dx, player, options) >= 3:
            return True
    return False


@njit
def run_length(state, y, x, dy, dx, player, options):
    """Return how many stones of a player, at most three, follow (y, x) in a direction."""
    for length in range(3):
        y, x = y + dy, x + dx
        if not (0 <= y < options.height and 0 <= x < options.width):
            return length
        if state.board[y, x] != player:
            return length
    return 3


@njit
def opponent_action(state, rng, options):
    """Return the opponent's move; some column is open."""
    if options.opponent == HEURISTIC:
        return heuristic_action(state, rng, options)
    return random_action(state, rng, options)


@njit
def random_action(state, rng, options):
    """Choose any open column."""
    for x in range(options.width):
        state.candidates[x] = is_open(state, x, options)
    return random_choice(rng, state.candidates)


@njit
def heuristic_action(state, rng, options):
    """Choose one of the columns that look best."""
    best = FULL
    for x in range(options.width):
        state.values[x] = heuristic_value(state, x, options)
        best = max(best, state.values[x])
    for x in range(options.width):
        state.candidates[x] = state.values[x] == best
    return random_choice(rng, state.candidates)


@njit
def heuristic_value(state, x, options):
    """Return what a stone of the opponent in this column is good for."""
    if not is_open(state, x, options):
        return FULL
    y = landing(state, x, options)
    if makes_four(state, y, x, OPPONENT, options):
        return WINS
    if makes_four(state, y, x, AGENT, options):
        return BLOCKS
    if y > 0 and makes_four(state, y - 1, x, AGENT, options):
        return GIVES_WIN
    return QUIET


@njit
def reset(state, rng, options):
    """Empty the board, and let the opponent begin if it moves first."""
    clear(state, options)
    if not agent_begins(rng, options):
        place(state, opponent_action(state, rng, options), OPPONENT, options)


@njit
def step(state, action, rng, options):
    """Make a move, and let the opponent reply; if there is none, it is the other player's turn."""
    player = state.player
    if options.opponent == NONE:
        state.player = 1 - player
    if place(state, action, player, options):
        return 1.0, True
    if options.opponent == NONE or is_full(state, options):
        return 0.0, is_full(state, options)
    if place(state, opponent_action(state, rng, options), OPPONENT, options):
        return -1.0, True
    return 0.0, is_full(state, options)


@njit
def observe(state, obs, options):
    """Write the planes."""
    for y in range(options.height):
        for x in range(options.width):
            if state.board[y, x] != EMPTY:
                obs[y, x, 0 if state.board[y, x] == state.player else 1] = ON


@njit
def valid_actions(state, mask, options):
    """Allow the columns that are not full."""
    for x in range(options.width):
        mask[x] = is_open(state, x, options)


def image(state, options):
    """Return a picture: the agent (or who moves first) red, a dot on the last stone."""
    height, width = int(options.height), int(options.width)
    picture = drawing.blank(height + 0.7, width + 0.2, drawing.BLUE)
    colors = {AGENT: drawing.RED, OPPONENT: drawing.YELLOW, EMPTY: drawing.PAPER}
    for y in range(height):
        for x in range(width):
            drawing.disc(picture, y + 0.1, x + 0.1, colors[int(state.board[y, x])], 0.4)
    for x in range(width):
        drawing.write(picture, height + 0.4, x + 0.6, str(x), drawing.WHITE, 0.3)
    if state.last >= 0:
        y = height - int(state.filled[state.last])
        drawing.disc(picture, y + 0.1, int(state.last) + 0.1, drawing.INK, 0.1)
    for y, x, dy, dx in fours(state, options):
        start, end = (y + 0.6, x + 0.6), (y + 3 * dy + 0.6, x + 3 * dx + 0.6)
        drawing.line(picture, start, end, drawing.INK, 0.16)
    return picture


def fours(state, options):
    """Return (y, x, dy, dx) of every four stones of a player in a line, the first and the way."""
    found = []
    for y in range(int(options.height)):
        for x in range(int(options.width)):
            for dy, dx in DIRECTIONS:
                cells = [(y + i * dy, x + i * dx) for i in range(4)]
                on_board = all(0 <= j < options.height and 0 <= k < options.width for j, k in cells)
                players = {int(state.board[cell]) for cell in cells} if on_board else {EMPTY}
                if len(players) == 1 and EMPTY not in players:
                    found.append((y, x, dy, dx))
    return found


def text(state, options):
    """Return lines of text: X the agent (or who moves first), O the other player."""
    rows = ["".join("XO."[player] for player in row) for row in state.board]
    return "\n".join([*rows, "".join(str(x) for x in range(options.width))])
