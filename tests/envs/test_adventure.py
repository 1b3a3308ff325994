from itertools import pairwise, permutations

import gymnasium as gym
import numpy as np
import pytest
from playing import make_vec, play

from rlmask_envs.adventure import (
    FIRST_DONE,
    FIRST_HERE,
    FIRST_TAKE,
    FIRST_USE,
    HELD,
    STEP_COST,
    make_world,
)

WORLDS = [0, 1, 2, 2**31 - 1]


def path(is_next, start, goal):
    """The rooms of a shortest way, by breadth-first search, without the start."""
    ways, found = [[start]], {start}
    for way in ways:
        if way[-1] == goal:
            return way[1:]
        for room in np.flatnonzero(is_next[way[-1]]).tolist():
            if room not in found:
                found.add(room)
                ways.append([*way, room])
    raise AssertionError("the rooms are not connected")


def plan(state, is_next, quest):
    """The actions of a shortest solution: collect in the best order, then use."""
    best = None
    for order in permutations(quest):
        actions, room = [], int(state.room)
        for thing in order:
            way = path(is_next, room, int(state.places[thing]))
            actions += way
            room = int(state.places[thing])
            if thing != quest[-1] or order[-1] != thing:  # the last one may lie where all are used
                actions.append(FIRST_TAKE + thing)
        actions += [FIRST_USE + 10 * a + b for a, b in pairwise(quest)]
        if best is None or len(actions) < len(best):
            best = actions
    return best


@pytest.mark.parametrize("world", WORLDS)
def test_rooms_are_a_ring_with_three_shortcuts(world):
    ring, is_next, quest = make_world(world)
    assert sorted(ring) == sorted(quest) == list(range(10))
    np.testing.assert_array_equal(is_next, is_next.T)
    assert not is_next.diagonal().any() and is_next.sum() == 2 * (10 + 3)
    assert is_next[ring, np.roll(ring, -1)].all()
    again = make_world(world)
    assert all(np.array_equal(*pair) for pair in zip(again, (ring, is_next, quest), strict=True))


def test_worlds_differ():
    quests = {tuple(make_world(world)[2].tolist()) for world in range(20)}
    rooms = {make_world(world)[1].tobytes() for world in range(20)}
    assert len(quests) == len(rooms) == 20


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("num_uses", [1, 3, 4])
def test_the_quest_in_order_is_solved_and_pays_at_its_end(world, num_uses):
    _, is_next, quest = make_world(world)
    quest = quest[: num_uses + 1].tolist()
    env = gym.make("rlmask/Adventure-v0", world=world, num_uses=num_uses)
    for seed in range(5):
        env.reset(seed=seed)
        *before, last = plan(env.unwrapped.state, is_next, quest)
        for action in before:
            _, reward, terminated, _, _ = env.step(action)
            assert reward == pytest.approx(-STEP_COST) and not terminated
        _, reward, terminated, _, _ = env.step(last)
        assert reward == pytest.approx(1 - STEP_COST) and terminated


def test_only_the_next_use_is_valid_and_only_with_both_things_at_hand():
    env = gym.make("rlmask/Adventure-v0").unwrapped
    first, second, third = make_world(0)[2][:3].tolist()
    cases = [  # places of the two things, uses done, whether the use of one on the other is valid
        ((HELD, HELD), 0, True),
        ((HELD, 4), 0, True),
        ((HELD, 5), 0, False),
        ((4, HELD), 0, False),
        ((4, 4), 0, False),
        ((HELD, HELD), 1, False),
    ]
    for places, done, expected in cases:
        _, info = env.reset(seed=0)
        env.state.room, env.state.done = 4, done
        env.state.places[:] = 7
        env.state.places[[first, second]] = places
        _, info = env.restore_state(env.capture_state())
        uses = np.flatnonzero(info["action_mask"][FIRST_USE:]).tolist()
        assert uses == ([10 * first + second] if expected else []), (places, done)
    env.state.places[[second, third]] = HELD
    _, info = env.restore_state(env.capture_state())
    assert np.flatnonzero(info["action_mask"][FIRST_USE:]).tolist() == [10 * second + third]


def test_the_observation_is_the_state():
    envs = make_vec("Adventure", 16)
    envs.reset(seed=0)
    for _, obs, *_ in play(envs, 100):
        states = envs.states
        np.testing.assert_array_equal(obs[:, :10], np.eye(10)[states.room])
        places = obs[:, 10:FIRST_HERE].reshape(16, 10, 11)
        np.testing.assert_array_equal(places, np.eye(11)[states.places])
        is_here = states.places == states.room[:, None]
        np.testing.assert_array_equal(obs[:, FIRST_HERE:FIRST_DONE], is_here)
        np.testing.assert_array_equal(obs[:, FIRST_DONE:], np.eye(4)[states.done])


def test_few_of_the_120_actions_are_valid():
    envs = make_vec("Adventure", 64)
    envs.reset(seed=0)
    counts = np.concatenate([info["action_mask"].sum(1) for *_, info in play(envs, 200)])
    assert counts.min() >= 2 and ((counts >= 2) & (counts <= 6)).mean() > 0.99


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"world": -1}, "world is -1; it takes an integer of 0 to 2147483647"),
        ({"num_uses": 0}, "num_uses is 0; it takes an integer of 1 to 9"),
        ({"num_uses": 10}, "num_uses is 10"),
    ],
)
def test_sizes_it_cannot_be_played_in(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_vec("Adventure", 1, **sizes)


def test_text_says_it_all():
    env = gym.make("rlmask/Adventure-v0", render_mode="ansi")
    env.reset(seed=0)
    state = env.unwrapped.state
    state.room, state.done = 4, 1
    state.places[:] = 7
    state.places[2] = HELD
    letters = "ABCDEFGHIJ"
    one, two, three, four = (letters[thing] for thing in make_world(0)[2][:4])
    exits = " ".join(str(room) for room in range(10) if make_world(0)[1][4, room])
    assert env.render().splitlines() == [
        f"room 4, exits to {exits}",
        "in 7: A B D E F G H I J",
        "held: C",
        f"quest: {one} on {two}, {two} on {three}, {three} on {four}; done: 1",
    ]
