import math
from itertools import combinations, permutations

import numpy as np
import pytest

from rlmask_envs.routes import length, nearest_neighbour, savings


def instance(seed, num_customers):
    rng = np.random.default_rng(seed)
    demands = [0, *rng.integers(1, 10, num_customers).tolist()]
    return rng.random((num_customers + 1, 2)), demands


def is_feasible(visits, demands, capacity):
    load = most = 0
    for node in visits:
        load = load + demands[node] if node else 0
        most = max(most, load)
    served = sorted(node for node in visits if node)
    return served == [*range(1, len(demands))] and visits[0] == visits[-1] == 0 and most <= capacity


def all_routes(num_customers):
    """Yield every order of the customers with depots at every set of places in between."""
    for order in permutations(range(1, num_customers + 1)):
        for count in range(num_customers):
            for cuts in combinations(range(1, num_customers), count):
                visits = [0]
                for index, node in enumerate(order):
                    visits += [0, node] if index in cuts else [node]
                yield [*visits, 0]


def shortest(coords, demands, capacity):
    return min(
        length(coords, visits)
        for visits in all_routes(len(demands) - 1)
        if is_feasible(visits, demands, capacity)
    )


def test_length():
    coords = [(0, 0), (3, 4), (3, 0)]
    assert length(coords, [0, 1, 2, 0]) == 5 + 4 + 3
    assert length(coords, [0, 1, 0, 2, 0]) == 5 + 5 + 3 + 3


def test_nearest_neighbour_passes_over_what_does_not_fit():
    coords = [(0, 0), (1, 0), (2, 0), (4, 0), (-3, 0)]
    # 1 is nearest, and leaves 5: not enough for 2, but for 3, which leaves 1; then 2 and 4
    demands = [0, 4, 6, 4, 3]
    assert nearest_neighbour(coords, demands, 9) == [0, 1, 3, 0, 2, 4, 0]
    assert nearest_neighbour(coords, demands, 17) == [0, 1, 2, 3, 4, 0]
    assert nearest_neighbour(coords, demands, 6) == [0, 1, 0, 2, 0, 4, 0, 3, 0]


def test_savings_joins_what_saves_most():
    coords = [(0, 0), (4, 3), (4, -3), (-5, 0)]
    # all are 5 away from the depot; 1-2 saves 5 + 5 - 6, the links with 3 save 10 - sqrt(90)
    apart = savings(coords, [0, 5, 5, 5], 9)
    assert apart == [0, 1, 0, 2, 0, 3, 0]
    assert length(coords, savings(coords, [0, 5, 5, 5], 10)) == 5 + 6 + 5 + 10
    whole = length(coords, savings(coords, [0, 5, 5, 5], 15))
    assert whole == pytest.approx(5 + 6 + math.sqrt(90) + 5)


@pytest.mark.parametrize("side", [1, -1])
def test_savings_links_only_the_ends_of_routes(side):
    coords = [(0, 0), (-1, 10), (0, 10), (1, 10), (side * 0.2, 8)]
    # 1-2-3 is made first; with 4, 2 in the middle of it would save most, but the end that is
    # nearer to 4 gets the link
    visits = savings(coords, [0, 1, 1, 1, 1], 9)
    order = visits[1:-1] if visits[1] == 4 else visits[-2:0:-1]
    assert order == ([4, 3, 2, 1] if side == 1 else [4, 1, 2, 3])


def test_savings_do_not_depend_on_the_numbers_of_customers():
    # far from the depot and in line: each is linked with its neighbours, the nearest two first
    for places in permutations([(0, 100), (1.2, 100), (2.2, 100), (3.6, 100)]):
        visits = savings([(0, 0), *places], [0, 1, 1, 1, 1], 9)
        order = [places[node - 1] for node in visits[1:-1]]
        assert sorted(order) in (order, order[::-1])


@pytest.mark.parametrize("capacity", [9, 12, 20])
def test_no_better_than_the_best_of_all_routes(capacity):
    ratios = []
    for seed in range(6):
        coords, demands = instance(seed, 5)
        best = shortest(coords, demands, capacity)
        lengths = []
        for method in (nearest_neighbour, savings):
            visits = method(coords, demands, capacity)
            assert is_feasible(visits, demands, capacity)
            lengths.append(length(coords, visits))
        ratios.append(np.divide(lengths, best))
    assert np.min(ratios) > 1 - 1e-9
    assert np.mean(ratios, axis=0)[1] < 1.05


def test_savings_are_worth_it():
    lengths = []
    for seed in range(40):
        coords, demands = instance(seed, 20)
        both = [method(coords, demands, 30) for method in (nearest_neighbour, savings)]
        assert all(is_feasible(visits, demands, 30) for visits in both)
        lengths.append([length(coords, visits) for visits in both])
    assert np.mean(lengths, axis=0)[1] < 0.9 * np.mean(lengths, axis=0)[0]


@pytest.mark.parametrize("method", [nearest_neighbour, savings])
def test_demands_are_checked(method):
    with pytest.raises(ValueError, match="a demand is 9, above the capacity of 8"):
        method([(0, 0), (1, 0), (0, 1)], [0, 9, 1], 8)
    for demands in ([0, 1], [0, 1, 1, 1]):
        with pytest.raises(ValueError, match=f"{len(demands)} demands for 3 places: give one each"):
            method([(0, 0), (1, 0), (0, 1)], demands, 8)
