"""Othello's valid actions, found by walking from every free square in every direction."""

WAYS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def squares(bits):
    """Return a set of squares (y, x) from a number with a bit for each."""
    return {divmod(square, 8) for square in range(64) if int(bits) >> square & 1}


def captured(own, other, place):
    """Return the stones of `other` that turn if `own` gets a stone in a free place."""
    stones = set()
    for dy, dx in WAYS:
        y, x = place[0] + dy, place[1] + dx
        walked = set()
        while (y, x) in other:
            walked.add((y, x))
            y, x = y + dy, x + dx
        if (y, x) in own:
            stones |= walked
    return stones


def moves(own, other):
    """Return for each square whether `own` may place a stone there."""
    free = [divmod(square, 8) not in own | other for square in range(64)]
    return [free[i] and bool(captured(own, other, divmod(i, 8))) for i in range(64)]


def valid(state, options):
    """Return for each action whether the rules allow it."""
    stones = [squares(bits) for bits in state.stones]
    own, other = stones[state.player], stones[1 - state.player]
    places = moves(own, other)
    must_pass = not any(places) and any(moves(other, own))
    return [*places, must_pass]
