import itertools
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from envs_for_tests import Grid, assert_same_steps, counter_mask, env_id, play, random_actions
from gymnasium import spaces
from torch.testing import assert_close

from rlmask.ops import InvalidActionError
from rlmask.vector import EnvError, Game, MaskedEnv, MaskError, episode_seed, join, make_vector

PLACES = ["info", "obs", "method"]
SEED = 11


def make(name, num_envs=3, mask_source="auto", vectorization="sync", **kwargs):
    game = Game(env_id=env_id(name), env_kwargs=kwargs, mask_source=mask_source)
    return make_vector((game,), num_envs, SEED, vectorization=vectorization)


def make_env(name, enforce=True, index=0, **kwargs):
    game = Game(env_id=env_id(name), env_kwargs=kwargs)
    return MaskedEnv(join((game,)), index=index, seed=SEED, enforce=enforce)


def run(name, num_steps=60, **kwargs):
    vector = make(name, **kwargs)
    obs, mask = vector.reset()
    actions, steps = play(vector, mask, num_steps)
    return SimpleNamespace(spec=vector.spec, obs=obs, mask=mask, actions=actions, steps=steps)


def assert_same_runs(one, other):
    assert_close(one.obs, other.obs, rtol=0, atol=0)
    assert_close(one.mask, other.mask, rtol=0, atol=0)
    assert_close(one.actions, other.actions, rtol=0, atol=0)
    assert_same_steps(one.steps, other.steps)


def num_episodes(one):
    return sum(len(step.episodes) for step in one.steps)


@pytest.mark.parametrize("where", ["obs", "method"])
@pytest.mark.parametrize("name", ["Corridor", "Grid", "Target", "Counter"])
def test_all_conventions_lead_to_the_same_tensors(name, where):
    expected = run(name, where="info")
    found = run(name, where=where)
    assert expected.spec.games[0].mask_source == "info"
    assert found.spec.games[0].mask_source == where
    assert num_episodes(expected) >= 3
    assert_same_runs(found, expected)


def follow(name, steps_of_one_env, actions, index, **kwargs):
    """Check the steps of one sub-env against the raw env, seeded by hand."""
    env = gym.make(env_id(name), disable_env_checker=True, **kwargs)
    episode = 1
    env.reset(seed=episode_seed(SEED, 0, index, episode))
    for step, action in zip(steps_of_one_env, actions, strict=True):
        obs, reward, terminated, truncated, info = env.step(action)
        assert (step.reward, step.terminated, step.truncated) == (reward, terminated, truncated)
        if terminated or truncated:
            assert np.array_equal(step.final_obs, obs)
            assert np.array_equal(step.final_mask, info["action_mask"])
            episode += 1
            obs, info = env.reset(seed=episode_seed(SEED, 0, index, episode))
        assert np.array_equal(step.obs, obs)
        assert np.array_equal(step.mask, info["action_mask"])
    return episode


def of_env(steps, index):
    """Yield what the steps of a vector env say about one sub-env."""
    for step in steps:
        row = step.ended.tolist().index(index) if index in step.ended else None
        yield SimpleNamespace(
            obs=step.obs[index].numpy(),
            mask=step.action_mask[index].numpy(),
            reward=pytest.approx(step.reward[index].item(), rel=1e-7),
            terminated=step.terminated[index].item(),
            truncated=step.truncated[index].item(),
            final_obs=None if row is None else step.final_obs[row].numpy(),
            final_mask=None if row is None else step.final_action_mask[row].numpy(),
        )


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("Corridor", {"wind": 0.2}), ("Counter", {}), ("Counter", {"last": 4}), ("Grid", {})],
)
def test_a_sub_env_is_the_raw_env_seeded_episode_by_episode(name, kwargs):
    found = run(name, **kwargs)
    for index in range(3):
        actions = [action[index].item() for action in found.actions]
        episodes = follow(name, of_env(found.steps, index), actions, index, **kwargs)
        assert episodes >= 2


def test_episode_seeds_are_distinct():
    places = list(itertools.product((0, 1, 7), (0, 1), range(16), range(1, 30)))
    seeds = [episode_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [episode_seed(*place) for place in places]


@pytest.mark.parametrize(("seed", "stream"), [(SEED + 1, 0), (SEED, 1)])
def test_seed_and_stream_give_other_episodes(seed, stream):
    game = Game(env_id=env_id("Counter"))
    tags = [
        make_vector((game,), 4, s, stream=t).reset()[0][:, 0]
        for s, t in [(SEED, 0), (seed, stream)]
    ]
    assert len(set(torch.cat(tags).tolist())) == 8


def test_the_episodes_of_an_env_do_not_depend_on_the_number_of_envs():
    few, many = make("Corridor", 2, wind=0.2), make("Corridor", 5, wind=0.2)
    assert_close(few.reset()[0], many.reset()[0][:2])
    for _ in range(40):
        right = few.step(torch.ones(2, dtype=torch.int64))
        also_right = many.step(torch.ones(5, dtype=torch.int64))
        assert_close(right.obs, also_right.obs[:2])
        assert_close(right.action_mask, also_right.action_mask[:2])


def test_every_reset_begins_another_episode():
    vector = make("Counter")
    tags = [vector.reset()[0][:, 0] for _ in range(3)]
    assert len(set(torch.cat(tags).tolist())) == 9


@pytest.mark.parametrize("where", PLACES)
def test_masks_and_observations_are_copies(where):
    vector = make("Malformed", aliased=True, where=where)
    obs, mask = vector.reset()
    seen = [(obs, mask, obs.clone(), mask.clone())]
    for _ in range(6):
        step = vector.step(torch.zeros(3, dtype=torch.int64))
        for obs, mask in ((step.obs, step.action_mask), (step.final_obs, step.final_action_mask)):
            seen.append((obs, mask, obs.clone(), mask.clone()))
    for obs, mask, obs_then, mask_then in seen:
        assert_close(obs, obs_then, rtol=0, atol=0)
        assert_close(mask, mask_then, rtol=0, atol=0)


def test_aliased_arrays_are_read_at_the_right_time():
    """The state t = 1..3 shows (t, t) and has t + 1 valid actions; 4 ends and 0 begins again."""
    vector = make("Malformed", num_envs=1, aliased=True)
    vector.reset()
    for t in (1, 2, 3):
        step = vector.step(torch.zeros(1, dtype=torch.int64))
        assert step.obs.tolist() == [[t, t]]
        assert step.action_mask.tolist() == [[True] * (t + 1) + [False] * (3 - t)]
    step = vector.step(torch.zeros(1, dtype=torch.int64))
    assert step.obs.tolist() == [[0, 0]]
    assert step.action_mask.tolist() == [[True, False, False, False]]
    assert step.final_obs.tolist() == [[4, 4]]
    assert step.final_action_mask.tolist() == [[True] * 4]


@pytest.mark.parametrize("name", ["Corridor", "Target", "Counter"])
def test_an_env_without_a_mask_is_all_valid(name):
    vector = make(name, where="none", num_envs=2)
    assert vector.spec.games[0].mask_source == "none"
    _, mask = vector.reset()
    assert mask.shape == (2, vector.spec.action.num_actions)
    assert mask.all()
    for step in play(vector, mask, 30)[1]:
        assert step.action_mask.all()
        assert step.final_action_mask.all()


@pytest.mark.parametrize("start", [5, -3])
def test_discrete_may_start_anywhere(start):
    expected = run("Corridor", wind=0.2)
    assert num_episodes(expected) >= 3
    assert_same_runs(run("Corridor", wind=0.2, start=start), expected)
    assert_same_runs(run("Corridor", wind=0.2, obs_start=start), expected)
    assert_same_runs(run("Corridor", wind=0.2, obs_start=start, where="obs"), expected)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("start", [0, 2])
def test_tuple_and_flat_masks_of_multi_discrete_are_the_same(where, start):
    expected = run("Target")
    assert expected.spec.action.nvec == (3, 2, 4)
    assert num_episodes(expected) >= 3
    layout = "flat" if where == "obs" else "tuple"
    assert_same_runs(run("Target", where=where, layout=layout, start=start), expected)


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("layout", ["flat", "tuple"])
def test_a_part_without_a_valid_action_is_an_error(layout, part):
    vector = make("Target", empty=part, at=3, layout=layout)
    _, mask = vector.reset()
    _, (*_, last) = play(vector, mask, 2)
    with pytest.raises(MaskError, match=f"step 3: part {part} has no valid action"):
        play(vector, last.action_mask, 1)


def test_a_part_of_a_final_state_may_be_empty():
    vector = make("Target", empty=1, at=8)
    _, (*_, last) = play(vector, vector.reset()[1], 8)
    for final in last.final_action_mask:
        parts = final.split((3, 2, 4))
        assert [bool(part.any()) for part in parts] == [True, False, True]


@pytest.mark.parametrize("kwargs", [{}, {"binary": True, "nvec": (2, 2, 2)}])
def test_each_part_of_the_action_reaches_its_part_of_the_env(kwargs):
    """Target's observation is target / nvec, so the right numbers can be read off it."""
    vector = make("Target", **kwargs)
    obs, mask = vector.reset()
    nvec = torch.tensor(vector.spec.action.nvec)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        target = (obs * nvec).round().long()
        action = random_actions(mask, vector.spec.action.nvec, generator)
        step = vector.step(action)
        assert_close(step.reward, (action == target).float().mean(-1))
        obs, mask = step.obs, step.action_mask


def test_binary_actions_are_masked_in_two_values_a_part():
    vector = make("Target", binary=True, nvec=(2, 2, 2), num_envs=1)
    assert vector.spec.action.nvec == (2, 2, 2)
    obs, mask = vector.reset()
    right = (obs[0] * 2).long().tolist()
    assert all(mask[0, 2 * part + value] for part, value in enumerate(right))


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 2), (5, 3, 1)])
def test_images_come_with_channels_last(shape, channels_first):
    height, width, channels = shape
    kwargs = {"height": height, "width": width, "channels": channels}
    vector = make("Grid", channels_first=channels_first, **kwargs)
    obs, mask = vector.reset()
    assert (obs.shape, obs.dtype) == ((3, *shape), torch.uint8)
    for image, valid in zip(obs, mask, strict=True):
        ((row, column),) = (image[:, :, 0] == 255).nonzero().tolist()
        picture = torch.arange(height * width * channels).reshape(shape)
        picture[row, column, 0] = 255
        assert torch.equal(image, picture.byte())
        up_down_left_right = [row > 0, row < height - 1, column > 0, column < width - 1]
        assert valid.tolist() == up_down_left_right


def test_the_order_of_channels_changes_nothing():
    expected = run("Grid")
    assert num_episodes(expected) >= 3
    assert_same_runs(run("Grid", channels_first=True), expected)
    assert Grid().observation_space != Grid(channels_first=True).observation_space


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("final_mask", ["empty", "missing"])
def test_the_mask_of_a_terminated_state_may_be_empty_or_missing(where, final_mask):
    expected = run("Corridor", final_mask="empty")
    found = run("Corridor", final_mask=final_mask, where=where)
    assert_same_runs(found, expected)
    final_masks = torch.cat([step.final_action_mask for step in found.steps])
    assert len(final_masks) >= 3
    assert not final_masks.any()


@pytest.mark.parametrize("where", PLACES)
def test_the_mask_of_a_terminated_state_is_kept_where_there_is_one(where):
    found = run("Corridor", final_mask="full", where=where)
    final_masks = torch.cat([step.final_action_mask for step in found.steps])
    assert len(final_masks) >= 3
    assert final_masks.all()


@pytest.mark.parametrize("where", PLACES)
def test_a_truncated_state_has_to_have_a_mask(where):
    vector = make("Truncated", where=where, num_envs=1)
    vector.reset()
    vector.step(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(MaskError, match=r"env 0, episode 1, step 2: .* has no action mask"):
        vector.step(torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("where", PLACES)
def test_the_mask_of_a_truncated_state_has_a_valid_action(where, vectorization):
    vector = make("Truncated", where=where, num_envs=1, vectorization=vectorization, empty=True)
    try:
        vector.reset()
        vector.step(torch.zeros(1, dtype=torch.int64))
        with pytest.raises(MaskError, match=r"episode 1, step 2: no action is valid, but the ep"):
            vector.step(torch.zeros(1, dtype=torch.int64))
    finally:
        vector.close()


@pytest.mark.parametrize("last", [None, 3, 5])
@pytest.mark.parametrize("where", PLACES)
def test_final_states_are_the_true_successors(where, last):
    """Counter ends at step `last`, and its time limit is 5."""
    end, num_envs = last or 5, 2
    vector = make("Counter", num_envs=num_envs, last=last, where=where)
    tag = vector.reset()[0][:, 0]
    for t in (*range(1, end + 1), *range(1, end + 1)):
        step = vector.step(torch.zeros(num_envs, dtype=torch.int64))
        is_end = t == end
        assert step.reward.tolist() == [t] * num_envs
        assert step.terminated.tolist() == [is_end and last is not None] * num_envs
        assert step.truncated.tolist() == [t == 5] * num_envs
        assert step.ended.tolist() == (list(range(num_envs)) if is_end else [])
        assert step.obs[:, 1].tolist() == [0 if is_end else t] * num_envs
        shown = torch.from_numpy(counter_mask(0 if is_end else t, 3))
        assert torch.equal(step.action_mask, shown.expand(num_envs, 3))
        if is_end:
            assert_close(step.final_obs, torch.stack([tag, torch.full((num_envs,), float(t))], -1))
            final = torch.from_numpy(counter_mask(t, 3))
            assert torch.equal(step.final_action_mask, final.expand(num_envs, 3))
            assert [e.episode_return for e in step.episodes] == [sum(range(end + 1))] * num_envs
            assert [e.episode_length for e in step.episodes] == [end] * num_envs
            assert (step.obs[:, 0] != tag).all()
            tag = step.obs[:, 0]
        else:
            assert torch.equal(step.obs[:, 0], tag)
            assert step.final_obs.shape == (0, 2)
            assert step.final_action_mask.shape == (0, 3)
            assert step.episodes == []


def test_only_those_that_ended_have_final_states():
    found = run("Corridor", num_envs=4)
    some = [step for step in found.steps if 0 < len(step.ended) < 4]
    assert some
    for step in found.steps:
        assert torch.equal(step.ended, (step.terminated | step.truncated).nonzero()[:, 0])
        assert len(step.final_obs) == len(step.final_action_mask) == len(step.ended)
        assert len(step.episodes) == len(step.ended)


def test_types_are_those_of_the_contract():
    found = run("Grid", num_steps=30)
    (step,) = [s for s in found.steps if len(s.ended)][:1]
    names = ("obs", "action_mask", "reward", "terminated", "truncated", "ended", "final_obs")
    dtypes = [getattr(step, name).dtype for name in (*names, "final_action_mask")]
    uint8, bool_, int64 = torch.uint8, torch.bool, torch.int64
    assert dtypes == [uint8, bool_, torch.float32, bool_, bool_, int64, uint8, bool_]


def test_an_invalid_action_is_an_error_that_names_env_and_action():
    env = make_env("Malformed", index=2)  # before the first step only action 0 is valid
    env.reset()
    with pytest.raises(InvalidActionError) as caught:
        env.step(3)
    message = str(caught.value)
    assert message.startswith(f"{env_id('Malformed')}, env 2, episode 1, step 0: action 3 ")
    assert "\n" not in message


@pytest.mark.parametrize("enforce", [True, False])
@pytest.mark.parametrize("action", [-1, 4, 100])
def test_an_action_outside_the_space_is_always_an_error(action, enforce):
    env = make_env("Malformed", enforce=enforce)
    env.reset()
    with pytest.raises(InvalidActionError, match=f"action {action} "):
        env.step(action)


@pytest.mark.parametrize("enforce", [True, False])
@pytest.mark.parametrize("action", [[-1, 0, 0], [0, 2, 0], [3, 0, 0], [0, 0, 4]])
def test_a_part_outside_the_space_is_always_an_error(action, enforce):
    env = make_env("Target", where="none", enforce=enforce)
    env.reset()
    with pytest.raises(InvalidActionError):
        env.step(action)


def test_an_invalid_part_is_an_error():
    env = make_env("Target")
    _, mask = env.reset()
    valid = [mask[0:3].index(1), mask[3:5].index(1), mask[5:9].index(1)]
    for part, start, end in ((0, 0, 3), (1, 3, 5), (2, 5, 9)):
        for value in range(end - start):
            if mask[start + value]:
                continue
            action = [*valid[:part], value, *valid[part + 1 :]]
            with pytest.raises(InvalidActionError, match=rf"action \[{action[0]}, {action[1]}, "):
                env.step(action)
    assert 0 in mask
    env.step(valid)


def test_an_error_of_an_invalid_action_leaves_the_env_as_it_was():
    env = make_env("Malformed")
    env.reset()
    with pytest.raises(InvalidActionError):
        env.step(1)
    obs, *_ = env.step(0)
    assert obs.tolist() == [1, 1]


def test_without_enforcement_invalid_actions_are_counted():
    """In Malformed the actions 0..t are valid at t, so of four times action 2 two are not."""
    env = make_env("Malformed", enforce=False)
    env.reset()
    for invalid in (2, 2, 0):
        action = 2 if invalid else 0
        for _ in range(3):
            assert env.step(action)[-1] is None
        ended = env.step(action)[-1]
        assert ended.episode.invalid_actions == invalid


def test_without_enforcement_invalid_parts_are_counted():
    """Each action is counted once, however many of its parts are invalid."""
    env = make_env("Target", enforce=False)
    _, mask = env.reset()
    invalid, ended = 0, None
    while ended is None:
        invalid += not (mask[0] and mask[3] and mask[5])
        _, mask, *_, ended = env.step([0, 0, 0])
    assert 0 < invalid < 8
    assert ended.episode.invalid_actions == invalid


@pytest.mark.parametrize("fault", ["nan reward", "inf reward"])
def test_a_reward_that_is_no_number_is_an_error(fault):
    env = make_env("Malformed", fault=fault, at=2, index=1)
    env.reset()
    env.step(0)
    with pytest.raises(EnvError, match="Malformed-v0, env 1, episode 1, step 2: the reward is"):
        env.step(0)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_an_observation_of_another_shape_is_an_error(at):
    env = make_env("Malformed", fault="obs shape", at=at)
    with pytest.raises(EnvError, match=rf"step {at}: .* shape \(3,\), its space \(2,\)"):
        env.reset()
        for _ in range(4):
            env.step(0)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_an_observation_that_is_no_number_is_an_error(at):
    env = make_env("Malformed", fault="nan obs", at=at)
    with pytest.raises(EnvError, match=f"step {at}: the observation is not finite"):
        env.reset()
        for _ in range(4):
            env.step(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("value", [0.0, 3.0, -1e15, 1e30])
def test_a_vector_is_read_as_it_is_whatever_its_dtype(dtype, value):
    if dtype == np.int64 and abs(value) > 1e18:
        pytest.skip("no integer of 64 bits")
    shows = np.array([1.0, value], dtype)
    obs, _ = make_env("Spaces", observation=spaces.Box(-np.inf, np.inf, (2,)), shows=shows).reset()
    assert obs.dtype == np.float32
    assert obs.tolist() == shows.astype(np.float32).tolist()
    assert not np.shares_memory(obs, shows)


WRONG_OBS = {
    "vector": (spaces.Box(0, 1, (4,)), np.zeros((1, 4))),
    "matrix": (spaces.Box(0, 1, (2, 3)), np.zeros((3, 2))),
    "scalar": (spaces.Box(0, 1, (2,)), np.float32(0)),
    "image": (spaces.Box(0, 255, (4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)),
    "channels first": (spaces.Box(0, 255, (3, 4, 5), np.uint8), np.zeros((4, 5, 3), np.uint8)),
    "too large": (spaces.Discrete(3), 3),
    "too small": (spaces.Discrete(3, start=2), 1),
}


@pytest.mark.parametrize("kind", WRONG_OBS)
def test_an_observation_outside_its_space_is_an_error(kind):
    space, shows = WRONG_OBS[kind]
    with pytest.raises(EnvError, match="Spaces-v0"):
        make_env("Spaces", observation=space, shows=shows).reset()


@pytest.mark.parametrize("name", ["Corridor", "Counter", "Grid", "Target"])
def test_an_unfinished_episode_is_played_again(name):
    env = make_env(name)
    generator = torch.Generator().manual_seed(0)
    obs, mask = env.reset()
    twin = make_env(name)
    for _ in range(30):
        state = env.capture()
        again, its_mask, same = twin.restore(state)
        assert same
        assert np.array_equal(again, obs)
        assert its_mask == mask
        valid = torch.tensor(list(mask)).bool()[None]
        action = random_actions(valid, env.spec.action.nvec, generator)[0].tolist()
        obs, mask, *rest = env.step(action)
        twin_obs, twin_mask, *twin_rest = twin.step(action)
        assert np.array_equal(twin_obs, obs)
        assert twin_mask == mask
        assert twin_rest[:3] == rest[:3]
        assert (rest[3] is None) == (twin_rest[3] is None)


def test_a_captured_state_stays_as_it_is():
    env = make_env("Malformed", aliased=True)
    env.reset()
    env.step(0)
    state = env.capture()
    then = {key: np.array(value) for key, value in state.items()}
    for _ in range(6):
        env.step(0)
    assert state.keys() == then.keys()
    for key, value in state.items():
        assert np.array_equal(value, then[key])


def test_invalid_actions_are_still_counted_after_a_restore():
    env = make_env("Malformed", enforce=False)
    env.reset()
    env.step(2)
    env.step(2)  # both invalid: 0, then 0 and 1 are valid
    twin = make_env("Malformed", enforce=False)
    assert twin.restore(env.capture())[2]
    twin.step(2)
    ended = twin.step(2)[-1]
    assert (ended.episode.invalid_actions, ended.episode.episode_length) == (2, 4)


def test_what_an_env_says_in_gymnasiums_words_is_one_line():
    with pytest.raises(EnvError, match="Breaks-v0: the opponent failed at a reset"):
        join((Game(env_id=env_id("Breaks"), env_kwargs={"reset": 1}),))
    env = make_env("Breaks", step=2)
    env.reset()
    env.step(0)
    with pytest.raises(EnvError, match=r"Breaks-v0, env 0, .* step \d: the opponent failed"):
        env.step(0)
    env = make_env("Breaks", reset=2)
    env.reset()
    with pytest.raises(EnvError, match="episode 2, step 0: the opponent failed at a reset"):
        env.reset()
