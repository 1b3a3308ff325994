"""Connect Four's valid actions: a stone needs a free cell in its column."""

EMPTY = 2


def valid(state, options):
    """Return for each column whether one may drop a stone into it."""
    return [EMPTY in state.board[:, x].tolist() for x in range(options.width)]
