"""Minesweeper: open every cell that holds no mine.

## Description
Mines are hidden on a board. Opening a cell tells how many of its up to eight neighbours are mines;
if none is, the neighbours are opened as well, and so on.

The mines are placed at the first opening, uniformly over the cells that are left: never on the
opened cell, nor on its neighbours if `num_mines` is at most the number of cells less 9. So the
first opening is always safe, and in the usual game it opens a region.

## Action Space
`Discrete(height * width)`: action `y * width + x` opens the cell in row y and column x.

## Action mask
Valid are the closed cells.

## Observation Space
`Box(0, 255, (height, width, 10), uint8)`; planes: 0 closed cells, 1 to 9 opened cells with 0 to 8
mines around. Exactly one of them is 255 in a cell, but none is where a mine was opened.

## Rewards
A cell newly opened without a mine is worth 1 over the number of such cells, so the return is 1 for
a solved board. Opening a mine gives 0.

## Starting State
All cells closed.

## Episode End
Terminated: a mine is opened, or all cells without one are.

## Arguments
`height` and `width` (4 to 32), both 10; `num_mines` (1 to the number of cells less 1), 10.
"""

import numpy as np
from numba import njit

from rlmask_envs import drawing
from rlmask_envs.planes import ON, plane_space
from rlmask_envs.rng import random_integer
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_size

CLOSED, EXPLODED = 0, 10  # of `shown`; between them an opened cell, 1 + mines around
NUM_PLANES = 10

LID, LIGHT, SHADOW = (176, 186, 196), (208, 216, 224), (134, 144, 156)
DIGITS = (
    *(drawing.BLUE, drawing.GREEN, drawing.RED, drawing.PURPLE),
    *(drawing.ORANGE, drawing.TEAL, drawing.INK, drawing.GREY),
)


def setup(height: int = 10, width: int = 10, num_mines: int = 10) -> Setup:
    """Return what depends on the size of the board and the number of mines."""
    height, width = check_size("height", height, 4, 32), check_size("width", width, 4, 32)
    num_cells = height * width
    num_mines = check_size("num_mines", num_mines, 1, num_cells - 1)
    options = {
        "height": height,
        "width": width,
        "num_mines": num_mines,
        "spread": 1 if num_mines <= num_cells - 9 else 0,  # how far from the first opening is free
    }
    fields = [
        ("shown", np.uint8, (height, width)),
        ("mines", np.uint8, (height, width)),
        ("around", np.uint8, (height, width)),  # mines around a cell
        ("num_open", np.int32),  # before the first opening there are no mines yet
        ("cells", np.int16, (num_cells,)),  # scratch
    ]
    space = plane_space(height, width, NUM_PLANES)
    return Setup(np.dtype(fields), options, space, num_cells)


@njit
def reset(state, rng, options):
    """Close all cells."""
    state.num_open = 0
    for y in range(options.height):
        for x in range(options.width):
            state.shown[y, x] = CLOSED
            state.mines[y, x] = 0
            state.around[y, x] = 0
            state.cells[y * options.width + x] = 0


@njit
def place_mines(state, first_y, first_x, rng, options):
    """Put mines on random cells away from the first opening, and count them around every cell."""
    count = 0
    for y in range(options.height):
        for x in range(options.width):
            if max(abs(y - first_y), abs(x - first_x)) > options.spread:
                state.cells[count] = y * options.width + x
                count += 1
    for _ in range(options.num_mines):
        index = random_integer(rng, count)
        cell = state.cells[index]
        count -= 1
        state.cells[index] = state.cells[count]
        mine_y, mine_x = cell // options.width, cell % options.width
        state.mines[mine_y, mine_x] = 1
        for y in range(max(mine_y - 1, 0), min(mine_y + 2, options.height)):
            for x in range(max(mine_x - 1, 0), min(mine_x + 2, options.width)):
                if y != mine_y or x != mine_x:
                    state.around[y, x] += 1


@njit
def open_region(state, first_y, first_x, options):
    """Open a cell, and those around every opened cell without mines around; return how many."""
    state.shown[first_y, first_x] = 1 + state.around[first_y, first_x]
    state.cells[0] = first_y * options.width + first_x
    done, count = 0, 1  # cells[:count] are open, cells[:done] have been looked around
    while done < count:
        cell_y, cell_x = state.cells[done] // options.width, state.cells[done] % options.width
        done += 1
        if state.around[cell_y, cell_x] == 0:
            for y in range(max(cell_y - 1, 0), min(cell_y + 2, options.height)):
                for x in range(max(cell_x - 1, 0), min(cell_x + 2, options.width)):
                    if state.shown[y, x] == CLOSED:
                        state.shown[y, x] = 1 + state.around[y, x]
                        state.cells[count] = y * options.width + x
                        count += 1
    return count


@njit
def step(state, action, rng, options):
    """Open a cell."""
    y, x = action // options.width, action % options.width
    if state.num_open == 0:
        place_mines(state, y, x, rng, options)
    if state.mines[y, x]:
        state.shown[y, x] = EXPLODED
        return 0.0, True
    count = open_region(state, y, x, options)
    state.num_open += count
    num_safe = options.height * options.width - options.num_mines
    return count / num_safe, state.num_open == num_safe


@njit
def observe(state, obs, options):
    """Write the planes."""
    for y in range(options.height):
        for x in range(options.width):
            if state.shown[y, x] != EXPLODED:
                obs[y, x, state.shown[y, x]] = ON


@njit
def valid_actions(state, mask, options):
    """Allow the closed cells."""
    for y in range(options.height):
        for x in range(options.width):
            mask[y * options.width + x] = state.shown[y, x] == CLOSED


def image(state, options):
    """Return a picture; the mines are in it once the episode has ended."""
    picture = drawing.board(options.height, options.width)
    outcome = outcome_of(state, options)
    for y in range(options.height):
        for x in range(options.width):
            shown = int(state.shown[y, x])
            if shown == CLOSED:
                draw_lid(picture, y, x)
            elif shown == EXPLODED:
                drawing.cell(picture, y, x, drawing.RED, 0.03)
            elif shown > 1:
                drawing.write(picture, y + 0.5, x + 0.5, str(shown - 1), DIGITS[shown - 2], 0.6)
            if state.mines[y, x] and outcome == "lost":
                draw_mine(picture, y, x)
            elif state.mines[y, x] and outcome == "solved":
                draw_flag(picture, y, x)
    return picture


def outcome_of(state, options):
    """Return "solved", "lost", or "" while the episode goes on."""
    if (state.shown == EXPLODED).any():
        return "lost"
    return "solved" if state.num_open == state.shown.size - options.num_mines else ""


def draw_lid(picture, y, x):
    """Draw a closed cell, lit from the upper left."""
    drawing.cell(picture, y, x, SHADOW, 0.03)
    drawing.rectangle(picture, y + 0.03, x + 0.03, 0.85, 0.85, LIGHT)
    drawing.rectangle(picture, y + 0.12, x + 0.12, 0.76, 0.76, LID)


def draw_mine(picture, y, x):
    """Draw a ball with eight spikes and a glint."""
    for dy, dx in ((0, 0.36), (0.36, 0), (0.25, 0.25), (0.25, -0.25)):
        start, end = (y + 0.5 - dy, x + 0.5 - dx), (y + 0.5 + dy, x + 0.5 + dx)
        drawing.line(picture, start, end, drawing.BLACK, 0.07)
    drawing.disc(picture, y, x, drawing.BLACK, 0.25)
    drawing.dot(picture, y + 0.42, x + 0.42, drawing.WHITE, 0.06)


def draw_flag(picture, y, x):
    """Draw a pennant on its pole."""
    drawing.line(picture, (y + 0.22, x + 0.36), (y + 0.78, x + 0.36), drawing.INK, 0.06)
    for row in range(9):
        length = 0.36 * (1 - abs(row - 4) / 4.5)
        top = y + 0.24 + 0.032 * row
        drawing.line(picture, (top, x + 0.4), (top, x + 0.4 + length), drawing.RED, 0.06)


def text(state, options):
    """Return lines of text: # closed, . no mine around, 1 to 8 mines around, * the opened mine."""
    letters = "#.12345678*"
    return "\n".join("".join(letters[shown] for shown in row) for row in state.shown)
