"""What the five games of the multi-game suite share: six actions and planes of 10 x 10.

Each of the games has its own subset of the actions; the others are never valid in it. An entry of a
plane is 255 where something is there and 0 elsewhere (see `planes`); in between are only Snake's
plane 1, which fades from head to tail, and a 128 in Courier's plane 10. A board smaller than
10 x 10 is in the upper left corner. States have room for 10 x 10 whatever the size, so that a game
is compiled once for all sizes.
"""

from gymnasium import spaces
from numba import njit

from rlmask_envs.planes import plane_space

UP, RIGHT, DOWN, LEFT, PRIMARY, SECONDARY = range(6)
NUM_ACTIONS = 6
SIZE = 10
NUM_PLANES = 16


def observation_space() -> spaces.Box:
    """Return the observation space of every game of the suite: [10, 10, 16] uint8."""
    return plane_space(SIZE, SIZE, NUM_PLANES)


@njit
def row_ahead(y, action):
    """Return the row that a direction leads to."""
    return y - 1 if action == UP else y + 1 if action == DOWN else y


@njit
def column_ahead(x, action):
    """Return the column that a direction leads to."""
    return x - 1 if action == LEFT else x + 1 if action == RIGHT else x
