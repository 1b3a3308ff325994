"""Sokoban: push every box on a goal, in a new level each time, on a map of up to 10 x 10.

## Description
A worker walks through a room and pushes boxes, one at a time and never pulls; the boxes belong on
the goals, whichever on which. A box in a corner is lost, and the episode goes on all the same.

Every level can be solved: it starts from the solved room and is played in reverse, by a worker who
pulls boxes off the goals. That walk backwards is a solution, of 120 moves at most.

## Action Space
`Discrete(6)`, the union of the suite: 0 up, 1 right, 2 down, 3 left; 4 and 5 are never valid.

## Action mask
Valid are the directions in which the next cell is free, or holds a box with a free cell behind it.
At least one direction always is: the cell that the worker has just left is free.

## Observation Space
`Box(0, 255, (10, 10, 16), uint8)`; planes: 0 walls, 1 goals, 2 boxes, 3 the worker, 4 the cells of
the map.

## Rewards
-0.1 a step, 1 for a box pushed on a goal, -1 for one pushed off it, 10 for the last box.

## Starting State
A random room with walls all around and some inside, as many goals as boxes, and the boxes where
playing in reverse has left them; at least one is on no goal.

## Episode End
Terminated: every box is on a goal. Truncated: after 120 steps.

## Arguments
`height` and `width` (5 to 10), both 10, with the outer walls; `num_boxes` (1 to 6, and a third of
the cells inside the outer walls), 3; `num_pulls` (1 to 30), 10: how often playing in reverse drags
a box away, by one to four cells. More make harder levels.

Reference: Racanière et al. 2017, arXiv:1707.06203 (rewards, time limit, and how levels are made).
"""

import numpy as np
from numba import njit

from rlmask_envs import drawing, figures
from rlmask_envs.planes import ON
from rlmask_envs.rng import random_choice, random_integer
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_size
from rlmask_envs.suite import LEFT, NUM_ACTIONS, RIGHT, SIZE, UP, observation_space

CELLS = SIZE * SIZE  # y * SIZE + x on every map
MOST_BOXES = 6
MOST_MOVES = 120  # of the solution; the time limit
LONGEST_DRAG = 4


def setup(height: int = 10, width: int = 10, num_boxes: int = 3, num_pulls: int = 10) -> Setup:
    """Return what depends on the size of the map, the number of boxes and of pulls."""
    height = check_size("height", height, 5, SIZE)
    width = check_size("width", width, 5, SIZE)
    most_boxes = min(MOST_BOXES, (height - 2) * (width - 2) // 3)
    options = {
        "height": height,
        "width": width,
        "num_boxes": check_size("num_boxes", num_boxes, 1, most_boxes),
        "num_pulls": check_size("num_pulls", num_pulls, 1, 30),
    }
    fields = [
        ("walls", np.uint8, CELLS),  # and all that is beyond them
        ("goals", np.uint8, CELLS),
        ("boxes", np.uint8, CELLS),
        ("worker", np.int32),  # its cell
        ("off_goals", np.int32),  # boxes
        ("solution", np.int8, MOST_MOVES),  # of the level, from `first` on; no rule reads it
        ("first", np.int32),
        # for playing in reverse
        ("free", np.uint8, CELLS),
        ("distance", np.int16, CELLS),  # steps to the worker, -1: no way
        ("towards", np.int8, CELLS),  # the direction of the first of them
        ("queue", np.int16, CELLS),
        ("pulls", np.uint8, 4 * CELLS),  # cell by direction
    ]
    return Setup(np.dtype(fields), options, observation_space(), NUM_ACTIONS)


@njit
def neighbour(cell, direction):
    """Return the cell next to one that is no outer wall."""
    if direction == UP:
        return cell - SIZE
    if direction == RIGHT:
        return cell + 1
    return cell - 1 if direction == LEFT else cell + SIZE


@njit
def is_free(state, cell):
    """Tell whether neither wall nor box is there."""
    return state.walls[cell] == 0 and state.boxes[cell] == 0


@njit
def reset(state, rng, options):
    """Make a level."""
    state.off_goals = 0
    while state.off_goals == 0:  # rarely twice: no box could be pulled, or it came back
        carve_room(state, rng, options)
        place_boxes(state, rng, options)
        play_in_reverse(state, rng, options)


@njit
def carve_room(state, rng, options):
    """Carve floor along a random walk; so it is connected."""
    height, width = options.height, options.width
    for cell in range(CELLS):
        state.walls[cell] = 1
    inside = (height - 2) * (width - 2)
    floor = max(3 * options.num_boxes, inside // 2 + random_integer(rng, inside // 3))
    y, x = 1 + random_integer(rng, height - 2), 1 + random_integer(rng, width - 2)
    direction = random_integer(rng, 4)
    while floor > 0:
        # up to 2 x 2 cells at a time: in a passage one cell wide a box can only go on or back
        for row in range(y, min(y + 1 + random_integer(rng, 2), height - 1)):
            for column in range(x, min(x + 1 + random_integer(rng, 2), width - 1)):
                floor -= state.walls[row * SIZE + column]
                state.walls[row * SIZE + column] = 0
        if random_integer(rng, 3) == 0:
            direction = random_integer(rng, 4)
        cell = neighbour(y * SIZE + x, direction)
        y, x = min(max(cell // SIZE, 1), height - 2), min(max(cell % SIZE, 1), width - 2)


@njit
def place_boxes(state, rng, options):
    """Put goals with boxes on them, and the worker, on random cells of the floor."""
    for cell in range(CELLS):
        state.goals[cell] = 0
        state.boxes[cell] = 0
        state.free[cell] = 1 - state.walls[cell]
    for _ in range(options.num_boxes):
        cell = random_choice(rng, state.free)
        state.free[cell] = 0
        state.goals[cell] = 1
        state.boxes[cell] = 1
    state.worker = random_choice(rng, state.free)


@njit
def play_in_reverse(state, rng, options):
    """Drag boxes off, walk to a random cell, and keep the way back as the solution."""
    for cell in range(CELLS):
        state.queue[cell] = 0
    for move in range(MOST_MOVES):
        state.solution[move] = 0
    state.first = MOST_MOVES
    state.off_goals = 0
    for _ in range(options.num_pulls):
        find_ways(state)
        find_pulls(state, True)  # boxes on goals first, so that in the end few are
        pull = random_choice(rng, state.pulls)
        if pull < 0:
            find_pulls(state, False)
            pull = random_choice(rng, state.pulls)
        if pull < 0:
            break
        box, direction = pull // 4, pull % 4
        start = neighbour(box, direction)
        length = 1 + random_integer(rng, LONGEST_DRAG)
        if state.distance[start] + length > state.first:
            break
        walk(state, start)
        drag(state, direction, length)
    find_ways(state)
    for cell in range(CELLS):
        state.free[cell] = 0 <= state.distance[cell] <= state.first
    walk(state, random_choice(rng, state.free))


@njit
def find_ways(state):
    """Find the shortest way to the worker from every cell, without moving a box."""
    for cell in range(CELLS):
        state.distance[cell] = -1
        state.towards[cell] = 0
    state.distance[state.worker] = 0
    state.queue[0] = state.worker
    done, found = 0, 1
    while done < found:
        cell = state.queue[done]
        done += 1
        for direction in range(4):
            there = neighbour(cell, direction)
            if is_free(state, there) and state.distance[there] < 0:
                state.distance[there] = state.distance[cell] + 1
                state.towards[there] = (direction + 2) % 4
                state.queue[found] = there
                found += 1


@njit
def find_pulls(state, on_goals):
    """Mark the boxes and directions in which the worker can pull; only boxes on goals, or all."""
    for box in range(CELLS):
        for direction in range(4):
            state.pulls[4 * box + direction] = 0
            if state.boxes[box] and (state.goals[box] or not on_goals):
                start = neighbour(box, direction)
                if is_free(state, start) and state.distance[start] >= 0:
                    end = neighbour(start, direction)
                    state.pulls[4 * box + direction] = is_free(state, end)


@njit
def walk(state, cell):
    """Walk there, and put the way back before the solution."""
    state.first -= state.distance[cell]
    there = cell
    for move in range(state.distance[cell]):
        state.solution[state.first + move] = state.towards[there]
        there = neighbour(there, state.towards[there])
    state.worker = cell


@njit
def drag(state, direction, length):
    """Pull the box behind the worker by so many cells, or as far as it goes."""
    for _ in range(length):
        end = neighbour(state.worker, direction)
        if not is_free(state, end):
            return
        move_box(state, neighbour(state.worker, (direction + 2) % 4), state.worker)
        state.worker = end
        state.first -= 1
        state.solution[state.first] = (direction + 2) % 4


@njit
def move_box(state, start, end):
    """Move a box, and return by how many there are more on goals."""
    state.boxes[start] = 0
    state.boxes[end] = 1
    gained = np.int64(state.goals[end]) - np.int64(state.goals[start])
    state.off_goals -= gained
    return gained


@njit
def step(state, action, rng, options):
    """Walk or push."""
    there = neighbour(state.worker, action)
    reward = -0.1
    if state.boxes[there]:
        reward += move_box(state, there, neighbour(there, action))
    state.worker = there
    if state.off_goals == 0:
        return reward + 10.0, True
    return reward, False


@njit
def observe(state, obs, options):
    """Write the planes."""
    for y in range(options.height):
        for x in range(options.width):
            cell = y * SIZE + x
            obs[y, x, 0] = ON * state.walls[cell]
            obs[y, x, 1] = ON * state.goals[cell]
            obs[y, x, 2] = ON * state.boxes[cell]
            obs[y, x, 4] = ON
    obs[state.worker // SIZE, state.worker % SIZE, 3] = ON


@njit
def valid_actions(state, mask, options):
    """Allow to walk to a free cell, and to push a box to one."""
    for action in range(4):
        there = neighbour(state.worker, action)
        if state.boxes[there]:
            there = neighbour(there, action)
        mask[action] = is_free(state, there)


CRATE = (205, 150, 84), (150, 100, 48)  # the faces, the frame
STORED = (128, 182, 104), (74, 128, 62)  # on a goal


def image(state, options):
    """Return a picture."""
    picture = drawing.blank(options.height, options.width, figures.FLOOR)
    for y in range(options.height):
        for x in range(options.width):
            cell = y * SIZE + x
            if state.walls[cell]:
                figures.wall(picture, y, x)
            if state.goals[cell]:
                figures.goal(picture, y, x)
            if state.boxes[cell]:
                figures.crate(picture, y, x, *(STORED if state.goals[cell] else CRATE))
    edge = drawing.RED if state.goals[state.worker] else drawing.INK
    figures.worker(picture, state.worker // SIZE, state.worker % SIZE, edge)
    return picture


def text(state, options):
    """Return lines of text: # wall, . goal, $ box, * box on a goal, @ worker, + worker on one."""

    def letter_at(y, x):
        cell = y * SIZE + x
        if state.walls[cell]:
            return "#"
        if state.boxes[cell]:
            return "*" if state.goals[cell] else "$"
        if cell == state.worker:
            return "+" if state.goals[cell] else "@"
        return "." if state.goals[cell] else " "

    return drawing.letters(options.height, options.width, letter_at)
