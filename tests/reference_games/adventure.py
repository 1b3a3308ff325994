"""Adventure's valid actions: each of the 120 asked by itself, in words of the rules."""

from itertools import pairwise


def valid(state, options):
    """Return for each action whether the rules allow it."""
    places = [int(place) for place in state.places]
    here, held = int(state.room), 10
    quest = [int(thing) for thing in options.quest][: int(options.num_uses) + 1]
    uses = list(pairwise(quest))
    due = uses[int(state.done) : int(state.done) + 1]
    go = [bool(options.is_next[here][room]) for room in range(10)]
    take = [places[thing] == here for thing in range(10)]
    use = [
        (a, b) in due and places[a] == held and (places[b] == held or places[b] == here)
        for a in range(10)
        for b in range(10)
    ]
    return go + take + use
