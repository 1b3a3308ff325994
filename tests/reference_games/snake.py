"""Snake's valid actions, read off the state without a compiled rule."""


def valid(state, options):
    """Return for each action whether the rules allow it."""
    neck = [
        (y, x)
        for y in range(options.height)
        for x in range(options.width)
        if state.entered[y, x] == state.moves - 1
    ]
    ahead = [
        (state.y - 1, state.x),
        (state.y, state.x + 1),
        (state.y + 1, state.x),
        (state.y, state.x - 1),
    ]
    on_board = [0 <= y < options.height and 0 <= x < options.width for y, x in ahead]
    moves = zip(on_board, ahead, strict=True)
    return [on and place not in neck for on, place in moves] + [False, False]
