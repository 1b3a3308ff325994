"""What games of two players share: the agent, an opponent or none, and who moves first."""

from numba import njit

from rlmask_envs.rng import random_integer
from rlmask_envs.settings import check_choice

AGENT, OPPONENT = range(2)  # without an opponent: who moves first, and who moves second
OPPONENTS = ("random", "heuristic", "none")
RANDOM, HEURISTIC, NONE = range(3)
SEATS = ("first", "second", "random")
FIRST, SECOND, EITHER = range(3)


def check_players(opponent: str, seat: str) -> dict[str, int]:
    """Return the options `opponent` and `seat`.

    Raises:
        ValueError: if one is unknown, or a seat is given without an opponent.
    """
    options = {
        "opponent": check_choice("opponent", opponent, OPPONENTS),
        "seat": check_choice("seat", seat, SEATS),
    }
    if options["opponent"] == NONE:
        if options["seat"] != EITHER:
            raise ValueError(f"seat is {seat!r}; without an opponent there is none to choose")
        options["seat"] = FIRST
    return options


@njit
def agent_begins(rng, options):
    """Return whether the agent moves first; draw it if the seat is random."""
    if options.seat == EITHER:
        return random_integer(rng, 2) == 0
    return options.seat == FIRST
