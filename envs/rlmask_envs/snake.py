"""Snake: eat without biting yourself, on a board of up to 10 x 10.

## Description
A snake of three cells starts in a random row. Each step it moves one cell ahead; where it meets
food it grows by a cell, and new food appears on a random free cell.

## Action Space
`Discrete(6)`, the union of the suite: 0 up, 1 right, 2 down, 3 left; 4 and 5 are never valid.

## Action mask
Valid are the directions that stay on the board and do not turn back into the neck. Biting the body
is valid, and ends the episode. At least one direction always is.

## Observation Space
`Box(0, 255, (10, 10, 16), uint8)`; planes: 0 the head, 1 the body with the head (255 at the head,
less the sooner a cell will be free), 2 the tail, 3 food, 4 the cells of the board.

## Rewards
1 for food.

## Starting State
Three cells in a random row, heading left or right, and food on a random free cell.

## Episode End
Terminated: the snake bites itself, or fills the board. Truncated: after 1,000 steps.

## Arguments
`height` (2 to 10), `width` (4 to 10), both 10.
"""

import numpy as np
from numba import njit

from rlmask_envs import drawing
from rlmask_envs.planes import ON
from rlmask_envs.rng import random_integer
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_size
from rlmask_envs.suite import NUM_ACTIONS, SIZE, column_ahead, observation_space, row_ahead

START_LENGTH = 3


def setup(height: int = 10, width: int = 10) -> Setup:
    """Return what depends on the size of the board."""
    options = {
        "height": check_size("height", height, 2, SIZE),
        "width": check_size("width", width, 4, SIZE),
    }
    fields = [
        ("entered", np.int32, (SIZE, SIZE)),  # the move that the head came to a cell with
        ("moves", np.int32),  # a cell is the snake's if entered > moves - length
        ("length", np.int32),
        ("y", np.int32),  # of the head
        ("x", np.int32),
        ("food_y", np.int32),
        ("food_x", np.int32),
    ]
    return Setup(np.dtype(fields), options, observation_space(), NUM_ACTIONS)


@njit
def reset(state, rng, options):
    """Lay out the snake and the first food."""
    state.moves = START_LENGTH
    state.length = START_LENGTH
    for y in range(SIZE):
        for x in range(SIZE):
            state.entered[y, x] = 0
    heading = 1 if random_integer(rng, 2) == 0 else -1
    y = random_integer(rng, options.height)
    x = random_integer(rng, options.width - START_LENGTH + 1)  # of its left end
    for move in range(START_LENGTH):
        column = x + move if heading == 1 else x + START_LENGTH - 1 - move
        state.entered[y, column] = move + 1
        state.y, state.x = y, column
    place_food(state, rng, options)


@njit
def place_food(state, rng, options):
    """Put food on a free cell; there is one."""
    left = random_integer(rng, options.height * options.width - state.length)
    for y in range(options.height):
        for x in range(options.width):
            if state.entered[y, x] <= state.moves - state.length:
                if left == 0:
                    state.food_y, state.food_x = y, x
                left -= 1


@njit
def step(state, action, rng, options):
    """Move, and eat."""
    y, x = row_ahead(state.y, action), column_ahead(state.x, action)
    eats = y == state.food_y and x == state.food_x
    state.moves += 1
    if eats:
        state.length += 1
    bites = state.entered[y, x] > state.moves - state.length
    state.entered[y, x] = state.moves
    state.y, state.x = y, x
    if bites:
        return 0.0, True
    if not eats:
        return 0.0, False
    if state.length == options.height * options.width:
        return 1.0, True
    place_food(state, rng, options)
    return 1.0, False


@njit
def observe(state, obs, options):
    """Write the planes."""
    for y in range(options.height):
        for x in range(options.width):
            obs[y, x, 4] = ON
            left = state.entered[y, x] - (state.moves - state.length)  # moves until it is free
            if left > 0:
                obs[y, x, 1] = 255 * left // state.length
            if left == 1:
                obs[y, x, 2] = ON
    obs[state.y, state.x, 0] = ON
    if state.length < options.height * options.width:
        obs[state.food_y, state.food_x, 3] = ON


@njit
def valid_actions(state, mask, options):
    """Allow what stays on the board and does not turn back."""
    for action in range(4):
        y, x = row_ahead(state.y, action), column_ahead(state.x, action)
        if 0 <= y < options.height and 0 <= x < options.width:
            mask[action] = state.entered[y, x] != state.moves - 1


def image(state, options):
    """Return a picture."""
    picture = drawing.board(options.height, options.width)
    drawing.disc(picture, state.food_y, state.food_x, drawing.RED, 0.3)
    for y in range(options.height):
        for x in range(options.width):
            left = int(state.entered[y, x] - (state.moves - state.length))
            if left > 0:
                fade = 0.4 + 0.6 * left / int(state.length)
                color = [round(255 - fade * (255 - c)) for c in drawing.GREEN]
                drawing.cell(picture, y, x, color)
    drawing.disc(picture, state.y, state.x, drawing.INK, 0.2)
    return picture


def text(state, options):
    """Return lines of text: H the head, o the body, * food."""

    def letter_at(y, x):
        if (y, x) == (state.y, state.x):
            return "H"
        if state.entered[y, x] > state.moves - state.length:
            return "o"
        return "*" if (y, x) == (state.food_y, state.food_x) else "."

    return drawing.letters(options.height, options.width, letter_at)
