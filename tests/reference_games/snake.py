"""Snake's valid actions, read off the state without a compiled rule."""

import numpy as np


def valid(state, options):
    """Return for each action whether the rules allow it."""
    entered, y, x = state.entered, int(state.y), int(state.x)
    neck = np.argwhere(entered == state.moves - 1).tolist()
    ahead = [[y - 1, x], [y, x + 1], [y + 1, x], [y, x - 1]]
    on_board = [0 <= row < options.height and 0 <= column < options.width for row, column in ahead]
    moves = zip(on_board, ahead, strict=True)
    return [on and place not in neck for on, place in moves] + [False, False]
