import math

import numpy as np
import pytest
from playing import make_vec, play
from reference_games import cvrp as reference

from rlmask_envs import cvrp, drawing, routes

NODES = ((0.1, 0.2), (0.4, 0.6), (0.7, 1.0), (0.4, 0.2))  # the depot, and customers 1 to 3
DEMANDS = (0, 4, 5, 6)
CAPACITY = 9


def make_by_hand():
    """Return an env with the instance above."""
    envs = make_vec("CVRP", 1, num_customers=3, capacity=CAPACITY, num_threads=1)
    envs.reset(seed=0)
    (state,), options = envs.states, envs.options
    put(state, options, *np.transpose(NODES))
    return envs, state, options


def put(state, options, x, y):
    """Bring an instance to a state fresh from a reset."""
    state.x[:], state.y[:], state.demand[:] = x, y, DEMANDS
    state.nearest[:] = [cvrp.find_nearest(state, node, options) for node in range(4)]


def go(envs, state, options, node):
    """Drive to a node; return the reward, whether the episode ended, and the mask."""
    reward, terminated = cvrp.step(state, node, envs._batch.rngs[0], options)
    mask = np.zeros(4, np.int8)
    cvrp.valid_actions(state, mask, options)
    return reward, terminated, mask.tolist()


def expect(outcome, driven, terminated, mask):
    assert outcome == (pytest.approx(-driven), terminated, mask)


def test_an_episode_by_hand():
    envs, state, options = make_by_hand()
    # legs of 3-4-5 triangles: 0-1 and 1-2 are 0.5, 0-2 is 1, 0-3 is 0.3
    expect(go(envs, state, options, 1), 0.5, False, [1, 0, 1, 0])  # 5 left: 6 does not fit
    assert state.load == 5
    expect(go(envs, state, options, 2), 0.5, False, [1, 0, 0, 0])
    assert state.load == 0
    expect(go(envs, state, options, 0), 1.0, False, [0, 0, 0, 1])
    assert state.load == CAPACITY
    expect(go(envs, state, options, 3), 0.3, False, [1, 0, 0, 0])  # all served, not yet home
    expect(go(envs, state, options, 0), 0.3, True, [0, 0, 0, 0])
    assert state.visits[: state.num_visits].tolist() == [0, 1, 2, 0, 3, 0]


def test_going_home_early_fills_up():
    envs, state, options = make_by_hand()
    expect(go(envs, state, options, 3), 0.3, False, [1, 0, 0, 0])  # 3 left
    expect(go(envs, state, options, 0), 0.3, False, [0, 1, 1, 0])
    assert state.load == CAPACITY


def test_observation_by_hand():
    envs, state, options = make_by_hand()
    go(envs, state, options, 1)
    obs = np.zeros(39, np.float32)
    cvrp.observe(state, obs, options)
    # the depot is at (-0.3, -0.4) from the vehicle: ahead is (-0.6, -0.8), aside (0.8, -0.6)
    expected = [
        # there, ahead, aside, to the vehicle, to the depot, demand, valid, nearest, share of a trip
        [1, 0.5, 0, 0.5, 0, 0, 1, 0.3, 0],
        [0, 0, 0, 0, 0.5, 0, 0, 0, 0],  # served
        [1, -0.5, 0, 0.5, 1, 5 / 9, 1, math.hypot(0.3, 0.8), 5 / 9],
        [1, 0.32, 0.24, 0.4, 0.3, 6 / 9, 0, math.hypot(0.3, 0.8), 0.2],
    ]
    assert obs[:-3].reshape(4, 9) == pytest.approx(np.array(expected), abs=1e-6)
    assert obs[-3:] == pytest.approx([5 / 9, 0.5, 11 / 9])


def test_the_observation_is_the_same_from_any_side():
    """Turned and moved problems look the same, on the way and at the depot."""
    envs, state, options = make_by_hand()
    places = state.x + 1j * state.y
    for visits in ([], [1], [1, 0]):
        seen = []
        for turned in (places, 0.3 - 0.7j + places * np.exp(2j)):
            envs.reset()
            (state,) = envs.states
            put(state, options, turned.real, turned.imag)
            for node in visits:
                go(envs, state, options, node)
            obs = np.zeros(39, np.float32)
            cvrp.observe(state, obs, options)
            seen.append(obs)
        assert seen[0] == pytest.approx(seen[1], abs=1e-6)


def test_the_last_customer_is_far_from_any_other():
    envs, state, options = make_by_hand()
    for node in (1, 2, 0):
        go(envs, state, options, node)
    obs = np.zeros(39, np.float32)
    cvrp.observe(state, obs, options)
    assert obs[:-3].reshape(4, 9)[:, 7] == pytest.approx([0.3, 0, 0, cvrp.FAR])
    go(envs, state, options, 3)
    obs[:] = 0
    cvrp.observe(state, obs, options)
    assert obs[:-3].reshape(4, 9)[0, 7] == pytest.approx(cvrp.FAR)


def test_instances_are_drawn_uniformly():
    envs = make_vec("CVRP", 1000, num_threads=1)
    envs.reset(seed=0)
    states = envs.states
    assert (states.demand[:, 0] == 0).all()
    # 20,000 demands: 2,222 each, with a standard deviation of 44
    counts = np.bincount(states.demand[:, 1:].ravel(), minlength=11)
    assert counts[0] == counts[10] == 0
    assert (abs(counts[1:10] - 20000 / 9) < 5 * 44).all()
    for places in (states.x, states.y, states.x[:, :1], states.y[:, :1]):  # the depot's, too
        assert places.min() >= 0 and places.max() <= 1
        deviation = 5 / math.sqrt(places.size)
        assert places.mean() == pytest.approx(1 / 2, abs=deviation * math.sqrt(1 / 12))
        assert (places**2).mean() == pytest.approx(1 / 3, abs=deviation * math.sqrt(4 / 45))
    assert abs(np.corrcoef(states.x.ravel(), states.y.ravel())[0, 1]) < 5 / math.sqrt(21000)


def to_nearest(states):
    """Distances [envs, nodes] to the nearest other customer that is left, by trying all."""
    places = states.x + 1j * states.y
    away = abs(places[:, :, None] - places[:, None])
    away[:, range(away.shape[1]), range(away.shape[1])] = cvrp.FAR
    away[:, :, 0] = cvrp.FAR
    away = np.where(states.is_served[:, None] == 1, cvrp.FAR, away).min(2)
    return np.where(states.is_served == 1, 0, away)


@pytest.mark.parametrize("sizes", [{}, {"num_customers": 3, "capacity": CAPACITY}])
def test_random_play(sizes):
    envs = make_vec("CVRP", 8, num_threads=1, **sizes)
    states, options = envs.states, envs.options
    num_customers = options.num_nodes - 1
    returns, lengths, episodes, visits = np.zeros(8), np.zeros(8), 0, [[0] for _ in range(8)]
    envs.reset(seed=0)  # as `play` does
    before = states.copy()
    for action, obs, reward, terminated, truncated, info in play(envs, 150):
        assert not truncated.any() and envs.observation_space.contains(obs)
        nodes = obs[:, :-3].reshape(8, -1, 9)
        assert (nodes[..., 6] == info["action_mask"]).all()
        assert (nodes[..., 0] == 1 - states.is_served).all()
        assert nodes[..., 3] == pytest.approx(np.hypot(nodes[..., 1], nodes[..., 2]), abs=1e-6)
        assert nodes[..., 7] == pytest.approx(to_nearest(states), abs=1e-6)
        returns, lengths = returns + reward, lengths + 1
        for i, (state, row) in enumerate(zip(states, info["action_mask"], strict=True)):
            assert row.tolist() == reference.valid(state, options)
            visits[i].append(int(action[i]))
            if not terminated[i]:
                assert state.visits[: state.num_visits].tolist() == visits[i]
                continue
            episodes += 1
            coords = np.stack([before[i].x, before[i].y], 1)
            assert returns[i] == pytest.approx(-routes.length(coords, visits[i]))
            assert sorted(node for node in visits[i] if node) == [*range(1, options.num_nodes)]
            assert visits[i][-1] == 0 and num_customers < lengths[i] <= 2 * num_customers
            assert not info["final_info"]["action_mask"][i].any()
            assert state.num_visits == 1 and row.tolist() == [0] + [1] * num_customers
            visits[i] = [0]
        returns[terminated] = lengths[terminated] = 0
        before = states.copy()
    assert episodes > 30


def test_greed_is_read_off_the_observation():
    envs = make_vec("CVRP", 16, num_threads=1)
    obs, info = envs.reset(seed=1)
    expected = []
    for row in obs:
        coords, demands, capacity = cvrp.instance(row)
        visits = routes.nearest_neighbour(coords, demands, capacity)
        expected.append(-routes.length(coords, visits))
    returns, running = np.zeros(16), np.ones(16, bool)
    while running.any():
        scores = -obs[:, :-3].reshape(16, -1, 9)[..., 3]
        scores[:, 0] -= 9  # the depot last
        action = np.where(info["action_mask"], scores, -99).argmax(1)
        obs, reward, terminated, _, info = envs.step(action)
        returns += reward * running
        running &= ~terminated
    assert returns == pytest.approx(np.array(expected), abs=1e-5)


def test_instance_reads_what_the_episode_starts_with():
    envs, _, _ = make_by_hand()
    obs, _ = envs.reset()
    (state,) = envs.states
    coords, demands, capacity = cvrp.instance(obs[0], CAPACITY)
    seen, true = coords[:, 0] + 1j * coords[:, 1], state.x + 1j * state.y
    assert abs(seen - seen[:, None]) == pytest.approx(abs(true - true[:, None]), abs=1e-6)
    assert coords[0].tolist() == [0, 0]
    assert coords[1:].mean(0)[1] == pytest.approx(0, abs=1e-6)  # the mean is straight ahead
    assert demands.tolist() == state.demand.tolist() and capacity == CAPACITY
    with pytest.raises(ValueError, match="capacity has to be given for 3 customers"):
        cvrp.instance(obs[0])


def test_instance_knows_another_capacity():
    envs = make_vec("CVRP", 20, num_customers=10, num_threads=1)
    obs, _ = envs.reset(seed=0)
    for row, state in zip(obs, envs.states, strict=True):
        assert cvrp.instance(row)[1].tolist() == state.demand.tolist()
        # demands of d / 20, of which some d is odd, or 10 d / 20 above 9
        for capacity in (30, 200):
            with pytest.raises(ValueError, match=f"with a capacity of {capacity} a demand is"):
                cvrp.instance(row, capacity)


def test_instance_knows_what_no_episode_starts_with():
    envs, state, options = make_by_hand()
    for node in (1, 0):  # on its way; and back at the depot, full, with a customer served
        go(envs, state, options, node)
        obs = np.zeros(39, np.float32)
        cvrp.observe(state, obs, options)
        with pytest.raises(ValueError, match="observation that the episode starts with"):
            cvrp.instance(obs, CAPACITY)
    for obs in (np.zeros(38), np.zeros((2, 39)), np.zeros(3)):
        with pytest.raises(ValueError, match="no observation of one CVRP"):
            cvrp.instance(obs, CAPACITY)


def test_reset_sets_every_field():
    envs, state, options = make_by_hand()
    rng, rows = envs._batch.rngs[0], []
    for value in (7, 1):
        for name in state.dtype.names:
            state[name] = value
        rng[1] = 0
        cvrp.reset(state, rng, options)
        rows.append({name: np.array(state[name]).tolist() for name in state.dtype.names})
    assert rows[0] == rows[1]
    assert rows[0]["visits"] == [0] * 8 and rows[0]["load"] == CAPACITY


def test_pictures_and_text():
    envs, state, options = make_by_hand()
    for node in (1, 0, 2):
        go(envs, state, options, node)
    picture = cvrp.image(state, options)
    assert picture.shape == (14 * 32, 13 * 32, 3) and picture.dtype == np.uint8
    # the unit square is 12 cells of 32 pixels with its upper left corner at (1.5, 0.5)
    places = [(round(32 * (1.5 + 12 * (1 - y))), round(32 * (0.5 + 12 * x))) for x, y in NODES]
    colors = [tuple(picture[place]) for place in places]
    assert colors == [drawing.WHITE, drawing.RED, drawing.BLUE, drawing.GREY]
    assert cvrp.text(state, options).split("\n") == [
        "at 2, load 4 of 9, driven 2.000",  # 0.5 there and back, and 1
        "visits 0 1 0 2",
        "customer 3 at (0.40, 0.20), demand 6",
    ]


@pytest.mark.parametrize(("num_customers", "capacity"), [(10, 20), (20, 30), (50, 40), (100, 50)])
def test_published_capacities(num_customers, capacity):
    # Kool et al. 2019 after Nazari et al. 2018
    assert cvrp.setup(num_customers).options["capacity"] == capacity
    assert cvrp.setup(num_customers, 77).options["capacity"] == 77


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_customers": 2}, "num_customers is 2; it takes an integer of 3 to 200"),
        ({"num_customers": 201}, "num_customers is 201; it takes an integer of 3 to 200"),
        ({"capacity": 8}, "capacity is 8; it takes an integer of 9 to 10000"),
        ({"capacity": 30.0}, r"capacity is 30\.0; it takes an integer"),
        ({"num_customers": 30}, r"capacity has to be given for 30 .* 10 \(20\), 20 \(30\)"),
    ],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        cvrp.setup(**sizes)
