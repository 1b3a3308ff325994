"""Tetris: fit falling pieces of four cells into full rows, in a well of up to 10 x 10.

## Description
A piece falls through the well. A step turns it by 90 degrees or moves it sideways, and then it
falls by one row; if it cannot, it locks where it is. A soft drop takes it down a row and no
further, a hard drop to where it lands, and locks it there. When a piece has locked, full rows
vanish, what is above them comes down, and the next piece appears at the top.

S, Z and I have two orientations, T, J and L four: what is to be seen of a piece tells how it turns.

## Action Space
`Discrete(6)`, the union of the suite: 0 turn clockwise, 1 right, 2 soft drop, 3 left, 4 hard drop;
5 is never valid.

## Action mask
Valid is what does not make the piece collide with a filled cell or a wall of the well; it is not
pushed aside to make a turn fit. O never turns. A hard drop is always valid: it locks a piece that
has landed, as does a turn or a move sideways after which the piece still cannot fall.

## Observation Space
`Box(0, 255, (10, 10, 16), uint8)`; planes: 0 filled cells, 1 the falling piece, 2 where a hard drop
would take it, 3 the next piece, in the upper left corner, 4 the cells of the well.

## Rewards
1, 3, 6 or 10 for one to four rows that vanish at once.

## Starting State
An empty well; the falling piece and the next one are drawn uniformly, as all those to come.

## Episode End
Terminated: a piece collides with a filled cell as it appears. Truncated: after 5,000 steps.

## Arguments
`height` and `width` (6 to 10), both 10.

Reference: Alexey Pajitnov 1985.
"""

import numpy as np
from numba import njit

from rlmask_envs import drawing
from rlmask_envs.planes import ON
from rlmask_envs.rng import random_integer
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_size
from rlmask_envs.suite import (
    DOWN,
    LEFT,
    NUM_ACTIONS,
    PRIMARY,
    RIGHT,
    SIZE,
    UP,
    observation_space,
)

NAMES = "IOTSZJL"
COLORS = (
    drawing.TEAL,
    drawing.YELLOW,
    drawing.PURPLE,
    drawing.GREEN,
    drawing.RED,
    drawing.BLUE,
    drawing.ORANGE,
)
SHAPES = (  # as they appear
    ("####",),
    ("##", "##"),
    (".#.", "###"),
    (".##", "##."),
    ("##.", ".##"),
    ("#..", "###"),
    ("..#", "###"),
)
O_PIECE = NAMES.index("O")


def orientations(name: str, shape: tuple[str, ...]) -> list[list[tuple[int, int]]]:
    """Return row and column of the four cells of a piece, for each number of quarter turns."""
    cells = [(y, x) for y, row in enumerate(shape) for x, mark in enumerate(row) if mark == "#"]
    turns = [cells]
    last = 1 if name == "O" else 2  # of the rows of the square that is turned
    for _ in range(3):
        turns.append([(x, last - y) for y, x in turns[-1]])
    if name in "ISZ":  # half a turn leads back
        turns[2:] = turns[:2]
    return turns


PIECES = np.array(  # [7, 4 orientations, 4 cells, 2]
    [orientations(name, shape) for name, shape in zip(NAMES, SHAPES, strict=True)]
)
NUM_PIECES = len(PIECES)
WIDTHS = np.array([len(shape[0]) for shape in SHAPES])


def setup(height: int = 10, width: int = 10) -> Setup:
    """Return what depends on the size of the well."""
    options = {
        "height": check_size("height", height, 6, SIZE),
        "width": check_size("width", width, 6, SIZE),
    }
    fields = [
        ("cells", np.int8, (SIZE, SIZE)),  # 0: empty; or 1 + the piece that has filled it
        ("piece", np.int32),
        ("turns", np.int32),  # clockwise, by a quarter each
        ("y", np.int32),  # of the place that its cells are counted from
        ("x", np.int32),
        ("next_piece", np.int32),
    ]
    return Setup(np.dtype(fields), options, observation_space(), NUM_ACTIONS)


@njit
def reset(state, rng, options):
    """Empty the well, and draw two pieces."""
    for y in range(SIZE):
        for x in range(SIZE):
            state.cells[y, x] = 0
    state.next_piece = random_integer(rng, NUM_PIECES)
    bring_next(state, rng, options)


@njit
def bring_next(state, rng, options):
    """Let the next piece appear, and draw another one."""
    state.piece = state.next_piece
    state.turns = 0
    state.y = 0
    state.x = (options.width - WIDTHS[state.piece]) // 2
    state.next_piece = random_integer(rng, NUM_PIECES)


@njit
def collides(state, turns, y, x, options):
    """Return whether the piece would be outside of the well or on a filled cell."""
    for i in range(4):
        cell_y = y + PIECES[state.piece, turns, i, 0]
        cell_x = x + PIECES[state.piece, turns, i, 1]
        if cell_y >= options.height or cell_x < 0 or cell_x >= options.width:  # no piece goes up
            return True
        if state.cells[cell_y, cell_x]:
            return True
    return False


@njit
def landing_row(state, options):
    """Return what `y` of the piece is after a hard drop."""
    y = state.y
    while not collides(state, state.turns, y + 1, state.x, options):
        y += 1
    return y


@njit
def step(state, action, rng, options):
    """Move the piece; lock it, clear rows and bring the next one if it does not fall any more."""
    if action == PRIMARY:
        state.y = landing_row(state, options)
    elif action == UP:
        state.turns = (state.turns + 1) % 4
    elif action == RIGHT:
        state.x += 1
    elif action == LEFT:
        state.x -= 1
    if not collides(state, state.turns, state.y + 1, state.x, options):
        state.y += 1
        return 0.0, False
    lock(state)
    cleared = clear_rows(state, options)
    bring_next(state, rng, options)
    is_over = collides(state, state.turns, state.y, state.x, options)
    return 0.5 * cleared * (cleared + 1), is_over


@njit
def lock(state):
    """Fill the cells of the piece."""
    for i in range(4):
        y = state.y + PIECES[state.piece, state.turns, i, 0]
        x = state.x + PIECES[state.piece, state.turns, i, 1]
        state.cells[y, x] = state.piece + 1


@njit
def clear_rows(state, options):
    """Remove full rows, let those above come down; return how many were full."""
    cleared = 0
    for y in range(options.height - 1, -1, -1):
        filled = 0
        for x in range(options.width):
            filled += state.cells[y, x] != 0
        if filled == options.width:
            cleared += 1
        elif cleared > 0:
            for x in range(options.width):
                state.cells[y + cleared, x] = state.cells[y, x]
    for y in range(cleared):
        for x in range(options.width):
            state.cells[y, x] = 0
    return cleared


@njit
def observe(state, obs, options):
    """Write the planes."""
    for y in range(options.height):
        for x in range(options.width):
            obs[y, x, 4] = ON
            if state.cells[y, x]:
                obs[y, x, 0] = ON
    landing = landing_row(state, options)
    for i in range(4):
        y = PIECES[state.piece, state.turns, i, 0]
        x = PIECES[state.piece, state.turns, i, 1] + state.x
        obs[state.y + y, x, 1] = ON
        obs[landing + y, x, 2] = ON
        obs[PIECES[state.next_piece, 0, i, 0], PIECES[state.next_piece, 0, i, 1], 3] = ON


@njit
def valid_actions(state, mask, options):
    """Allow what makes the piece collide with nothing."""
    y, x, turns = state.y, state.x, state.turns
    if state.piece != O_PIECE:
        mask[UP] = not collides(state, (turns + 1) % 4, y, x, options)
    mask[RIGHT] = not collides(state, turns, y, x + 1, options)
    mask[DOWN] = not collides(state, turns, y + 1, x, options)
    mask[LEFT] = not collides(state, turns, y, x - 1, options)
    mask[PRIMARY] = 1


def image(state, options):
    """Return a picture."""
    well = drawing.board(options.height, options.width)
    for y in range(options.height):
        for x in range(options.width):
            if state.cells[y, x]:
                drawing.cell(well, y, x, muted(COLORS[int(state.cells[y, x]) - 1]), 0.03)
    landing = landing_row(state, options)
    for y, x in PIECES[state.piece, state.turns]:
        drawing.cell(well, landing + y, state.x + x, COLORS[state.piece], 0.08)
        drawing.cell(well, landing + y, state.x + x, drawing.PAPER, 0.16)
    for y, x in PIECES[state.piece, state.turns]:
        draw_block(well, state.y + y, state.x + x, COLORS[state.piece])
    side = drawing.blank(options.height, 5)
    drawing.rectangle(side, 0, 0, options.height, 0.1, drawing.GREY)
    drawing.write(side, 0.6, 2.5, "NEXT", height=0.45)
    left = (5 - WIDTHS[state.next_piece]) / 2
    for y, x in PIECES[state.next_piece, 0]:
        draw_block(side, 1.2 + y, left + x, COLORS[state.next_piece])
    return drawing.beside([well, side], gap=0)


def draw_block(picture, y, x, color):
    """Draw a cell of a piece that has not locked, with a lighter upper edge."""
    drawing.cell(picture, y, x, color, 0.03)
    drawing.rectangle(picture, y + 0.03, x + 0.03, 0.14, 0.94, [c + (255 - c) // 2 for c in color])


def muted(color):
    """Return a duller colour."""
    return [(2 * c + grey) // 3 for c, grey in zip(color, drawing.GREY, strict=True)]


def text(state, options):
    """Return lines of text: @ the falling piece, : where it would land; other letters are cells."""
    rows = [["." for _ in range(options.width)] for _ in range(options.height)]
    for y in range(options.height):
        for x in range(options.width):
            if state.cells[y, x]:
                rows[y][x] = NAMES[int(state.cells[y, x]) - 1]
    for top, mark in ((landing_row(state, options), ":"), (state.y, "@")):
        for y, x in PIECES[state.piece, state.turns]:
            rows[top + y][state.x + x] = mark
    return "\n".join("".join(row) for row in rows) + f"\nnext: {NAMES[state.next_piece]}"
