"""Capacitated vehicle routing: serve all customers on round trips from a depot, and drive little.

## Description
A depot and customers lie in the unit square; each customer has a demand. A vehicle of limited
capacity leaves the depot full and goes from customer to customer; back at the depot it is filled
up again. Every customer is served once, in one visit.

The instances are random, as in Nazari et al. 2018 (arXiv:1802.04240) and Kool et al. 2019
(arXiv:1803.08475): all places uniform, demands uniform on 1 to 9, and the capacity by the number of
customers. `rlmask_envs.routes` has two heuristics to compare with; `instance` reads from an
observation what they need.

## Action Space
`Discrete(num_customers + 1)`: 0 drives to the depot, i to customer i.

## Action mask
Valid are the customers not yet served whose demand the vehicle still holds, and the depot unless
the vehicle is there. At least one always is.

## Observation Space
`Box(-1.5, high, (9 * (num_customers + 1) + 3,), float32)`: nine features of each node, the depot
first: 1 if it is the depot or has yet to be served; x and y as seen from the vehicle, which looks
at the depot (at the depot, at the mean of the customers to be served); the distance to the vehicle;
the distance to the depot; the demand over the capacity; 1 if it is valid to go there; the distance
to the nearest other customer to be served (1.5 without any); the demand over the capacity times the
distance to the depot. Once it is served, all of them are 0 but its place and its distances to the
vehicle and the depot. At the end three numbers: what the vehicle holds over the capacity, its
distance to the depot, and what is yet to be delivered over the capacity. `high` is 1.5, or the most
that can be asked for over the capacity, if that is more.

## Rewards
Minus the Euclidean distance driven, so the return is minus the length of all routes.

## Starting State
A random instance, the vehicle full at the depot.

## Episode End
Terminated: all customers are served and the vehicle is back at the depot.

## Arguments
`num_customers` (3 to 200), 20; `capacity` (9 to 10,000), by default 20, 30, 40 or 50 for 10, 20, 50
or 100 customers as published, and required for any other number.
"""

import math
from itertools import pairwise

import numpy as np
from gymnasium import spaces
from numba import njit

from rlmask_envs import drawing
from rlmask_envs.rng import random_integer, random_unit
from rlmask_envs.rules import Setup
from rlmask_envs.settings import check_size

DEPOT = 0
MAX_DEMAND = 9
CAPACITIES = {10: 20, 20: 30, 50: 40, 100: 50}  # by number of customers
NUM_FEATURES = 9  # of a node
NUM_COMMON = 3  # behind those of the nodes
FAR = 1.5  # more than any distance

SIDE = 12  # of the unit square in a picture, in cells
ROUTE_COLORS = (
    *(drawing.RED, drawing.BLUE, drawing.GREEN, drawing.ORANGE),
    *(drawing.PURPLE, drawing.TEAL, drawing.PINK, drawing.YELLOW),
)


def setup(num_customers: int = 20, capacity: int | None = None) -> Setup:
    """Return what depends on the number of customers and the capacity."""
    num_customers = check_size("num_customers", num_customers, 3, 200)
    num_nodes = num_customers + 1
    options = {"num_nodes": num_nodes, "capacity": check_capacity(num_customers, capacity)}
    fields = [
        ("x", np.float64, (num_nodes,)),
        ("y", np.float64, (num_nodes,)),
        ("demand", np.int32, (num_nodes,)),  # 0 for the depot
        ("is_served", np.uint8, (num_nodes,)),
        ("num_left", np.int32),  # customers not yet served
        ("nearest", np.int32, (num_nodes,)),  # other customer to be served; 0: there is none
        ("place", np.int32),  # of the vehicle
        ("load", np.int32),  # what it holds
        ("visits", np.int16, (2 * num_nodes,)),  # all nodes so far; a depot for each customer
        ("num_visits", np.int32),
    ]
    high = max(FAR, num_customers * MAX_DEMAND / options["capacity"])
    size = NUM_FEATURES * num_nodes + NUM_COMMON
    space = spaces.Box(-FAR, high, (size,), np.float32)
    return Setup(np.dtype(fields), options, space, num_nodes)


def check_capacity(num_customers: int, capacity: int | None) -> int:
    """Return the capacity, the published one if it is None.

    Raises:
        ValueError: if it is too small for some customer, or None where nothing is published.
    """
    if capacity is not None:
        return check_size("capacity", capacity, MAX_DEMAND, 10_000)
    if num_customers not in CAPACITIES:
        raise ValueError(
            f"capacity has to be given for {num_customers} customers; there are published ones for "
            + ", ".join(f"{number} ({standard})" for number, standard in CAPACITIES.items())
        )
    return CAPACITIES[num_customers]


def instance(obs, capacity: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    """Return coordinates [n + 1, 2], demands [n + 1] and capacity, for `rlmask_envs.routes`.

    Args:
        obs: the observation that an episode starts with; coordinates are as seen from the depot,
            and turned as there.
        capacity: as for `setup`.

    Raises:
        ValueError: if the observation is another, or the capacity is not the one it was made with.
    """
    obs = np.asarray(obs, np.float64)
    num_nodes, rest = divmod(obs.size - NUM_COMMON, NUM_FEATURES)
    if obs.ndim != 1 or rest or num_nodes < 2:
        raise ValueError(f"an array of shape {obs.shape} is no observation of one CVRP")
    nodes, common = obs[:-NUM_COMMON].reshape(-1, NUM_FEATURES), obs[-NUM_COMMON:]
    capacity = check_capacity(num_nodes - 1, capacity)
    if (nodes[:, 0] != 1).any() or nodes[DEPOT, 1:7].any() or (common[:2] != (1, 0)).any():
        raise ValueError(
            "customers are served already, or the vehicle is not full at the depot: give the "
            "observation that the episode starts with"
        )
    demands = nodes[:, 5] * capacity
    whole = np.rint(demands).astype(int)
    off = (abs(demands - whole) > 1e-3) | (whole < 1) | (whole > MAX_DEMAND)
    if off[1:].any():
        raise ValueError(
            f"with a capacity of {capacity} a demand is {demands[1:][off[1:]][0]:.3f}, no whole "
            f"number of 1 to {MAX_DEMAND}: give the capacity that the env was made with"
        )
    return nodes[:, 1:3], whole, capacity


@njit
def reset(state, rng, options):
    """Draw an instance."""
    for node in range(options.num_nodes):
        state.x[node] = random_unit(rng)
        state.y[node] = random_unit(rng)
        state.demand[node] = 0 if node == DEPOT else 1 + random_integer(rng, MAX_DEMAND)
        state.is_served[node] = 0
    for node in range(options.num_nodes):
        state.nearest[node] = find_nearest(state, node, options)
    for visit in range(2 * options.num_nodes):
        state.visits[visit] = DEPOT
    state.num_visits = 1
    state.num_left = options.num_nodes - 1
    state.place = DEPOT
    state.load = options.capacity


@njit
def distance(state, node, other):
    """Return the distance between two nodes."""
    x, y = state.x[node] - state.x[other], state.y[node] - state.y[other]
    return math.sqrt(x * x + y * y)


@njit
def find_nearest(state, node, options):
    """Return the nearest other customer to be served, 0 if there is none."""
    nearest, least = 0, FAR
    for other in range(1, options.num_nodes):
        if other != node and state.is_served[other] == 0:
            away = distance(state, node, other)
            if away < least:
                nearest, least = other, away
    return nearest


@njit
def is_valid(state, node):
    """Return whether the vehicle may go to a node."""
    if node == DEPOT:
        return state.place != DEPOT
    return state.is_served[node] == 0 and state.demand[node] <= state.load


@njit
def step(state, action, rng, options):
    """Drive to a node, and serve it or fill up."""
    driven = distance(state, state.place, action)
    state.place = action
    state.visits[state.num_visits] = action
    state.num_visits += 1
    if action == DEPOT:
        state.load = options.capacity
        return -driven, state.num_left == 0
    state.load -= state.demand[action]
    state.is_served[action] = 1
    state.num_left -= 1
    for node in range(options.num_nodes):
        if state.nearest[node] == action and state.is_served[node] == 0:
            state.nearest[node] = find_nearest(state, node, options)
    return -driven, False


@njit
def heading(state, options):
    """Return the unit vector to the depot, and at the depot to the mean of what is to be served."""
    x = state.x[DEPOT] - state.x[state.place]
    y = state.y[DEPOT] - state.y[state.place]
    if state.place == DEPOT:
        for node in range(1, options.num_nodes):
            if state.is_served[node] == 0:
                x += state.x[node] - state.x[DEPOT]
                y += state.y[node] - state.y[DEPOT]
    size = math.sqrt(x * x + y * y)
    if size == 0:
        return 1.0, 0.0
    return x / size, y / size


@njit
def observe(state, obs, options):
    """Write the features."""
    ahead, aside = heading(state, options)
    total = 0.0
    for node in range(options.num_nodes):
        first = NUM_FEATURES * node
        x, y = state.x[node] - state.x[state.place], state.y[node] - state.y[state.place]
        to_depot = distance(state, node, DEPOT)
        obs[first + 1] = ahead * x + aside * y
        obs[first + 2] = ahead * y - aside * x
        obs[first + 3] = distance(state, node, state.place)
        obs[first + 4] = to_depot
        if state.is_served[node] == 0:
            demand = state.demand[node] / options.capacity
            total += demand
            obs[first] = 1.0
            obs[first + 5] = demand
            nearest = state.nearest[node]
            obs[first + 7] = distance(state, node, nearest) if nearest else FAR
            obs[first + 8] = demand * to_depot
        if is_valid(state, node):
            obs[first + 6] = 1.0
    common = NUM_FEATURES * options.num_nodes
    obs[common] = state.load / options.capacity
    obs[common + 1] = distance(state, state.place, DEPOT)
    obs[common + 2] = total


@njit
def valid_actions(state, mask, options):
    """Allow customers that are left and not too large, and the depot from elsewhere."""
    for node in range(options.num_nodes):
        mask[node] = is_valid(state, node)


def image(state, options):
    """Return a picture: a colour a route, a dot as large as the demand; grey is not yet served."""
    picture = drawing.blank(SIDE + 2, SIDE + 1)
    drawing.rectangle(picture, 1.25, 0.25, SIDE + 0.5, SIDE + 0.5, drawing.WHITE)
    draw_gauge(picture, state, options)
    colors = {}
    for start, end, route in legs(state):
        colors[end] = ROUTE_COLORS[route % len(ROUTE_COLORS)]
        width = 0.05 if DEPOT in (start, end) else 0.1
        drawing.line(picture, spot(state, start), spot(state, end), colors[end], width)
    for node in range(1, options.num_nodes):
        radius = 0.1 + 0.02 * int(state.demand[node])
        if node == state.place:
            drawing.dot(picture, *spot(state, node), drawing.INK, radius + 0.16)
            drawing.dot(picture, *spot(state, node), drawing.WHITE, radius + 0.08)
        drawing.dot(picture, *spot(state, node), colors.get(node, drawing.GREY), radius)
    y, x = spot(state, DEPOT)
    drawing.rectangle(picture, y - 0.28, x - 0.28, 0.56, 0.56, drawing.INK)
    if state.place != DEPOT:
        drawing.rectangle(picture, y - 0.18, x - 0.18, 0.36, 0.36, drawing.WHITE)
    return picture


def legs(state):
    """Yield (from, to, number of the route) for everything driven so far."""
    route = -1
    for start, end in pairwise(int(node) for node in state.visits[: state.num_visits]):
        route += start == DEPOT
        yield start, end, route


def spot(state, node):
    """Return where a node is in a picture, (y, x); north is up."""
    return 1.5 + SIDE * (1 - float(state.y[node])), 0.5 + SIDE * float(state.x[node])


def driven(state):
    """Return the length of all routes so far."""
    return sum(distance(state, start, end) for start, end, _ in legs(state))


def draw_gauge(picture, state, options):
    """Draw what the vehicle holds, and write how far it has driven."""
    width = SIDE / 2 - 0.25
    drawing.rectangle(picture, 0.3, 0.25, 0.7, width, drawing.GRID)
    filled = width * int(state.load) / options.capacity
    drawing.rectangle(picture, 0.3, 0.25, 0.7, filled, drawing.YELLOW)
    load = f"load {state.load}/{options.capacity}"
    drawing.write(picture, 0.65, 0.25 + width / 2, load, drawing.INK, 0.5)
    drawing.write(picture, 0.65, 0.75 * SIDE + 0.5, f"length {driven(state):.3f}", drawing.INK, 0.5)


def text(state, options):
    """Return lines of text: the vehicle, its visits, and the customers that are left."""
    visits = " ".join(str(node) for node in state.visits[: state.num_visits])
    lines = [
        f"at {state.place}, load {state.load} of {options.capacity}, driven {driven(state):.3f}",
        f"visits {visits}",
    ]
    for node in range(1, options.num_nodes):
        if not state.is_served[node]:
            place = f"({state.x[node]:.2f}, {state.y[node]:.2f})"
            lines.append(f"customer {node} at {place}, demand {state.demand[node]}")
    return "\n".join(lines)
