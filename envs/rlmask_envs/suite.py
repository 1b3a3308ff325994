"""What the five games of the multi-game suite share: six actions and planes of 10 x 10.

Each of the games has its own subset of the actions; the others are never valid in it. An entry of a
plane is 255 where something is there and 0 elsewhere, as in a picture, so that whatever divides
images by 255 sees 1 and 0. A board smaller than 10 x 10 is in the upper left corner.
"""

import numpy as np
from gymnasium import spaces

UP, RIGHT, DOWN, LEFT, PRIMARY, SECONDARY = range(6)
NUM_ACTIONS = 6
SIZE = 10
NUM_PLANES = 16
ON = np.uint8(255)


def observation_space() -> spaces.Box:
    """Return the observation space of every game of the suite: [10, 10, 16] uint8."""
    return spaces.Box(0, 255, (SIZE, SIZE, NUM_PLANES), np.uint8)


def check_size(name: str, value: int, low: int, high: int = SIZE) -> int:
    """Return a size if it is within bounds.

    Raises:
        ValueError: if not; names it and the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it takes an integer of {low} to {high}")
    return value
