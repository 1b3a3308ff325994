"""Sokoban's valid actions, from the places of walls and boxes as sets."""


def places(field):
    """Return the (y, x) where a field of the state is not 0; its rows are of ten cells."""
    return {divmod(cell, 10) for cell, is_there in enumerate(field) if is_there}


def valid(state, options):
    """Return for each action whether the rules allow it."""
    boxes = places(state.boxes)
    blocked = boxes | places(state.walls)
    y, x = divmod(int(state.worker), 10)
    allowed = []
    for down, right in ((-1, 0), (0, 1), (1, 0), (0, -1)):
        there, behind = (y + down, x + right), (y + 2 * down, x + 2 * right)
        allowed.append(there not in blocked or (there in boxes and behind not in blocked))
    return [*allowed, False, False]
