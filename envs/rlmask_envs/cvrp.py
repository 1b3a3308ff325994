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
`Box(-1.5, 1.5, (7 * (num_customers + 1) + 1,), float32)`: seven features of each node, the depot
first: 1 if it is the depot or has yet to be served, x and y as seen from the vehicle, the distance
to the vehicle, the distance to the depot, the demand over the capacity (0 once served), and 1 if it
is valid to go there; at the end what the vehicle holds, over the capacity.

## Rewards
Minus the Euclidean distance driven, so the return is minus the length of all routes.

## Starting State
A random instance, the vehicle full at the depot.

## Episode End
Terminated: all customers are served and the vehicle is back at the depot.

## Arguments
`num_customers` (2 to 200), 20; `capacity` (9 to 10,000), by default 20, 30, 40 or 50 for 10, 20, 50
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
NUM_FEATURES = 7  # of a node

SIDE = 12  # of the unit square in a picture, in cells
ROUTE_COLORS = (
    *(drawing.RED, drawing.BLUE, drawing.GREEN, drawing.ORANGE),
    *(drawing.PURPLE, drawing.TEAL, drawing.PINK, drawing.YELLOW),
)


def setup(num_customers: int = 20, capacity: int | None = None) -> Setup:
    """Return what depends on the number of customers and the capacity."""
    num_customers = check_size("num_customers", num_customers, 2, 200)
    num_nodes = num_customers + 1
    options = {"num_nodes": num_nodes, "capacity": check_capacity(num_customers, capacity)}
    fields = [
        ("x", np.float64, (num_nodes,)),
        ("y", np.float64, (num_nodes,)),
        ("demand", np.int32, (num_nodes,)),  # 0 for the depot
        ("is_served", np.uint8, (num_nodes,)),
        ("num_left", np.int32),  # customers not yet served
        ("place", np.int32),  # of the vehicle
        ("load", np.int32),  # what it holds
        ("visits", np.int16, (2 * num_nodes,)),  # all nodes so far; a depot for each customer
        ("num_visits", np.int32),
    ]
    space = spaces.Box(-1.5, 1.5, (NUM_FEATURES * num_nodes + 1,), np.float32)
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
        obs: the observation that an episode starts with; coordinates are as seen from the depot.
        capacity: as for `setup`.
    """
    nodes = np.asarray(obs, np.float64)[:-1].reshape(-1, NUM_FEATURES)
    capacity = check_capacity(len(nodes) - 1, capacity)
    return nodes[:, 1:3], np.rint(nodes[:, 5] * capacity).astype(int), capacity


@njit
def reset(state, rng, options):
    """Draw an instance."""
    for node in range(options.num_nodes):
        state.x[node] = random_unit(rng)
        state.y[node] = random_unit(rng)
        state.demand[node] = 0 if node == DEPOT else 1 + random_integer(rng, MAX_DEMAND)
        state.is_served[node] = 0
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
    return -driven, False


@njit
def observe(state, obs, options):
    """Write the features."""
    for node in range(options.num_nodes):
        first = NUM_FEATURES * node
        obs[first + 1] = state.x[node] - state.x[state.place]
        obs[first + 2] = state.y[node] - state.y[state.place]
        obs[first + 3] = distance(state, node, state.place)
        obs[first + 4] = distance(state, node, DEPOT)
        if state.is_served[node] == 0:
            obs[first] = 1.0
            obs[first + 5] = state.demand[node] / options.capacity
        if is_valid(state, node):
            obs[first + 6] = 1.0
    obs[NUM_FEATURES * options.num_nodes] = state.load / options.capacity


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
