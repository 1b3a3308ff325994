"""TMaze: remember the sign at the start until the doors at the end of a corridor.

## Description
A sign at the start shows which of the doors at the far end is the right one. In between is a
corridor whose cells show noise in place of a sign. At the junction all doors look alike.

Reference: Bakker 2001, Reinforcement learning with long short-term memory (NeurIPS 14); here with
two doors or more, and corridors of random length.

## Action Space
`Discrete(2 + num_doors)`: 0 forward, 1 back, 2 the first door, 3 the second, and so on.

## Action mask
In the corridor forward is valid, and back where there is a cell behind; at the junction the doors
are, all of them, and nothing else. At least one action always is.

## Observation Space
`Box(0, 1, (3 + num_doors,), float32)`: 1 at the start, 1 in the corridor, 1 at the junction; then
an entry a door: the sign at the start (1 for the right door), noise in the corridor (each entry
uniform in [0, 1), drawn anew each step), 0 at the junction.

## Rewards
1 for going through the right door: the mean return is the share of successes. Who reaches the
junction and has forgotten the sign is right 1 time in `num_doors`, whatever he does.

## Starting State
The start, with a random sign; the corridor's length is random within its bounds.

## Episode End
Terminated: a door. Truncated: after 200 steps.

## Arguments
`num_doors` (2 to 8), 4; `corridor_length` (1 to 199), 10: most steps from start to junction, and
one more is through a door; `min_length` (1 to corridor_length), least steps; None: half of it.
"""

import numpy as np
from gymnasium import spaces
from numba import njit

from rlmask_envs import drawing
from rlmask_envs.rng import random_integer, random_unit
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_size

FORWARD, BACK, FIRST_DOOR = 0, 1, 2
AT_START, IN_CORRIDOR, AT_JUNCTION, FIRST_SIGN = range(4)
MAX_DOORS = 8
MAX_LENGTH = 199  # the step through a door is the last of 200
MOST_SHOWN = 24  # cells of a corridor in a picture; of a longer one, the cells around the walker
COLORS = (
    drawing.RED, drawing.BLUE, drawing.GREEN, drawing.YELLOW,
    drawing.PURPLE, drawing.ORANGE, drawing.TEAL, drawing.PINK,
)  # fmt: skip


def setup(num_doors: int = 4, corridor_length: int = 10, min_length: int | None = None) -> Setup:
    """Return what depends on the doors and the corridor."""
    doors = check_size("num_doors", num_doors, 2, MAX_DOORS)
    longest = check_size("corridor_length", corridor_length, 1, MAX_LENGTH)
    shortest = max(1, longest // 2) if min_length is None else min_length
    options = {
        "num_doors": doors,
        "longest": longest,
        "shortest": check_size("min_length", shortest, 1, longest),
    }
    fields = [
        ("length", np.int32),  # steps from the start to the junction
        ("place", np.int32),  # steps from the start to the walker
        ("sign", np.int32),  # the right door
        ("chosen", np.int32),  # the door that ended the episode; -1 before
        ("noise", np.float64, (MAX_DOORS,)),  # what the cell shows
    ]
    space = spaces.Box(0, 1, (FIRST_SIGN + doors,), np.float32)
    return Setup(np.dtype(fields), options, space, FIRST_DOOR + doors)


@njit
def reset(state, rng, options):
    """Draw a sign and a corridor."""
    state.sign = random_integer(rng, options.num_doors)
    state.length = options.shortest + random_integer(rng, options.longest - options.shortest + 1)
    state.place = 0
    state.chosen = -1
    draw_noise(state, rng)


@njit
def draw_noise(state, rng):
    """Draw what a cell of the corridor shows."""
    for door in range(MAX_DOORS):
        state.noise[door] = random_unit(rng)


@njit
def step(state, action, rng, options):
    """Walk, or go through a door."""
    if action >= FIRST_DOOR:
        state.chosen = action - FIRST_DOOR
        return 1.0 if state.chosen == state.sign else 0.0, True
    state.place += 1 if action == FORWARD else -1
    draw_noise(state, rng)
    return 0.0, False


@njit
def observe(state, obs, options):
    """Write where the walker is, and what he sees there."""
    if state.place == 0:
        obs[AT_START] = 1.0
        obs[FIRST_SIGN + state.sign] = 1.0
    elif state.place == state.length:
        obs[AT_JUNCTION] = 1.0
    else:
        obs[IN_CORRIDOR] = 1.0
        for door in range(options.num_doors):
            obs[FIRST_SIGN + door] = state.noise[door]


@njit
def valid_actions(state, mask, options):
    """Allow the two ways along the corridor, or the doors."""
    if state.place == state.length:
        for door in range(options.num_doors):
            mask[FIRST_DOOR + door] = 1
    else:
        mask[FORWARD] = 1
        mask[BACK] = state.place > 0


def image(state, options):
    """Return a picture: the sign on the left, the doors on the right."""
    doors, length, place = int(options.num_doors), int(state.length), int(state.place)
    first = min(max(0, place - MOST_SHOWN // 2), max(0, length - MOST_SHOWN))
    shown = min(length, MOST_SHOWN)
    row = doors // 2
    picture = drawing.blank(doors, shown + 2, drawing.GREY)
    for x in range(shown + 1):
        is_end = first + x == length
        for y in range(doors) if is_end else [row]:
            drawing.rectangle(picture, y + 0.03, x + 0.03, 0.94, 0.94, drawing.PAPER)
        if first + x == 0:
            drawing.cell(picture, row, x, COLORS[int(state.sign)], 0.15)
        if is_end:
            for door in range(doors):
                drawing.rectangle(picture, door + 0.1, x + 1, 0.8, 0.5, COLORS[door])
    chosen = int(state.chosen)
    y, x = (row, place - first) if chosen < 0 else (chosen, length - first + 0.8)
    drawing.disc(picture, y, x, drawing.INK, 0.25)
    return picture


def text(state, options):
    """Return a line of text: the sign, @ the walker, the junction, and the door if one is taken."""
    corridor = ["."] * int(state.length) + ["|"]
    corridor[int(state.place)] = "@"
    chosen = "" if state.chosen < 0 else f" door {int(state.chosen)}"
    return f"sign {int(state.sign)} {''.join(corridor)} {int(options.num_doors)} doors{chosen}"
