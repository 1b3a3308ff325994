"""Atari through our door: the emulator's own games, with masks, true scores and true ends."""

import os
import re
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.testing import assert_array_equal

import rlmask.vector
from rlmask.ops import masked_sample
from rlmask.vector import EnvError, Game, ReplayWarning, make_vector

ale_py = pytest.importorskip("ale_py", minversion="0.12.1")
from rlmask_envs import atari as door  # noqa: E402
from rlmask_envs.actions import InvalidActionError  # noqa: E402

ID = "rlmask_envs:rlmask/Atari-v0"
VALID = {  # of the 18: shared/reference/environments.md, section 2
    "atlantis": [0, 1, 11, 12],
    "boxing": list(range(18)),
    "breakout": [0, 1, 3, 4],
    "crazy_climber": [0, 2, 3, 4, 5, 6, 7, 8, 9],
    "enduro": [0, 1, 3, 4, 5, 8, 9, 11, 12],
    "pong": [0, 1, 3, 4, 11, 12],
    "seaquest": list(range(18)),
    "space_invaders": [0, 1, 3, 4, 11, 12],
}
PLAIN = {"repeat_action_probability": 0.0, "noop_max": 0}  # nothing is left to chance
LEFT, RIGHT, FIRE = 4, 3, 1


def make(game="breakout", **kwargs):
    return gym.make(ID, game=game, disable_env_checker=True, **kwargs).unwrapped


def make_vec(game="breakout", num_envs=2, **kwargs):
    return gym.make_vec(ID, num_envs, game=game, **kwargs)


def random_actions(game, shape, seed=0):
    return np.random.default_rng(seed).choice(VALID[game], shape)


@pytest.mark.parametrize("game", VALID)
def test_the_mask_is_the_minimal_set_under_its_own_ids(game):
    assert_array_equal(np.flatnonzero(door.minimal_mask(game)), VALID[game])


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_both_envs_give_the_mask_at_every_step(game):
    expected = np.isin(np.arange(18), VALID[game]).astype(np.int8)
    env, envs = make(game), make_vec(game, 3, max_episode_steps=5)
    assert env.action_space == envs.single_action_space == gym.spaces.Discrete(18)
    _, info = env.reset(seed=0)
    _, infos = envs.reset(seed=0)
    for action in random_actions(game, 12):
        for mask in (info["action_mask"], *infos["action_mask"]):
            assert mask.dtype == np.int8
            assert_array_equal(mask, expected)
        *_, info = env.step(action)
        *_, infos = envs.step([action] * 3)
        if "final_info" in infos:
            assert_array_equal(infos["final_info"]["action_mask"], [expected] * 3)


def shares(n, m):
    """Return how much of each of n pixels is in each of m larger ones, [m, n]."""
    edges = np.arange(m + 1) * n / m
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(n)
    overlap = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
    return np.clip(overlap, 0, None) * m / n


ROWS, COLUMNS = shares(210, 84), shares(160, 84).T


def shrunk(frame):
    """Return a screen as the agent sees it, but for the rounding."""
    return ROWS @ frame @ COLUMNS


@pytest.mark.parametrize("game", ["pong", "breakout"])
@pytest.mark.parametrize("kind", ["single", "vector"])
def test_an_action_is_the_action_of_that_id(game, kind):
    """The emulator itself, given the same ids of the console, shows and pays the same."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(ale_py.roms.get_rom_path(game))
    ale.reset_game()
    env = make(game, **PLAIN) if kind == "single" else make_vec(game, 1, **PLAIN)
    obs, _ = env.reset(seed=0)
    stack = [np.zeros((210, 160))] * 3 + [ale.getScreenGrayscale()]
    seen = set()
    for step, action in enumerate(random_actions(game, 150)):
        if step % 8 == 0:
            expected = np.array([shrunk(frame) for frame in stack])
            assert np.abs(obs.reshape(4, 84, 84) - expected).max() < 1.01  # rounding
        obs, reward, *_, info = env.step(action if kind == "single" else action[None])
        frames, points = [], 0
        for _ in range(4):
            points += ale.act(ale_py.Action(int(action)))
            frames.append(ale.getScreenGrayscale())
        if ale.game_over():
            break
        stack = [*stack[1:], np.maximum(*frames[-2:])]
        assert points == np.sum(reward)
        assert ale.lives() == np.sum(info["lives"])
        seen.add(points)
    assert step > 80
    assert len(seen) > 1


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_the_emulator_is_handed_the_chosen_id(game, monkeypatch):
    """Redundant ids look alike on the screen, so what is handed on is looked at."""
    handed = []
    send = ale_py.AtariVectorEnv.send
    monkeypatch.setattr(
        ale_py.AtariVectorEnv,
        "send",
        lambda self, ids: [handed.append(ids.copy()), send(self, ids)],
    )
    env, envs = make(game), make_vec(game, 2)
    console = [action.value for action in envs._ale.ale.get_action_set()]
    assert console == list(range(18))
    env.reset(seed=0)
    envs.reset(seed=0)
    for action in VALID[game]:
        other = VALID[game][-1]
        env.step(action)
        envs.step([action, other])
        assert [ids.tolist() for ids in handed[-2:]] == [[action], [action, other]]


def rewards_of(env, game, num_steps):
    env.reset(seed=0)
    return [env.step(action)[1] for action in random_actions(game, (num_steps, 1))]


@pytest.mark.parametrize("clip", [False, True])
def test_rewards_are_clipped_only_on_request(clip):
    """An invader is worth 5 to 30 points."""
    kwargs = {"reward_clipping": True} if clip else {}
    env = make_vec("space_invaders", 1, **PLAIN, **kwargs)
    rewards = np.concatenate(rewards_of(env, "space_invaders", 250))
    assert rewards.dtype == np.float64
    assert set(rewards) - {0.0} <= ({1.0} if clip else set(5.0 * np.arange(1, 7)))
    assert rewards.max() == 1 if clip else rewards.max() >= 5
    single = make("space_invaders", **PLAIN, **kwargs)
    single.reset(seed=0)
    actions = random_actions("space_invaders", (250, 1))
    assert [single.step(int(action[0]))[1] for action in actions] == rewards.tolist()


def test_at_the_limit_the_last_observation_is_the_true_one():
    """A twin without a limit shows what comes after the same actions."""
    envs, twin = make_vec(max_episode_steps=10, **PLAIN), make_vec(max_episode_steps=None, **PLAIN)
    start, _ = envs.reset(seed=0)
    twin.reset(seed=0)
    for step in range(1, 26):
        actions = [FIRE, LEFT] if step % 2 else [RIGHT, FIRE]
        obs, _, terminated, truncated, info = envs.step(actions)
        its_obs, *_ = twin.step(actions)
        assert not terminated.any()
        assert truncated.tolist() == [step % 10 == 0] * 2
        assert ("final_obs" in info) == (step % 10 == 0)
        if step == 10:
            assert_array_equal(info["final_obs"], its_obs)
            assert_array_equal(obs, start)
            assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [True, True]
        elif step < 10:
            assert_array_equal(obs, its_obs)


def test_a_limit_leaves_the_other_copies_alone():
    envs = make_vec(max_episode_steps=8, repeat_action_probability=0.0)
    twin = make_vec(max_episode_steps=None, repeat_action_probability=0.0)
    envs.reset(seed=0)
    twin.reset(seed=0)
    envs._lengths[0] = 3  # so that copy 0 ends earlier
    for step in range(1, 8):
        obs, _, _, truncated, info = envs.step([FIRE, LEFT])
        its_obs, *_ = twin.step([FIRE, LEFT])
        assert truncated.tolist() == [step == 5, False]
        assert_array_equal(obs[1], its_obs[1])
        if step == 5:
            assert_array_equal(info["final_obs"][0], its_obs[0])
            assert not info["final_obs"][1].any()
            assert not np.array_equal(obs[0], its_obs[0])


def test_play_goes_on_over_the_end_of_a_game():
    """Whoever only fires in Breakout loses a ball every few seconds."""
    envs, env = make_vec(num_envs=2, frame_skip=12, **PLAIN), make(frame_skip=12, **PLAIN)
    envs.reset(seed=0)
    obs, _ = env.reset(seed=0)
    lives, ends = {5}, 0
    for _ in range(120):
        obs, reward, terminated, truncated, info = env.step(FIRE)
        rows, rewards, ended, _, infos = envs.step([FIRE, FIRE])
        assert not truncated
        assert rewards.tolist() == [reward] * 2
        assert ended.tolist() == [terminated] * 2
        lives.add(info["lives"])
        if terminated:
            ends += 1
            assert info["lives"] == 0
            assert_array_equal(infos["final_obs"], [obs, obs])
            assert infos["lives"].tolist() == [5, 5]
            with pytest.raises(gym.error.ResetNeeded):
                env.step(FIRE)
            obs, _ = env.reset()
        assert_array_equal(rows, [obs, obs])
    assert ends >= 2
    assert lives == set(range(6))


def test_a_game_may_end_in_the_step_in_which_another_is_truncated():
    envs = make_vec(num_envs=2, frame_skip=12, **PLAIN)
    start, _ = envs.reset(seed=0)
    steps = 1
    while not envs.step([FIRE, LEFT])[2][0]:  # without fire there is no ball to lose
        steps += 1
    limited = make_vec(num_envs=2, frame_skip=12, max_episode_steps=steps, **PLAIN)
    limited.reset(seed=0)
    for _ in range(steps):
        obs, _, terminated, truncated, info = limited.step([FIRE, LEFT])
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, True]
    assert_array_equal(obs, start)
    assert info["lives"].tolist() == [5, 5]
    assert all(final.any() for final in info["final_obs"])
    assert not limited.step([FIRE, LEFT])[3].any()


def test_with_episodic_life_a_life_ends_the_game():
    envs = make_vec(num_envs=1, frame_skip=12, episodic_life=True, **PLAIN)
    start, _ = envs.reset(seed=0)
    for _ in range(30):
        obs, _, terminated, _, info = envs.step([FIRE])
        if terminated[0]:
            break
    assert terminated[0]
    assert info["lives"].tolist() == [5]
    assert_array_equal(obs, start)
    assert "final_obs" in info


def run(envs, seed, num_steps=60, choices=0):
    obs, _ = envs.reset(seed=seed)
    seen = [obs]
    for action in random_actions("breakout", (num_steps, 4), choices):
        seen.append(envs.step(action[: envs.num_envs])[0])
    return np.array(seen)


def test_a_seed_says_all_that_happens_in_a_copy():
    envs = make_vec(num_envs=3)
    first = run(envs, 3)
    assert_array_equal(run(make_vec(num_envs=3, num_threads=1), 3), first)
    assert_array_equal(run(make_vec(num_envs=2), 3), first[:, :2])
    run(envs, 5, choices=1)
    assert_array_equal(run(envs, 3), first)
    assert not np.array_equal(run(envs, None), first)


def test_neighbouring_seeds_share_no_copy():
    """ale-py gives copy i the seed plus i."""
    seen = [run_same_actions(make_vec(num_envs=3), seed) for seed in (3, 4)]
    for one in range(3):
        for other in range(3):
            assert not np.array_equal(seen[0][:, one], seen[1][:, other])


def test_copies_play_different_games():
    seen = run_same_actions(make_vec(num_envs=3))
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert not np.array_equal(seen[:, one], seen[:, other])


def run_same_actions(envs, seed=0):
    obs, _ = envs.reset(seed=seed)
    actions = random_actions("breakout", 40)
    return np.array([obs, *(envs.step([action] * envs.num_envs)[0] for action in actions)])


def test_a_single_env_repeats_itself_under_a_seed():
    env, actions = make(), random_actions("breakout", 60)

    def play(seed):
        return np.array([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])

    first = play(7)
    second = play(None)
    assert not np.array_equal(second, first)
    assert_array_equal(play(7), first)
    assert_array_equal(play(None), second)
    assert not np.array_equal(play(8), first)


def test_without_a_seed_no_two_envs_are_alike():
    assert not np.array_equal(*(run_same_actions(make_vec(), None) for _ in range(2)))


def test_what_is_returned_is_its_own():
    envs, kept = make_vec(max_episode_steps=3), []
    obs, info = envs.reset(seed=0)
    for action in random_actions("breakout", (8, 2)):
        arrays = [obs, info["action_mask"], info["lives"]]
        if "final_obs" in info:
            arrays += [info["final_obs"], info["final_info"]["action_mask"]]
        for array in arrays:
            assert not any(np.shares_memory(array, other) for other, _ in kept)
            kept.append((array, array.copy()))
            array[:] = array + 1
            kept[-1] = (array, array.copy())
        obs, *_, info = envs.step(action)
        assert_array_equal(info["action_mask"], [door.minimal_mask("breakout")] * 2)
    for array, before in kept:
        assert_array_equal(array, before)
    assert len(kept) == 8 * 3 + 2 * 2


def test_an_invalid_action_names_the_copy_and_moves_nothing():
    envs, twin = make_vec(num_envs=3), make_vec(num_envs=3)
    envs.reset(seed=0)
    twin.reset(seed=0)
    for wrong in (2, 17, 18, -1, 2**40):
        text = rf"^breakout, env 1: action {wrong} is invalid; valid: 0, 1, 3, 4$"
        with pytest.raises(InvalidActionError, match=text):
            envs.step([FIRE, wrong, LEFT])
    for wrong in (np.uint64(2**63), np.uint64(2**64 - 1)):
        with pytest.raises(InvalidActionError, match=f"env 0: action {wrong} is invalid"):
            envs.step(np.array([wrong, 0, 0], np.uint64))
    with pytest.raises(ValueError, match=r"shape \(2,\), not \(3,\)"):
        envs.step([0, 0])
    for wrong in ([0.5, 0, 0], [0, np.nan, 0], [0, 0, None], [True, False, True], ["1", "0", "0"]):
        with pytest.raises(ValueError, match="they have to be integers"):
            envs.step(wrong)
    for _ in range(5):
        assert_array_equal(envs.step([FIRE, LEFT, 0])[0], twin.step([FIRE, LEFT, 0])[0])


def test_a_single_env_refuses_too_and_plays_on():
    env, twin = make(), make()
    env.reset(seed=0)
    twin.reset(seed=0)
    for wrong in (2, 18, -1, 2**70, 0.5, 1.0, np.nan, None, "1"):
        text = f"^breakout: action {wrong} is invalid; valid: 0, 1, 3, 4$"
        with pytest.raises(InvalidActionError, match=text):
            env.step(wrong)
    for _ in range(5):
        assert_array_equal(env.step(FIRE)[0], twin.step(FIRE)[0])


def test_a_step_needs_a_reset():
    with pytest.raises(gym.error.ResetNeeded):
        make().step(0)
    with pytest.raises(gym.error.ResetNeeded):
        make_vec().step([0, 0])


def test_a_picture_needs_a_reset():
    env = make(render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded, match="nothing to see yet"):
        env.render()
    env.reset(seed=0)
    assert env.render().any()


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts in /proc")


def num_threads():
    return len(os.listdir("/proc/self/task"))


@needs_proc
def test_closing_ends_the_threads():
    for maker, kwargs, least in (
        (make, {}, 1),
        (make, {"render_mode": "rgb_array"}, 2),
        (make_vec, {"num_envs": 4}, 1),
    ):
        before = num_threads()
        env = maker(**kwargs)
        assert num_threads() >= before + least
        env.reset(seed=0)
        env.close()
        assert num_threads() == before
        env.close()
        with pytest.raises(gym.error.ResetNeeded):
            env.step(FIRE if maker is make else [FIRE] * 4)
        with pytest.raises(gym.error.ClosedEnvironmentError):
            env.reset()


@needs_proc
def test_threads_are_never_more_than_copies():
    """A config's keywords go to the vector env and to the single ones beside it."""
    for maker, kwargs in ((make, {}), (make_vec, {"num_envs": 1})):
        before = num_threads()
        env = maker(num_threads=6, **kwargs)
        assert num_threads() == before + 1
        env.close()


def test_the_class_with_our_metadata_is_made_once():
    envs = [make_vec()._ale, make_vec()._ale, make()._ales[0]]
    assert len(set(map(type, envs))) == 1
    assert "autoreset_mode" not in ale_py.AtariVectorEnv.metadata


def test_settings_reach_the_emulator(monkeypatch):
    given = {}

    def stop(**kwargs):
        given.update(kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(ale_py, "ALEVectorInterface", stop)
    for kwargs in (
        {},
        {
            "reward_clipping": True,
            "repeat_action_probability": 0.5,
            "frame_skip": 2,
            "noop_max": 7,
            "use_fire_reset": True,
            "episodic_life": True,
            "num_threads": 1,
        },
    ):
        with pytest.raises(KeyboardInterrupt):
            make_vec(**kwargs)
        names = ("reward_clipping", "repeat_action_probability", "noop_max", "use_fire_reset")
        values = [given[name] for name in (*names, "episodic_life", "frame_skip", "num_threads")]
        if kwargs:
            assert values == [True, 0.5, 7, True, True, 2, 1]
            assert given["num_envs"] == 2
        else:
            assert values == [False, 0.25, 30, False, False, 4, 0]
        assert given["full_action_space"] is True


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"game": "Pong"}, "'Pong'"),
        ({"game": "space_invader"}, "space_invaders"),
        ({"game": "combat"}, "no game 'combat' for one player"),  # for two players
        ({"repeat_action_probability": 1.5}, "it takes 0 to 1"),
        ({"frame_skip": 0}, "frame_skip is 0"),
        ({"noop_max": -1}, "noop_max -1"),
        ({"num_threads": 0}, "num_threads is 0; it has to be at least 1"),
    ],
)
@pytest.mark.parametrize("maker", [make, make_vec])
def test_what_cannot_be_is_an_error(maker, kwargs, text):
    with pytest.raises(ValueError, match=text):
        maker(**kwargs)


def test_other_errors():
    with pytest.raises(ValueError, match=r"render_mode is 'ansi'; it takes rgb_array$"):
        door.AtariEnv("pong", render_mode="ansi")
    with pytest.raises(ValueError, match="at least 1"):
        door.AtariVectorEnv("pong", 0)
    with pytest.raises(TypeError, match="frameskip"):
        make(frameskip=3)


def test_other_vector_envs_keep_their_metadata():
    envs = make_vec()
    make()
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert "autoreset_mode" not in VectorEnv.metadata


def test_the_picture_is_of_the_same_game():
    env = make("seaquest", render_mode="rgb_array")
    twin = make("seaquest")
    for seed in (0, None):
        env.reset(seed=seed)
        twin.reset(seed=seed)
        for action in random_actions("seaquest", 40):
            obs, *_ = env.step(action)
            assert_array_equal(obs, twin.step(action)[0])
            frame = env.render()
            assert (frame.shape, frame.dtype) == ((210, 160, 3), np.uint8)
        luma = shrunk(frame @ np.array([0.299, 0.587, 0.114]))
        assert np.abs(luma - obs[-1]).mean() < 1
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 5
    assert twin.render() is None
    assert gym.make(ID, render_mode="rgb_array").render_mode == "rgb_array"


def test_gymnasium_accepts_it():
    env = make("pong")
    assert env.observation_space == gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    env.action_space.sample = lambda *args, **kwargs: VALID["pong"][-1]
    check_env(env, skip_render_check=True)
    assert gym.spec(ID.partition(":")[2]).max_episode_steps == 27_000


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_rlmask_accepts_it(game):
    findings = rlmask.vector.check_env(Game(env_id=ID, env_kwargs={"game": game}), 300, 0)
    assert not [finding.text for finding in findings if finding.level == "error"]
    text = " ".join(finding.text for finding in findings)
    assert "image (84, 84, 4) uint8; actions: 18" in text
    assert "resume is exact" in text
    assert "refuses an invalid action" in text


def test_rlmask_plays_it_natively():
    game = Game(env_id=ID, env_kwargs={"game": "breakout", "max_episode_steps": 7})
    vector = make_vector((game,), 3, 0, vectorization="native")
    assert vector.spec.obs.shape == (84, 84, 4)
    obs, mask = vector.reset()
    generator = torch.Generator().manual_seed(0)
    episodes = []
    for t in range(1, 31):
        assert mask.nonzero()[:, 1].view(3, -1).tolist() == [VALID["breakout"]] * 3
        action, _ = masked_sample(torch.zeros(3, 18), mask, generator)
        step = vector.step(action)
        if t % 7:
            assert torch.equal(step.obs[..., :-1], obs[..., 1:])  # the stack moves on
        else:
            assert torch.equal(step.final_obs[..., :-1], obs[..., 1:])
            assert torch.equal(step.final_action_mask, mask)
            assert step.truncated.all() and not step.terminated.any()
            assert not step.obs[..., :-1].any()
        episodes += step.episodes
        obs, mask = step.obs, step.action_mask
    assert [episode.episode_length for episode in episodes] == [7] * 12
    with pytest.warns(ReplayWarning, match="capture_state"):
        vector.restore(vector.capture())


def test_several_games_share_the_union_natively():
    games = tuple(
        Game(env_id=ID, env_kwargs={"game": game}, action_ids=tuple(range(18)))
        for game in ("pong", "breakout")
    )
    vector = make_vector(games, 4, 0, vectorization="native")
    _, mask = vector.reset()
    assert [row.nonzero()[:, 0].tolist() for row in mask] == [VALID["pong"], VALID["breakout"]] * 2
    step = vector.step(torch.tensor([12, 1, 11, 4]))
    assert torch.equal(step.action_mask, mask)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    for vectorization in ("sync", "native"):
        with pytest.raises(EnvError) as caught:
            make_vector((Game(env_id=ID),), 1, 0, vectorization=vectorization)
        assert str(caught.value) == (
            f"{ID} needs a package that is not installed: "
            "no module named 'ale_py'; pip install 'rlmask[atari]'"
        )


def test_an_old_version_is_refused(monkeypatch):
    """0.12.0 waits forever when some copies are reset."""
    monkeypatch.setattr(ale_py, "__version__", "0.12.0")
    text = r"ale-py is 0\.12\.0; it has to be 0\.12\.1 or later; pip install 'rlmask\[atari\]'"
    with pytest.raises(EnvError, match=text):
        make_vector((Game(env_id=ID),), 1, 0)


def test_the_docstring_says_what_gymnasium_says_of_an_env():
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
