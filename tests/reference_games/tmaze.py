"""TMaze's valid actions: two ways in a corridor, one at its start, doors at its end."""


def valid(state, options):
    """Return for each action whether the rules allow it."""
    doors = int(options.num_doors)
    if int(state.place) < int(state.length):
        return [True, int(state.place) != 0] + [False] * doors
    return [False, False] + [True] * doors
