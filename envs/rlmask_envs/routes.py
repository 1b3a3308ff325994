"""Two classical heuristics for capacitated vehicle routing, to compare policies with.

Coordinates are an array [n + 1, 2], demands one of n + 1 whole numbers; node 0 is the depot. Routes
are one list of nodes in the order of visit, which begins and ends with a 0 and has one between any
two routes, as `[0, 3, 1, 0, 2, 0]`. `rlmask_envs.cvrp.instance` reads all this from an observation.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

DEPOT = 0


def length(coords: Any, visits: Sequence[int]) -> float:
    """Return the length of all routes."""
    return sum(math.dist(coords[a], coords[b]) for a, b in pairwise(visits))


def nearest_neighbour(coords: Any, demands: Any, capacity: int) -> list[int]:
    """Return routes that go on to the nearest customer whose demand fits, else to the depot.

    Raises:
        ValueError: if a demand is above the capacity, or there is not one for each place.
    """
    check_demands(coords, demands, capacity)
    visits, left, load = [DEPOT], list(range(1, len(coords))), capacity
    while left:
        here = coords[visits[-1]]
        fitting = [node for node in left if demands[node] <= load]
        if fitting:
            nearest = min(fitting, key=lambda node: math.dist(here, coords[node]))
            left.remove(nearest)
            load -= demands[nearest]
            visits.append(nearest)
        else:
            load = capacity
            visits.append(DEPOT)
    return [*visits, DEPOT]


def savings(coords: Any, demands: Any, capacity: int) -> list[int]:
    """Return routes by the method of savings (its parallel version).

    At first every customer has a route of its own. To link a customer i at the end of a route with
    a customer j at the end of another saves d(0, i) + d(0, j) - d(i, j). Links are made in the
    order of what they save, where the demand of both routes fits into one vehicle.

    Reference: Clarke and Wright 1964, doi:10.1287/opre.12.4.568.

    Raises:
        ValueError: if a demand is above the capacity, or there is not one for each place.
    """
    check_demands(coords, demands, capacity)
    customers = range(1, len(coords))
    home = [math.dist(coords[DEPOT], place) for place in coords]
    links = [
        (home[i] + home[j] - math.dist(coords[i], coords[j]), i, j)
        for i in customers
        for j in range(1, i)
    ]
    route_of = {node: [node] for node in customers}  # one list for all customers of a route
    for _, i, j in sorted(links, reverse=True):
        first, second = route_of[i], route_of[j]
        at_ends = i in (first[0], first[-1]) and j in (second[0], second[-1])
        if first is second or not at_ends:
            continue
        if first[-1] != i:
            first = first[::-1]
        if second[0] != j:
            second = second[::-1]
        joined = first + second
        if sum(demands[node] for node in joined) <= capacity:
            route_of.update(dict.fromkeys(joined, joined))
    visits = [DEPOT]
    for node in customers:
        if route_of[node][0] == node:
            visits += [*route_of[node], DEPOT]
    return visits


def check_demands(coords: Any, demands: Any, capacity: int) -> None:
    """Check that every customer can be served.

    Raises:
        ValueError: if a demand is above the capacity, or there is not one for each place.
    """
    if len(demands) != len(coords):
        raise ValueError(
            f"{len(demands)} demands for {len(coords)} places: give one each, 0 for the depot"
        )
    if max(demands) > capacity:
        raise ValueError(f"a demand is {max(demands)}, above the capacity of {capacity}")
