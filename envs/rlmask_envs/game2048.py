"""2048: slide the tiles of a square board, and join equal ones.

## Description
A move slides every tile as far as it goes in one direction. Two equal tiles that meet become one of
twice the number; each tile takes part in one such merge a move, and of three in a row the two
nearest to the wall merge. Then a new tile appears on a random empty cell: 2 with probability 0.9, 4
with 0.1.

## Action Space
`Discrete(6)`, the union of the suite: 0 up, 1 right, 2 down, 3 left; 4 and 5 are never valid.

## Action mask
Valid are the directions in which at least one tile moves or merges.

## Observation Space
`Box(0, 255, (10, 10, 16), uint8)`; plane k is 255 where the tile is 2^(k + 1), the last plane also
where it is greater.

## Rewards
The sum of the tiles that a move makes by merging.

## Starting State
Two tiles, drawn and placed as those that appear later.

## Episode End
Terminated: no move changes the board, or a merge has made a tile of `max_tile` (no new tile appears
then). Truncated: never.

## Arguments
`size` (2 to 10, default 4): rows and columns. `max_tile` (a power of two of 8 to 2^30, default
65536).

Reference: Gabriele Cirulli 2014, https://github.com/gabrielecirulli/2048.
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
    NUM_PLANES,
    RIGHT,
    SIZE,
    UP,
    observation_space,
)

SMALLEST_GOAL, GREATEST_GOAL = 8, 2**30  # a first tile may be a 4

TILE = 2  # cells of the picture along the side of a tile
FRAME, EMPTY = (187, 173, 160), (205, 193, 180)
DARK_TEXT, LIGHT_TEXT = (119, 110, 101), (249, 246, 242)
COLORS = (
    (238, 228, 218), (237, 224, 200), (242, 177, 121), (245, 149, 99), (246, 124, 95),
    (246, 94, 59), (222, 190, 92), (218, 180, 70), (213, 169, 50), (208, 158, 34),
    (202, 146, 20), (90, 140, 200), (66, 110, 190), (130, 90, 180), (100, 60, 150),
)  # fmt: skip
BEYOND = (60, 58, 50)  # tiles greater than those


def setup(size: int = 4, max_tile: int = 65536) -> Setup:
    """Return what depends on the size of the board."""
    max_tile = check_size("max_tile", max_tile, SMALLEST_GOAL, GREATEST_GOAL)
    if max_tile & (max_tile - 1) != 0:
        raise ValueError(f"max_tile is {max_tile}; it takes a power of two")
    options = {
        "side": check_size("size", size, 2, SIZE),  # NumPy's records have a `size` of their own
        "max_exponent": max_tile.bit_length() - 1,
    }
    fields = [("board", np.int8, (SIZE, SIZE))]  # exponents of two; 0: empty
    return Setup(np.dtype(fields), options, observation_space(), NUM_ACTIONS)


@njit
def reset(state, rng, options):
    """Place two tiles on an empty board."""
    for y in range(SIZE):
        for x in range(SIZE):
            state.board[y, x] = 0
    add_tile(state, rng, options)
    add_tile(state, rng, options)


@njit
def add_tile(state, rng, options):
    """Put a 2 or a 4 on a random empty cell; there is one."""
    board, side = state.board, options.side
    empty = 0
    for y in range(side):
        for x in range(side):
            empty += board[y, x] == 0
    drawn = random_integer(rng, 10 * empty)  # one draw for both: ten equal chances a cell
    left, exponent = drawn // 10, 2 if drawn % 10 == 0 else 1
    for y in range(side):
        for x in range(side):
            if board[y, x] == 0:
                if left == 0:
                    board[y, x] = exponent
                    return
                left -= 1


@njit
def cell_at(side, action, line, distance):
    """Return row and column of the cell of a line at a distance from the wall moved towards."""
    if action == UP:
        return distance, line
    if action == DOWN:
        return side - 1 - distance, line
    if action == LEFT:
        return line, distance
    return line, side - 1 - distance


@njit
def slide(state, action, options):
    """Move and merge the tiles, add none; return the reward, or -1 if nothing has changed."""
    board, side = state.board, options.side
    reward, has_changed = 0, False
    for line in range(side):
        stack = 0  # tiles that have arrived at the wall
        open_exponent = 0  # of the last of them, 0 if it has merged
        for distance in range(side):
            y, x = cell_at(side, action, line, distance)
            exponent = int(board[y, x])
            if exponent == 0:
                continue
            board[y, x] = 0
            if exponent == open_exponent:
                open_exponent = 0
                exponent += 1
                reward += 1 << exponent
            else:
                open_exponent = exponent
                stack += 1
            has_changed |= stack - 1 != distance
            y, x = cell_at(side, action, line, stack - 1)
            board[y, x] = exponent
    return reward if has_changed else -1


@njit
def has_goal(state, options):
    """Return whether there is a tile of at least `max_tile`."""
    for y in range(options.side):
        for x in range(options.side):
            if state.board[y, x] >= options.max_exponent:
                return True
    return False


@njit
def can_move(state, options):
    """Return whether a move is left: an empty cell, or equal neighbours."""
    board, side = state.board, options.side
    for y in range(side):
        for x in range(side):
            tile = board[y, x]
            if tile == 0:
                return True
            if x + 1 < side and board[y, x + 1] == tile:
                return True
            if y + 1 < side and board[y + 1, x] == tile:
                return True
    return False


@njit
def step(state, action, rng, options):
    """Slide, and add a tile."""
    reward = float(slide(state, action, options))
    if has_goal(state, options):
        return reward, True
    add_tile(state, rng, options)
    return reward, not can_move(state, options)


@njit
def observe(state, obs, options):
    """Write the planes."""
    for y in range(options.side):
        for x in range(options.side):
            exponent = int(state.board[y, x])
            if exponent > 0:
                obs[y, x, min(exponent, NUM_PLANES) - 1] = ON


@njit
def valid_actions(state, mask, options):
    """Allow the directions in which two neighbours merge, or a tile moves to an empty cell."""
    board = state.board
    for y in range(options.side):
        for x in range(options.side):
            tile = board[y, x]
            if x + 1 < options.side:
                allow(mask, LEFT, RIGHT, tile, board[y, x + 1])
            if y + 1 < options.side:
                allow(mask, UP, DOWN, tile, board[y + 1, x])


@njit
def allow(mask, backward, forward, first, second):
    """Allow what two neighbours can do along their line; `backward` leads from second to first."""
    if second != 0 and (first == 0 or first == second):
        mask[backward] = 1
    if first != 0 and (second == 0 or first == second):
        mask[forward] = 1


def image(state, options):
    """Return a picture."""
    picture = drawing.blank(TILE * options.side, TILE * options.side, FRAME)
    for y in range(options.side):
        for x in range(options.side):
            exponent = int(state.board[y, x])
            place = TILE * y + 0.08, TILE * x + 0.08, TILE - 0.16, TILE - 0.16
            if exponent == 0:
                drawing.rectangle(picture, *place, EMPTY)
                continue
            color = COLORS[exponent - 1] if exponent <= len(COLORS) else BEYOND
            drawing.rectangle(picture, *place, color)
            number = str(2**exponent)
            pixels = max(1, min(5, 50 // (4 * len(number) - 1)))  # of a dot of the letters
            ink = DARK_TEXT if exponent <= 2 else LIGHT_TEXT
            drawing.write(
                picture, TILE * (y + 0.5), TILE * (x + 0.5), number, ink, 5 * pixels / drawing.CELL
            )
    return picture


def text(state, options):
    """Return lines of text: the numbers of the tiles, . where there is none."""
    board = state.board[: options.side, : options.side]
    tiles = [[str(2 ** int(tile)) if tile else "." for tile in row] for row in board]
    width = max(len(tile) for row in tiles for tile in row)
    return "\n".join(" ".join(tile.rjust(width) for tile in row) for row in tiles)
