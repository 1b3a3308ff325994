"""Snake's valid actions, from its cells in the order in which the head came to them."""


def body(state, options):
    """Return the cells (y, x) of the snake, from the tail to the head."""
    cells = [(y, x) for y in range(options.height) for x in range(options.width)]
    cells.sort(key=lambda cell: int(state.entered[cell]))
    return cells[-int(state.length) :]


def valid(state, options):
    """Return for each action whether the rules allow it."""
    *_, neck, (y, x) = body(state, options)
    ahead = [(y - 1, x), (y, x + 1), (y + 1, x), (y, x - 1)]
    on_board = [0 <= row < options.height and 0 <= column < options.width for row, column in ahead]
    moves = zip(on_board, ahead, strict=True)
    return [on and place != neck for on, place in moves] + [False, False]
