"""Adventure: go, take and use things in the right order, as in a text adventure.

## Description
A world of ten rooms and ten things, which `world` fixes: which rooms are next to each other, and
the quest, a chain of uses: the first thing of it on the second, then the second on the third, and
so on. All other things are of no use. Of 120 actions a few are valid at a time.

Reference: in the spirit of the text adventure in Zahavy et al. 2018, Learn what not to learn
(arXiv:1809.02121); rules and worlds are our own.

## Action Space
`Discrete(120)`: r goes to room r, 10 + t takes thing t, 20 + 10 a + b uses thing a on thing b.

## Action mask
Going to a neighbouring room is valid, so is taking a thing that lies here; of the uses only the
next one of the quest is, if the first thing is held and the other one is held or lies here. Two
actions are valid at least; mostly 2 to 6 are.

## Observation Space
`Box(0, 1, (131 + num_uses,), float32)`: the room (10, one-hot); for each thing where it is (10
rooms, then whether it is held, one-hot); for each thing whether it lies here (10); how many uses of
the quest are done (0 to `num_uses`, one-hot).

## Rewards
-0.01 a step, and 1 for the last use of the quest.

## Starting State
A random room; every thing lies in a random room.

## Episode End
Terminated: the quest is done. Truncated: after 50 steps.

## Arguments
`world` (0 to 2^31 - 1), 0: the number of the world; `num_uses` (1 to 9), 3: of the quest.
"""

from itertools import pairwise

import numpy as np
from gymnasium import spaces
from numba import njit

from rlmask_envs import drawing
from rlmask_envs.rng import random_integer
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_size

NUM_ROOMS, NUM_THINGS = 10, 10
NUM_SHORTCUTS = 3
HELD = NUM_ROOMS  # the place of what was taken
FIRST_TAKE = NUM_ROOMS
FIRST_USE = FIRST_TAKE + NUM_THINGS
NUM_ACTIONS = FIRST_USE + NUM_THINGS * NUM_THINGS
FIRST_PLACE = NUM_ROOMS  # in the observation
FIRST_HERE = FIRST_PLACE + NUM_THINGS * (NUM_ROOMS + 1)
FIRST_DONE = FIRST_HERE + NUM_THINGS
STEP_COST = 0.01
LETTERS = "ABCDEFGHIJ"


def setup(world: int = 0, num_uses: int = 3) -> Setup:
    """Return what depends on the world and the length of the quest."""
    seed = check_size("world", world, 0, 2**31 - 1)
    uses = check_size("num_uses", num_uses, 1, NUM_THINGS - 1)
    ring, is_next, quest = make_world(seed)
    options = {"num_uses": uses, "ring": ring, "is_next": is_next, "quest": quest}
    fields = [
        ("room", np.int32),  # where the player is
        ("places", np.int32, (NUM_THINGS,)),  # the room of each thing, or HELD
        ("done", np.int32),  # uses of the quest
    ]
    space = spaces.Box(0, 1, (FIRST_DONE + uses + 1,), np.float32)
    return Setup(np.dtype(fields), options, space, NUM_ACTIONS)


def make_world(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rooms in a ring, which are next to which [rooms, rooms], and the things in order.

    The rooms form a ring with a few shortcuts, so that none is a dead end.
    """
    rng = np.array([seed, 0], np.uint64)
    ring, quest = shuffled(NUM_ROOMS, rng), shuffled(NUM_THINGS, rng)
    is_next = np.zeros((NUM_ROOMS, NUM_ROOMS), np.uint8)
    is_next[ring, np.roll(ring, 1)] = 1
    left = NUM_SHORTCUTS
    while left:
        room, other = random_integer(rng, NUM_ROOMS), random_integer(rng, NUM_ROOMS)
        if room != other and not is_next[room, other] and not is_next[other, room]:
            is_next[room, other] = 1
            left -= 1
    return ring, is_next | is_next.T, quest


def shuffled(n: int, rng: np.ndarray) -> np.ndarray:
    """Return 0 to n - 1 in random order."""
    order = np.arange(n, dtype=np.int32)
    for index in range(n - 1, 0, -1):
        other = random_integer(rng, index + 1)
        order[[index, other]] = order[[other, index]]
    return order


@njit
def reset(state, rng, options):
    """Put the player and all things somewhere."""
    state.room = random_integer(rng, NUM_ROOMS)
    for thing in range(NUM_THINGS):
        state.places[thing] = random_integer(rng, NUM_ROOMS)
    state.done = 0


@njit
def step(state, action, rng, options):
    """Go, take or use."""
    if action < FIRST_TAKE:
        state.room = action
    elif action < FIRST_USE:
        state.places[action - FIRST_TAKE] = HELD
    else:
        state.done += 1
    ended = state.done == options.num_uses
    return (1.0 if ended else 0.0) - STEP_COST, ended


@njit
def observe(state, obs, options):
    """Write where the player is, where the things are, and how far the quest is."""
    obs[state.room] = 1.0
    for thing in range(NUM_THINGS):
        obs[FIRST_PLACE + thing * (NUM_ROOMS + 1) + state.places[thing]] = 1.0
        obs[FIRST_HERE + thing] = state.places[thing] == state.room
    obs[FIRST_DONE + state.done] = 1.0


@njit
def valid_actions(state, mask, options):
    """Allow the ways out, what lies here, and the next use if both things are at hand."""
    for room in range(NUM_ROOMS):
        mask[room] = options.is_next[state.room, room]
    for thing in range(NUM_THINGS):
        mask[FIRST_TAKE + thing] = state.places[thing] == state.room
    if state.done < options.num_uses:
        used, on = options.quest[state.done], options.quest[state.done + 1]
        is_held = state.places[on] == HELD
        is_at_hand = is_held or state.places[on] == state.room
        mask[FIRST_USE + used * NUM_THINGS + on] = state.places[used] == HELD and is_at_hand


def image(state, options):
    """Return a picture: the rooms with what lies there; below, what is held, and the quest."""
    size = 10
    picture = drawing.blank(size + 2, size)
    angles = 2 * np.pi * np.arange(NUM_ROOMS) / NUM_ROOMS
    centres = np.zeros((NUM_ROOMS, 2))
    centres[options.ring] = size / 2 + 3.9 * np.stack([-np.cos(angles), np.sin(angles)], -1)
    for room, other in zip(*np.nonzero(np.triu(options.is_next)), strict=True):
        drawing.line(picture, tuple(centres[room]), tuple(centres[other]), drawing.GREY)
    for room, (y, x) in enumerate(centres):
        is_here = room == state.room
        color = drawing.YELLOW if is_here else drawing.GRID
        drawing.dot(picture, y, x, color, 0.95)
        for index, thing in enumerate(np.flatnonzero(state.places == room)):
            row, column = divmod(index, 4)
            at = (y - 0.3 + 0.45 * row, x - 0.55 + 0.37 * column)
            drawing.write(picture, *at, LETTERS[thing], thing_color(thing, options), 0.35)
    held = "".join(LETTERS[thing] for thing in np.flatnonzero(state.places == HELD))
    drawing.write(picture, size + 0.4, size / 2, f"held {held or '-'}", drawing.INK)
    for use in range(int(options.num_uses)):
        pair = "".join(LETTERS[thing] for thing in options.quest[use : use + 2])
        color = drawing.GREEN if use < state.done else drawing.RED
        at = size * (use + 0.5) / int(options.num_uses)
        drawing.write(picture, size + 1.3, at, pair, color, 0.5)
    return picture


def thing_color(thing, options):
    """Return red for what the quest needs, grey for the rest."""
    is_needed = thing in options.quest[: int(options.num_uses) + 1]
    return drawing.RED if is_needed else drawing.GREY


def text(state, options):
    """Return lines of text: the room, the ways out, what lies where, what is held, the quest."""
    exits = " ".join(map(str, np.flatnonzero(options.is_next[int(state.room)])))
    lines = [f"room {int(state.room)}, exits to {exits}"]
    for place in range(NUM_ROOMS + 1):
        things = " ".join(LETTERS[thing] for thing in np.flatnonzero(state.places == place))
        if things:
            lines.append(f"{'held' if place == HELD else f'in {place}'}: {things}")
    quest = [LETTERS[thing] for thing in options.quest[: int(options.num_uses) + 1]]
    uses = [f"{one} on {two}" for one, two in pairwise(quest)]
    lines.append(f"quest: {', '.join(uses)}; done: {int(state.done)}")
    return "\n".join(lines)
