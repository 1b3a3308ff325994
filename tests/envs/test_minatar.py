"""MinAtar through our door: the same games, with masks, seeds and one way to fail."""

import copy
import importlib.util
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_array_equal
from playing import draw

import rlmask.vector
from rlmask.vector import EnvError, Game, make_vector

minatar = pytest.importorskip("minatar")
from rlmask_envs import minatar as door  # noqa: E402
from rlmask_envs.actions import InvalidActionError  # noqa: E402

VALID = {  # of n, l, u, r, d, f: shared/reference/environments.md, section 4
    "asterix": [0, 1, 2, 3, 4],
    "breakout": [0, 1, 3],
    "freeway": [0, 2, 4],
    "seaquest": [0, 1, 2, 3, 4, 5],
    "space_invaders": [0, 1, 3, 5],
}
CHANNELS = {"asterix": 4, "breakout": 4, "freeway": 7, "seaquest": 10, "space_invaders": 6}


@pytest.fixture(params=VALID)
def game(request):
    return request.param


def env_id(game):
    return f"rlmask_envs:rlmask/MinAtar{game.title().replace('_', '')}-v0"


def make(game, **kwargs):
    return gym.make(env_id(game), disable_env_checker=True, **kwargs).unwrapped


def play(env, num_steps, seed, choices=0):
    """Return what is seen of random valid play from a seed, across the ends of episodes."""
    rng = np.random.default_rng(choices)
    obs, info = env.reset(seed=seed)
    seen = [(obs, 0.0, False)]
    for _ in range(num_steps):
        obs, reward, terminated, _, info = env.step(draw(info["action_mask"], rng))
        seen.append((obs, reward, terminated))
        if terminated:
            obs, info = env.reset()
            seen.append((obs, 0.0, False))
    return seen


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) and rest == its_rest
        for (a, *rest), (b, *its_rest) in zip(one, other, strict=True)
    )


def test_the_mask_is_the_minimal_set_under_its_own_ids(game):
    env = make(game)
    assert env.action_space == gym.spaces.Discrete(6)
    expected = np.isin(np.arange(6), VALID[game]).astype(np.int8)
    assert_array_equal(np.flatnonzero(expected), minatar.Environment(game).minimal_action_set())
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    for _ in range(50):
        mask = info["action_mask"]
        assert mask.dtype == np.int8
        assert_array_equal(mask, expected)
        *_, terminated, _, info = env.step(draw(mask, rng))
        if terminated:
            _, info = env.reset()


@pytest.mark.parametrize("game", [game for game, valid in VALID.items() if len(valid) < 6])
def test_what_is_outside_the_mask_does_the_same_as_nothing(game):
    env = make(game, sticky_action_prob=0.0)
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    for _ in range(100):
        for action in set(range(6)) - set(VALID[game]):
            one, other = copy.deepcopy(env._rules), copy.deepcopy(env._rules)
            assert one.act(0) == other.act(action)
            assert_array_equal(one.state(), other.state())
        *_, terminated, _, info = env.step(draw(info["action_mask"], rng))
        if terminated:
            env.reset()


@pytest.mark.parametrize("prob", [0.0, 0.1, 0.7])
def test_it_is_the_game_of_the_package(game, prob):
    """With the same random numbers, MinAtar's own wrapper plays the same episode."""
    env, its = make(game, sticky_action_prob=prob), minatar.Environment(game, prob)
    rng = np.random.default_rng(0)
    obs, info = env.reset(seed=1)
    its.random = its.env.random = np.random.RandomState(
        int(np.random.default_rng(1).integers(2**32))
    )
    its.reset()
    for _ in range(300):
        state = its.state()
        assert_array_equal(obs, np.where(state, 255, 0))
        action = draw(info["action_mask"], rng)
        obs, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated) == (*its.act(action), False)
        if terminated:
            assert_array_equal(obs, np.where(its.state(), 255, 0))
            break


def test_observations_fit_their_space_and_are_arrays_of_their_own(game):
    env = make(game)
    assert env.observation_space == gym.spaces.Box(0, 255, (10, 10, CHANNELS[game]), np.uint8)
    obs, info = env.reset(seed=0)
    rng, expected = np.random.default_rng(0), np.isin(np.arange(6), VALID[game])
    for _ in range(30):
        mask, before = info["action_mask"], obs.copy()
        assert obs in env.observation_space
        assert set(np.unique(obs)) == {0, 255}
        assert_array_equal(mask, expected)
        action, mask[:] = draw(mask, rng), 0
        last, (obs, reward, terminated, truncated, info) = obs, env.step(action)
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        if terminated:
            obs, info = env.reset()
        assert_array_equal(last, before)
        assert not mask.any()
        last[:] = mask[:] = 7  # writes on nothing that the env still has
        assert obs in env.observation_space and set(np.unique(obs)) == {0, 255}


def test_a_seed_says_all_that_happens(game):
    env = make(game, sticky_action_prob=0.5)
    first = play(env, 120, seed=3)
    assert same(first, play(make(game, sticky_action_prob=0.5), 120, seed=3))
    play(env, 77, seed=4, choices=1)  # leaves a last action behind, which must not stick
    assert same(first, play(env, 120, seed=3))
    assert not same(first, play(env, 120, seed=4))


def test_the_last_action_does_not_stick_into_the_next_episode():
    env = make("breakout", sticky_action_prob=1.0)
    env.reset(seed=0)
    env._last_action = 1
    obs, _ = env.reset(seed=0)
    assert_array_equal(env.step(1)[0][9, :, 0], obs[9, :, 0])  # it repeats action 0 at first


def test_resets_without_a_seed_go_on(game):
    env, twin = make(game), make(game)
    runs = []
    for seed in (5, None, None):
        runs.append(play(env, 100, seed))
        assert same(play(twin, 100, seed), runs[-1])
    assert not same(runs[0], runs[1])
    assert not same(runs[1], runs[2])


def test_an_invalid_action_is_refused_and_moves_nothing(game):
    env = make(game)
    env.reset(seed=0)
    before = env._rules.state(), env._rules.random.get_state()[2]
    invalid = [-1, 6, 2**40, *sorted(set(range(6)) - set(VALID[game]))]
    shown = ", ".join(map(str, VALID[game]))
    for action in [*invalid, 0.5, 1.0, np.float32(0), np.nan, None, "1"]:
        text = f"^{game}: action {action} is invalid; valid: {shown}$"
        with pytest.raises(InvalidActionError, match=text):
            env.step(action)
    assert_array_equal(env._rules.state(), before[0])
    assert env._rules.random.get_state()[2] == before[1]
    for action in VALID[game]:
        env.reset()
        env.step(np.int64(action))


def test_a_step_needs_a_running_episode():
    env = make("breakout")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    while not env.step(0)[2]:
        pass
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_a_picture_needs_a_reset_and_may_be_of_the_end(mode):
    env = make("breakout", render_mode=mode)
    with pytest.raises(gym.error.ResetNeeded, match="nothing to see yet"):
        env.render()
    env.reset(seed=0)
    while not env.step(0)[2]:
        pass
    assert env.render() is not None


def test_keywords_reach_the_game():
    assert make("asterix")._rules.ramping
    assert not make("asterix", difficulty_ramping=False)._rules.ramping
    for kwargs, text in [
        ({"sticky_action_prob": 1.5}, "sticky_action_prob is 1.5; it takes 0 to 1"),
        ({"render_mode": "human"}, "render_mode is 'human'; it takes rgb_array or ansi"),
    ]:
        with pytest.raises(ValueError, match=text):
            door.MinAtarEnv("breakout", **kwargs)
    with pytest.raises(ValueError, match="game is 'pong'; it takes asterix, breakout"):
        door.MinAtarEnv("pong")


def test_it_ends_at_the_limit():
    """Freeway's own clock stops after 2,500 steps; the limit is twice that."""
    assert gym.spec(env_id("freeway").partition(":")[2]).max_episode_steps == 5000
    env = make("freeway")
    env.reset(seed=0)
    steps = 1
    while not env.step(0)[2]:
        steps += 1
    assert 2500 <= steps <= 2502
    env = gym.make(env_id("asterix"), max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


def test_every_kind_of_thing_has_a_look(game):
    assert set(door.load_rules(game).Env().channels) <= set(door.LOOKS)


def test_pictures_and_text(game):
    env, words = make(game, render_mode="rgb_array"), make(game, render_mode="ansi")
    frames, texts = set(), set()
    for one, seen in ((env, frames), (words, texts)):
        rng = np.random.default_rng(0)
        _, info = one.reset(seed=0)
        for _ in range(20):
            frame = one.render()
            seen.add(frame if isinstance(frame, str) else frame.tobytes())
            *_, terminated, _, info = one.step(draw(info["action_mask"], rng))
            if terminated:
                break
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((320, 320, 3), np.uint8)
    assert len(frames) == len(texts) > 5
    assert re.fullmatch(r"(\S{10}\n){9}\S{10}", words.render())
    assert make(game).render() is None
    assert gym.make(env_id(game), render_mode="rgb_array").render_mode == "rgb_array"


def test_breakout_in_letters():
    env = make("breakout", render_mode="ansi")
    env.reset(seed=0)
    lines = env.render().splitlines()
    assert lines[0] == lines[4] == "." * 10
    assert lines[1] == lines[2] == "#" * 10
    assert lines[9] == "....P....."
    assert "O" in lines[3]


def test_gymnasium_accepts_it(game):
    env = make(game)
    # the checker knows no masks, and is handed valid actions
    env.action_space.sample = lambda *args, **kwargs: VALID[game][-1]
    check_env(env, skip_render_check=True)


def test_rlmask_accepts_it(game):
    findings = rlmask.vector.check_env(Game(env_id=env_id(game)), 300, 0)
    assert not [finding.text for finding in findings if finding.level == "error"]
    text = " ".join(finding.text for finding in findings)
    assert "resume is exact" in text
    assert "an array of its own" in text
    assert ("refuses an invalid action" in text) == (game != "seaquest")


def test_several_games_share_the_union():
    games = tuple(Game(env_id=env_id(game), action_ids=tuple(range(6))) for game in VALID)
    vector = make_vector(games, 5, 0)
    _, mask = vector.reset()
    assert [row.nonzero()[:, 0].tolist() for row in mask] == list(VALID.values())
    assert vector.spec.obs.shape == (10, 10, 10)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    door.load_rules.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvError) as caught:
        make_vector((Game(env_id=env_id("breakout")),), 1, 0)
    assert str(caught.value) == (
        f"{env_id('breakout')} needs a package that is not installed: "
        "no module named 'minatar'; pip install 'rlmask[minatar]'"
    )


def test_nothing_that_only_draws_is_imported():
    code = (
        "import sys; from rlmask_envs.minatar import MinAtarEnv; MinAtarEnv('breakout').reset();"
        "print([name for name in ('seaborn', 'matplotlib', 'minatar') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert run.stderr == ""


def test_the_docstring_says_what_gymnasium_says_of_an_env():
    for line in [f"| {game} | {', '.join(map(str, ids))} |" for game, ids in VALID.items()]:
        assert line.replace("0, 1, 2, 3, 4, 5", "all") in door.__doc__
    assert re.findall(r"^## (.*)$", door.__doc__, re.M) == [
        "Description",
        "Action Space",
        "Action mask",
        "Observation Space",
        "Rewards",
        "Starting State",
        "Episode End",
        "Arguments",
        "Reference",
    ]
