import envs_for_tests
import gymnasium as gym
import numpy as np
import pytest
import torch
from envs_for_tests import assert_same_steps
from gymnasium.utils.env_checker import check_env

from rlmask import vector
from rlmask_envs import InvalidActionError

GAME = "rlmask_envs:rlmask/Adventure-v0"


def make(env_id=GAME, **kwargs):
    return gym.make("rlmask_envs:rlmask/Unmasked-v0", env_id=env_id, **kwargs)


def test_valid_actions_are_the_other_envs():
    """Half of the actions are drawn from all, half from the valid ones; both envs in step."""
    env, other = make(), gym.make(GAME, max_episode_steps=-1)
    rng, ends, counts = np.random.default_rng(0), 0, {True: 0, False: 0}
    for episode in range(20):
        obs, info = env.reset(seed=episode)
        expected, its_info = other.reset(seed=episode)
        while True:
            mask = its_info["action_mask"]
            assert set(info) <= {"true_action_mask", "action_valid"}
            np.testing.assert_array_equal(info["true_action_mask"], mask)
            np.testing.assert_array_equal(obs, expected)
            choices = np.flatnonzero(mask) if rng.random() < 0.5 else np.arange(120)
            action = int(rng.choice(choices))
            obs, reward, terminated, truncated, info = env.step(action)
            valid = bool(mask[action])
            assert info["action_valid"] is valid
            counts[valid] += 1
            if valid:
                expected, its_reward, its_end, _, its_info = other.step(action)
                assert (reward, terminated) == (its_reward, its_end)
            else:
                assert (reward, terminated) == (-0.1, False)
            if terminated or truncated:
                ends += terminated
                break
    assert ends >= 3 and min(counts.values()) > 500


@pytest.mark.parametrize("valid", [True, False])
def test_every_step_counts_for_the_limit(valid):
    env = make(max_episode_steps=60, env_kwargs={"num_uses": 9}, penalty=0.25)
    _, info = env.reset(seed=0)
    for step in range(1, 61):
        wanted = int(np.flatnonzero(info["true_action_mask"] == valid)[0])
        _, reward, terminated, truncated, info = env.step(wanted)
        assert reward == pytest.approx(-0.01 if valid else -0.25) and not terminated
        assert truncated == (step == 60)  # the game's own limit is 50


def test_the_limit_is_200_if_not_given():
    env = make()
    _, info = env.reset(seed=0)
    invalid = int(info["true_action_mask"].argmin())
    ends = [env.step(invalid)[3] for _ in range(200)]
    assert ends == [False] * 199 + [True]


def test_rlmask_sees_no_mask_and_counts_what_was_invalid():
    game = vector.Game(env_id="rlmask_envs:rlmask/Unmasked-v0", env_kwargs={"env_id": GAME})
    findings = vector.check_env(game, 200, 0)
    assert not [finding for finding in findings if finding.level == "error"], findings
    assert any("resume is exact" in finding.text for finding in findings)
    envs, twin = (vector.make_vector((game,), 4, 0) for _ in range(2))
    assert envs.spec.games[0].mask_source == "none"
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(120, (300, 4), generator=generator)
    envs.reset()
    invalid, ended = torch.zeros(4, dtype=torch.int64), 0
    for action in actions[:250]:
        step = envs.step(action)
        assert step.action_mask.all()
        assert (step.reward[~step.action_valid] == torch.tensor(-0.1)).all()
        invalid += ~step.action_valid
        for index, episode in zip(step.ended.tolist(), step.episodes, strict=True):
            assert episode.invalid_actions == invalid[index]
            invalid[index], ended = 0, ended + 1
    assert ended >= 4 and invalid.all()
    twin.restore(envs.capture())
    for action in actions[250:]:
        assert_same_steps([envs.step(action)], [twin.step(action)])


@pytest.mark.filterwarnings("ignore:.*")
def test_gymnasium_accepts_it():
    check_env(make().unwrapped, skip_render_check=True)


def test_actions_may_start_elsewhere_and_observations_be_anything():
    env = make(envs_for_tests.env_id("Corridor"), env_kwargs={"start": 5})
    obs, info = env.reset(seed=1)
    for _ in range(3):
        for action in np.flatnonzero(info["true_action_mask"] == 0).tolist():
            again, reward, *_, its_info = env.step(5 + action)
            assert (again, reward, its_info["action_valid"]) == (obs, -0.1, False)
        obs, *_, terminated, _, info = env.step(5 + 1)
        assert info["action_valid"]
        if terminated:
            break
    with pytest.raises((InvalidActionError, gym.error.ResetNeeded)):
        env.unwrapped.step(4)


def test_what_is_no_action_is_an_error():
    env = make()
    env.reset(seed=0)
    for action in (-1, 120):
        with pytest.raises(InvalidActionError, match=r"Adventure-v0: -?\d+ is not in Discrete"):
            env.step(action)
    with pytest.raises(gym.error.ResetNeeded):
        make().unwrapped.step(0)


def test_an_ended_episode_needs_a_reset():
    env = make(env_kwargs={"num_uses": 1})
    _, info = env.reset(seed=0)
    rng, terminated = np.random.default_rng(0), False
    while not terminated:
        action = int(rng.choice(np.flatnonzero(info["true_action_mask"])))
        *_, terminated, truncated, info = env.step(action)
        assert not truncated
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_what_it_cannot_hide():
    with pytest.raises(ValueError, match="penalty is -1"):
        make(penalty=-1)
    with pytest.raises(ValueError, match="Unmasked takes Discrete"):
        make(envs_for_tests.env_id("Target"))
    with pytest.raises(gym.error.Error, match=r"no info\['action_mask'\] to hide"):
        make(envs_for_tests.env_id("Corridor"), env_kwargs={"where": "method"}).reset(seed=0)


def test_it_draws_what_the_other_env_draws():
    env = make(render_mode="ansi")
    env.reset(seed=0)
    other = gym.make(GAME, render_mode="ansi")
    other.reset(seed=0)
    assert env.render() == other.render()
    env.close()
