"""Courier: fetch a parcel and deliver it, through locked doors, on a map of up to 10 x 10.

## Description
A wall across and a wall down the map make four rooms, with a station in each. A parcel lies at one
station and belongs to another. Neighbouring rooms are joined by gaps in the walls; some gaps hold
a locked door. The courier has to find keys, open doors, fetch the parcel and deliver it.

Every map can be solved: key k lies where the courier can come to without door k, and without the
doors of later keys.

## Action Space
`Discrete(6)`, the union of the suite: 0 up, 1 right, 2 down, 3 left, 4 pick up, 5 put down.

## Action mask
Directions are valid where the next cell is on the map, no wall, and no door whose key the courier
lacks. Walking into a door opens it for good, and the key is kept. Picking up is valid on a key, and
on the parcel; putting down is valid with the parcel at a station. A direction always is valid.

## Observation Space
`Box(0, 255, (10, 10, 16), uint8)`; planes: 0 the cells of the map, 1 walls, 2 stations, 3 to 5 key
0 to 2 lying there, 6 to 8 door 0 to 2 closed, 9 the courier, 10 the parcel lying there (128 once it
has been picked up), 11 the destination, 12 on all of the map: carrying the parcel, 13 to 15 on all
of the map: holding key 0 to 2.

## Rewards
-0.01 a step, 0.1 for each key and for the parcel when first picked up, 1 for the delivery.

## Starting State
Walls, gaps, doors, keys, stations, parcel, destination and courier are random. Three of the walls
between two rooms have a gap, in half of the maps the fourth has one, too.

## Episode End
Terminated: the parcel is put down at its destination. Truncated: after 200 steps.

## Arguments
`height` and `width` (7 to 10), both 10; `num_doors` (0 to 3), 2.
"""

import numpy as np
from numba import njit

from rlmask_envs import drawing, figures
from rlmask_envs.planes import ON
from rlmask_envs.rng import random_choice, random_integer
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_size
from rlmask_envs.suite import (
    NUM_ACTIONS,
    PRIMARY,
    SECONDARY,
    SIZE,
    column_ahead,
    observation_space,
    row_ahead,
)

NUM_ROOMS, MOST_DOORS = 4, 3  # room 0 is in the upper left, 1 to 3 follow clockwise
FLOOR, WALL, STATION, KEY, DOOR = 0, 1, 2, 3, 6  # tiles, and planes; KEY + k, DOOR + k
COURIER, PARCEL, DESTINATION, CARRYING, HELD = 9, 10, 11, 12, 13  # planes


def setup(height: int = 10, width: int = 10, num_doors: int = 2) -> Setup:
    """Return what depends on the size of the map and the number of doors."""
    options = {
        "height": check_size("height", height, 7, SIZE),
        "width": check_size("width", width, 7, SIZE),
        "num_doors": check_size("num_doors", num_doors, 0, MOST_DOORS),
    }
    fields = [
        ("tiles", np.uint8, (SIZE, SIZE)),
        ("y", np.int32),  # of the courier
        ("x", np.int32),
        ("parcel_y", np.int32),  # where it lies, or lay last
        ("parcel_x", np.int32),
        ("destination_y", np.int32),
        ("destination_x", np.int32),
        ("carries", np.uint8),  # the parcel
        ("touched", np.uint8),  # the parcel has been picked up
        ("held", np.uint8, MOST_DOORS),  # keys
        # for making a map
        ("wall_y", np.int32),
        ("wall_x", np.int32),
        ("passages", np.uint8, NUM_ROOMS),  # the tile in the gap from room r to the next, or a wall
        ("reached", np.uint8, NUM_ROOMS),
        ("free", np.uint8, SIZE * SIZE),
    ]
    return Setup(np.dtype(fields), options, observation_space(), NUM_ACTIONS)


@njit
def reset(state, rng, options):
    """Make a map, and forget what was carried."""
    build_rooms(state, rng, options)
    parcel = random_integer(rng, NUM_ROOMS)
    destination = (parcel + 1 + random_integer(rng, NUM_ROOMS - 1)) % NUM_ROOMS
    for room in range(NUM_ROOMS):
        for other in range(NUM_ROOMS):
            state.reached[other] = other == room
        cell = free_cell(state, rng)
        y, x = cell // SIZE, cell % SIZE
        state.tiles[y, x] = STATION
        if room == parcel:
            state.parcel_y, state.parcel_x = y, x
        if room == destination:
            state.destination_y, state.destination_x = y, x
    for room in range(NUM_ROOMS):
        state.reached[room] = 1
    cell = free_cell(state, rng)
    state.y, state.x = cell // SIZE, cell % SIZE
    for key in range(options.num_doors):
        find_rooms(state, key)
        cell = free_cell(state, rng)
        state.tiles[cell // SIZE, cell % SIZE] = KEY + key
    for key in range(MOST_DOORS):
        state.held[key] = 0
    state.carries = 0
    state.touched = 0


@njit
def build_rooms(state, rng, options):
    """Draw the walls, the gaps and the doors; every room is at least 2 x 2."""
    height, width = options.height, options.width
    state.wall_y = 2 + random_integer(rng, height - 4)
    state.wall_x = 2 + random_integer(rng, width - 4)
    for y in range(SIZE):
        for x in range(SIZE):
            is_inside = y < height and x < width and y != state.wall_y and x != state.wall_x
            state.tiles[y, x] = FLOOR if is_inside else WALL
    for room in range(NUM_ROOMS):
        state.passages[room] = FLOOR
    if random_integer(rng, 2) == 0:
        state.passages[random_integer(rng, NUM_ROOMS)] = WALL
    for door in range(options.num_doors):
        for room in range(NUM_ROOMS):
            state.reached[room] = state.passages[room] == FLOOR
        state.passages[random_choice(rng, state.reached)] = DOOR + door
    above = random_integer(rng, state.wall_y)
    below = state.wall_y + 1 + random_integer(rng, height - 1 - state.wall_y)
    left = random_integer(rng, state.wall_x)
    right = state.wall_x + 1 + random_integer(rng, width - 1 - state.wall_x)
    state.tiles[above, state.wall_x] = state.passages[0]
    state.tiles[state.wall_y, right] = state.passages[1]
    state.tiles[below, state.wall_x] = state.passages[2]
    state.tiles[state.wall_y, left] = state.passages[3]


@njit
def room_at(state, y, x):
    """Return the room that a cell is in; -1 in the walls and their gaps."""
    if y == state.wall_y or x == state.wall_x:
        return -1
    if y < state.wall_y:
        return 0 if x < state.wall_x else 1
    return 3 if x < state.wall_x else 2


@njit
def free_cell(state, rng):
    """Return a random cell y * SIZE + x of the floor of the reached rooms."""
    for cell in range(SIZE * SIZE):
        y, x = cell // SIZE, cell % SIZE
        room = room_at(state, y, x)
        state.free[cell] = room >= 0 and state.reached[room] != 0 and state.tiles[y, x] == FLOOR
    return random_choice(rng, state.free)


@njit
def find_rooms(state, key):
    """Mark the rooms that the courier can come to through gaps and the doors of earlier keys."""
    for room in range(NUM_ROOMS):
        state.reached[room] = 0
    start = room_at(state, state.y, state.x)
    state.reached[start] = 1
    for turn in range(2):  # clockwise, and the other way
        room = start
        for _ in range(NUM_ROOMS - 1):
            passage = state.passages[room if turn == 0 else (room + 3) % NUM_ROOMS]
            if passage == WALL or passage >= DOOR + key:
                break
            room = (room + 1) % NUM_ROOMS if turn == 0 else (room + 3) % NUM_ROOMS
            state.reached[room] = 1


@njit
def step(state, action, rng, options):
    """Walk, pick up or put down."""
    if action == PRIMARY:
        return pick_up(state) - 0.01, False
    if action == SECONDARY:
        state.carries = 0
        state.parcel_y, state.parcel_x = state.y, state.x
        if state.y == state.destination_y and state.x == state.destination_x:
            return 0.99, True
        return -0.01, False
    state.y, state.x = row_ahead(state.y, action), column_ahead(state.x, action)
    if state.tiles[state.y, state.x] >= DOOR:
        state.tiles[state.y, state.x] = FLOOR
    return -0.01, False


@njit
def pick_up(state):
    """Take what lies under the courier; return what it is worth."""
    tile = state.tiles[state.y, state.x]
    if tile != STATION:
        state.held[tile - KEY] = 1
        state.tiles[state.y, state.x] = FLOOR
        return 0.1
    state.carries = 1
    if state.touched:
        return 0.0
    state.touched = 1
    return 0.1


@njit
def observe(state, obs, options):
    """Write the planes."""
    for y in range(options.height):
        for x in range(options.width):
            obs[y, x, 0] = ON
            if state.tiles[y, x] != FLOOR:
                obs[y, x, state.tiles[y, x]] = ON
    for key in range(MOST_DOORS):
        if state.held[key]:
            fill(obs, HELD + key, options)
    obs[state.y, state.x, COURIER] = ON
    if state.carries:
        fill(obs, CARRYING, options)
    else:
        obs[state.parcel_y, state.parcel_x, PARCEL] = 128 if state.touched else ON
    obs[state.destination_y, state.destination_x, DESTINATION] = ON


@njit
def fill(obs, plane, options):
    """Write a plane that is on all over the map."""
    for y in range(options.height):
        for x in range(options.width):
            obs[y, x, plane] = ON


@njit
def valid_actions(state, mask, options):
    """Allow the ways that are open, and to pick up and put down where there is something to."""
    for action in range(4):
        y, x = row_ahead(state.y, action), column_ahead(state.x, action)
        if 0 <= y < options.height and 0 <= x < options.width:
            tile = state.tiles[y, x]
            mask[action] = tile != WALL and (tile < DOOR or state.held[tile - DOOR] != 0)
    tile = state.tiles[state.y, state.x]
    if state.carries:
        mask[SECONDARY] = tile == STATION
    elif state.y == state.parcel_y and state.x == state.parcel_x:
        mask[PRIMARY] = 1
    if KEY <= tile < DOOR:
        mask[PRIMARY] = 1


COLORS = (drawing.RED, drawing.BLUE, drawing.PURPLE)  # of the keys and their doors
PAD = (206, 222, 206)


def image(state, options):
    """Return a picture; below the map is what the courier has."""
    height, width = int(options.height), int(options.width)
    picture = drawing.blank(height + 1, width, drawing.GRID)
    picture[: height * drawing.CELL] = drawing.board(height, width)
    for y in range(height):
        for x in range(width):
            tile = int(state.tiles[y, x])
            if tile == WALL:
                drawing.cell(picture, y, x, figures.STONE, 0)
            elif tile == STATION:
                drawing.disc(picture, y, x, PAD, 0.44)
            elif tile >= DOOR:
                figures.door(picture, y, x, COLORS[tile - DOOR])
            elif tile >= KEY:
                figures.key(picture, y, x, COLORS[tile - KEY])
    figures.flag(picture, state.destination_y, state.destination_x)
    if not state.carries:
        figures.parcel(picture, state.parcel_y + 0.5, state.parcel_x + 0.5, 0.27)
    figures.courier(picture, state.y, state.x)
    if state.carries:
        figures.parcel(picture, state.y + 0.7, state.x + 0.7, 0.2)
        figures.parcel(picture, height + 0.5, 0.5, 0.27)
    for key in range(MOST_DOORS):
        if state.held[key]:
            figures.key(picture, height, 1 + key, COLORS[key])
    return picture


def text(state, options):
    """Return lines of text: @ courier, p parcel, ! destination, o station, a key and its door A."""

    def letter_at(y, x):
        if (y, x) == (state.y, state.x):
            return "@"
        if (y, x) == (state.parcel_y, state.parcel_x) and not state.carries:
            return "p"
        if (y, x) == (state.destination_y, state.destination_x):
            return "!"
        return ".#oabcABC"[state.tiles[y, x]]

    has = ["p"] * int(state.carries) + ["abc"[k] for k in range(MOST_DOORS) if state.held[k]]
    board = drawing.letters(options.height, options.width, letter_at)
    return f"{board}\nhas: {' '.join(has) or '-'}"
