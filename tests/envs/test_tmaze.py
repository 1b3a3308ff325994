import numpy as np
import pytest
from playing import make_vec, play

from rlmask_envs.tmaze import FIRST_DOOR, FIRST_SIGN, FORWARD, MAX_LENGTH


def walk(envs, num_steps, choose, seed=0):
    """Walk forward and choose a door there; yield (sign, length, steps, return) of each episode."""
    obs, info = envs.reset(seed=seed)
    signs, lengths = envs.states.sign.copy(), envs.states.length.copy()
    steps = np.zeros(envs.num_envs, int)
    for _ in range(num_steps):
        at_doors = info["action_mask"][:, FORWARD] == 0
        action = np.where(at_doors, FIRST_DOOR + choose(obs, signs), FORWARD)
        obs, reward, terminated, truncated, info = envs.step(action)
        steps += 1
        assert not truncated[~terminated].any() and not reward[~terminated].any()
        for index in np.flatnonzero(terminated):
            yield int(signs[index]), int(lengths[index]), int(steps[index]), float(reward[index])
        signs, lengths = envs.states.sign.copy(), envs.states.length.copy()
        steps[terminated] = 0


@pytest.mark.parametrize("doors", [2, 4, 8])
def test_only_the_door_of_the_sign_pays(doors):
    envs = make_vec("TMaze", 16, num_doors=doors, corridor_length=6, min_length=3)
    episodes = list(walk(envs, 300, lambda obs, signs: signs))
    assert {sign for sign, *_ in episodes} == set(range(doors))
    assert {length for _, length, *_ in episodes} == {3, 4, 5, 6}
    assert all(steps == length + 1 and gained == 1 for _, length, steps, gained in episodes)
    wrong = walk(envs, 100, lambda obs, signs: (signs + 1) % doors)
    assert not any(gained for *_, gained in wrong)


def test_the_longest_corridor_can_be_won():
    envs = make_vec("TMaze", 2, corridor_length=MAX_LENGTH, min_length=MAX_LENGTH)
    episodes = list(walk(envs, 200, lambda obs, signs: signs))
    assert [(steps, gained) for *_, steps, gained in episodes] == [(200, 1), (200, 1)]


@pytest.mark.parametrize("doors", [2, 4])
def test_who_has_forgotten_is_right_by_chance(doors):
    """The best that what is seen at the junction allows; 4,000 episodes, five deviations."""
    envs = make_vec("TMaze", 64, num_doors=doors, corridor_length=3)
    gained = [gain for *_, gain in walk(envs, 250, lambda obs, signs: np.zeros(64, int))]
    chance = 1 / doors
    error = (chance * (1 - chance) / len(gained)) ** 0.5
    assert len(gained) > 4000 and abs(np.mean(gained) - chance) < 5 * error


def test_the_sign_is_seen_at_the_start_alone():
    envs = make_vec("TMaze", 32, corridor_length=4)
    obs, _ = envs.reset(seed=0)
    assert (obs[:, FIRST_SIGN:].argmax(1) == envs.states.sign).all()
    noise = []
    for _, obs, *_ in play(envs, 200):
        places, lengths, signs = envs.states.place, envs.states.length, envs.states.sign
        kind = np.where(places == 0, 0, np.where(places == lengths, 2, 1))
        np.testing.assert_array_equal(obs[:, :FIRST_SIGN], np.eye(3)[kind])
        np.testing.assert_array_equal(obs[kind == 0, FIRST_SIGN:], np.eye(4)[signs[kind == 0]])
        assert not obs[kind == 2, FIRST_SIGN:].any()
        noise.append(np.column_stack([obs[kind == 1, FIRST_SIGN:], signs[kind == 1]]))
    noise = np.concatenate(noise)
    assert abs(noise[:, :4].mean() - 0.5) < 0.02 and len(np.unique(noise[:, 0])) > 1000
    of_sign = [noise[noise[:, 4] == sign, :4].mean(0) for sign in range(4)]
    assert np.abs(np.array(of_sign) - 0.5).max() < 0.05  # the noise says nothing of it


def test_to_and_fro_ends():
    envs = make_vec("TMaze", 1, corridor_length=10)
    envs.reset(seed=0)
    ends = [envs.step([t % 2])[3][0] for t in range(200)]
    assert ends == [False] * 199 + [True]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_doors": 1}, "num_doors is 1"),
        ({"num_doors": 9}, "num_doors is 9"),
        ({"corridor_length": 0}, "corridor_length is 0"),
        ({"corridor_length": 200}, "corridor_length is 200; it takes an integer of 1 to 199"),
        ({"corridor_length": 3, "min_length": 4}, "min_length is 4; it takes an integer of 1 to 3"),
    ],
)
def test_sizes_it_cannot_be_played_in(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_vec("TMaze", 1, **sizes)


def test_long_corridors_fit_in_a_picture():
    for place in (0, 50, 100):
        envs = make_vec("TMaze", 1, corridor_length=100, min_length=100, render_mode="rgb_array")
        envs.reset(seed=0)
        envs.states.place[0] = place
        (picture,) = envs.render()
        assert picture.shape[1] < 1000 and len(np.unique(picture)) > 3
