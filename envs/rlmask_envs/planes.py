"""Observations like pictures: planes of cells, 255 where something is there and 0 elsewhere.

Whatever divides images by 255 sees 1 and 0.
"""

import numpy as np
from gymnasium import spaces

ON = np.uint8(255)


def plane_space(height: int, width: int, num_planes: int) -> spaces.Box:
    """Return the observation space [height, width, num_planes] uint8."""
    return spaces.Box(0, 255, (height, width, num_planes), np.uint8)
