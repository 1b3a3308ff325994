from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from envs_for_tests import NativeSpaces, assert_same_steps, counter_mask, env_id, play
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from torch.testing import assert_close

from rlmask.ops import InvalidActionError
from rlmask.vector import (
    EnvError,
    Game,
    MaskError,
    ReplayWarning,
    SpaceError,
    episode_seed,
    make_vector,
)
from rlmask.vector.spaces import obs_spec

PLACES = ["info", "obs", "method"]
NUM_ENVS, SEED = 4, 3
REPEAT = torch.zeros(NUM_ENVS, dtype=torch.int64)


def make(
    name, mask_source="auto", seed=SEED, stream=0, num_actions=None, action_ids=None, **kwargs
):
    game = Game(
        env_id=f"rlmask-tests/{name}-v0",
        env_kwargs=kwargs,
        mask_source=mask_source,
        action_ids=action_ids,
    )
    return make_vector(
        (game,), NUM_ENVS, seed, vectorization="native", stream=stream, num_actions=num_actions
    )


def masks_of(obs):
    """The masks of Counters, which can be read off its observations (tag, t)."""
    return torch.from_numpy(np.array([counter_mask(int(t), 3) for t in obs[:, 1]]))


def test_an_id_may_import_its_module():
    game = Game(env_id=env_id("Counters"))
    obs, _ = make_vector((game,), 2, 0, vectorization="native").reset()
    assert obs.shape == (2, 2)


@pytest.mark.parametrize("where", PLACES)
def test_episodes_restart_within_the_step(where):
    vector = make("Counters", where=where)
    assert vector.spec.games[0].mask_source == where
    obs, mask = vector.reset()
    ends = {"terminated": 0, "truncated": 0}
    assert torch.equal(mask, masks_of(obs))
    for step in play(vector, mask, 60)[1]:
        successor = obs + torch.tensor([0, 1])  # same tag, next t
        ended = step.terminated | step.truncated
        assert torch.equal(step.ended, ended.nonzero()[:, 0])
        assert torch.equal(step.reward, successor[:, 1])
        assert torch.equal(step.obs[~ended], successor[~ended])
        assert torch.equal(step.final_obs, successor[ended])
        assert (step.obs[ended, 1] == 0).all()
        assert (step.obs[ended, 0] != obs[ended, 0]).all()
        assert torch.equal(step.action_mask, masks_of(step.obs))
        assert torch.equal(step.final_action_mask, masks_of(successor)[ended])
        for episode, t in zip(step.episodes, step.final_obs[:, 1].tolist(), strict=True):
            assert (episode.episode_length, episode.game) == (t, 0)
            assert episode.episode_return == t * (t + 1) / 2  # 1 + ... + t
        assert (step.final_obs[:, 1] % 2 == 0).equal(step.terminated[ended])
        ends["terminated"] += int(step.terminated.sum())
        ends["truncated"] += int(step.truncated.sum())
        obs = step.obs
    assert min(ends.values()) >= 5


def test_all_conventions_lead_to_the_same_tensors():
    runs = {}
    for where in PLACES:
        vector = make("Counters", where=where)
        runs[where] = play(vector, vector.reset()[1], 40)
    for where in PLACES:
        assert_close(runs[where][0], runs["info"][0], rtol=0, atol=0)
    assert_same_steps(runs["obs"][1], runs["info"][1])


def test_an_env_without_a_mask_is_all_valid():
    vector = make("Counters", where="none")
    assert vector.spec.games[0].mask_source == "none"
    _, mask = vector.reset()
    assert mask.shape == (NUM_ENVS, 3)
    assert mask.all()
    for step in play(vector, mask, 20)[1]:
        assert step.action_mask.all()
        assert step.final_action_mask.all()


def test_types_are_those_of_the_contract():
    vector = make("Counters")
    obs, mask = vector.reset()
    assert (obs.dtype, mask.dtype) == (torch.float32, torch.bool)
    step = play(vector, mask, 6)[1][-1]
    names = ("obs", "action_mask", "reward", "terminated", "truncated", "ended", "final_obs")
    dtypes = [getattr(step, name).dtype for name in (*names, "final_action_mask")]
    float32, bool_, int64 = torch.float32, torch.bool, torch.int64
    assert dtypes == [float32, bool_, float32, bool_, bool_, int64, float32, bool_]


@pytest.mark.parametrize("where", PLACES)
def test_all_tensors_are_copies(where):
    """Counters uses its arrays again at every step."""
    vector = make("Counters", where=where)
    first = SimpleNamespace(**dict(zip(("obs", "action_mask"), vector.reset(), strict=True)))
    seen = [(first, deepcopy(first))]
    mask = first.action_mask
    for _ in range(10):
        (step,) = play(vector, mask, 1)[1]
        seen.append((step, deepcopy(step)))
        mask = step.action_mask
    for step, then in seen:
        for name, value in vars(then).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(step, name), value), name


def first_obs(**kwargs):
    return make("Counters", **kwargs).reset()[0]


def test_the_seed_says_what_happens():
    assert torch.equal(first_obs(), first_obs())
    tags = [first_obs(), first_obs(seed=SEED + 1), first_obs(stream=1)]
    assert len(set(torch.cat(tags)[:, 0].tolist())) == 3 * NUM_ENVS


def test_every_reset_begins_other_episodes():
    vector = make("Counters")
    tags = [vector.reset()[0][:, 0] for _ in range(3)]
    assert len(set(torch.cat(tags).tolist())) == 3 * NUM_ENVS


def test_a_restored_run_goes_on_to_the_last_bit():
    vector = make("CountersWithState")
    last = play(vector, vector.reset()[1], 33)[1][-1]
    assert not (last.terminated | last.truncated).all()  # in the middle of an episode
    state = vector.capture()
    actions, steps = play(vector, last.action_mask, 300, seed=1)
    for twin in (make("CountersWithState"), vector):  # a state can be used again
        obs, mask = twin.restore(state)
        assert_close(obs, last.obs, rtol=0, atol=0)
        assert_close(mask, last.action_mask, rtol=0, atol=0)
        its_actions, its_steps = play(twin, mask, 300, seed=1)
        assert_close(its_actions, actions, rtol=0, atol=0)
        assert_same_steps(its_steps, steps)
    twin = make("CountersWithState")
    twin.restore(state)
    assert torch.equal(vector.reset()[0], twin.reset()[0])


def test_an_env_that_cannot_save_its_state_is_warned_of():
    vector = make("Counters")
    obs, mask = vector.reset()
    play(vector, mask, 7)
    with pytest.warns(ReplayWarning, match=r"Counters-v0 .* capture_state") as caught:
        its_obs, its_mask = make("Counters").restore(vector.capture())
    assert len(caught) == 1
    assert (its_obs[:, 1] == 0).all()
    assert torch.equal(its_mask, masks_of(its_obs))
    assert not set(its_obs[:, 0].tolist()) & set(obs[:, 0].tolist())  # not the first ones again


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_other_modes_of_autoreset_are_refused(mode):
    with pytest.raises(EnvError) as caught:
        make("Counters", mode=mode)
    message = str(caught.value)
    assert "rlmask-tests/Counters-v0" in message
    assert mode in message
    assert "SameStep in env_kwargs" in message
    assert "vectorization to `sync`" in message
    assert "\n" not in message


def test_an_env_without_a_vector_env_is_refused():
    with pytest.raises(EnvError, match=r"Counter-v0 has no vector env .* `sync`"):
        make("Counter")


def test_a_union_is_refused_rather_than_ignored():
    """The first actions of the union are not the actions of the env: environments.md, trap 9."""
    with pytest.raises((EnvError, SpaceError)):
        make("Counters", action_ids=(4, 1, 2))
    with pytest.raises((EnvError, SpaceError)):
        make("Counters", num_actions=6)
    assert make("Counters", num_actions=3).spec.action.num_actions == 3


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [("NoSuchGame", {}, "NoSuchGame"), ("Counters", {"lenght": 3}, "lenght")],
)
def test_what_cannot_be_made_is_an_error_of_one_line(name, kwargs, message):
    with pytest.raises(EnvError) as caught:
        make(name, **kwargs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


FAULTS = {
    "two": "0 and 1",
    "half": "the masks are float32",
    "empty": "no action is valid",
    "missing": "the masks are NoneType",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", PLACES)
def test_a_faulty_mask_is_an_error(where, fault):
    vector = make("Counters", where=where, fault=fault)
    vector.reset()
    with pytest.raises(MaskError, match=FAULTS[fault]) as caught:
        vector.step(REPEAT)
    message = str(caught.value)
    assert message.startswith("rlmask-tests/Counters-v0, ")
    assert "step 1: " in message
    assert "\n" not in message


@pytest.mark.parametrize("fault", ["two", "empty"])
def test_a_faulty_mask_is_that_of_the_env_that_is_named(fault):
    vector = make("Counters", fault=fault)
    vector.reset()
    with pytest.raises(MaskError, match=f"env {NUM_ENVS - 1}, "):
        vector.step(REPEAT)


def test_a_reward_that_is_no_number_is_an_error_that_names_the_env():
    vector = make("Counters", fault="nan")
    vector.reset()
    with pytest.raises(EnvError, match=rf"Counters-v0, env {NUM_ENVS - 1}, .*step 1: "):
        vector.step(REPEAT)


def test_an_end_without_a_final_observation_is_an_error():
    vector = make("Counters", fault="no final_obs")
    _, mask = vector.reset()
    with pytest.raises(EnvError, match="final_obs"):
        play(vector, mask, 7)  # an episode has 6 steps at most


@pytest.mark.parametrize(
    ("where", "fault", "words"),
    [
        *((where, "empty final_mask", "no action is valid") for where in PLACES),
        *((where, "no final_mask", "a truncated state has no") for where in ("info", "method")),
    ],
)
def test_a_truncated_state_has_to_have_a_mask_with_a_valid_action(where, fault, words):
    vector = make("Counters", where=where, fault=fault)
    _, mask = vector.reset()
    with pytest.raises(MaskError, match=words):
        play(vector, mask, 100)


@pytest.mark.parametrize("named", [*PLACES, "none"])
@pytest.mark.parametrize("where", [*PLACES, "none"])
def test_a_wrong_source_is_an_error_that_names_the_right_one(named, where):
    if named == where:
        _, mask = make("Counters", where=where, mask_source=named).reset()
        assert mask.shape == (NUM_ENVS, 3)
        return
    with pytest.raises(MaskError) as caught:
        make("Counters", where=where, mask_source=named).reset()
    assert "rlmask-tests/Counters-v0" in str(caught.value)
    assert f"set mask_source to `{where}`" in str(caught.value).lower()


def test_an_invalid_action_is_refused_before_the_env_sees_it():
    vector = make("Counters")
    vector.reset()  # at t = 0 all are valid, at t = 1 only action 0
    vector.step(REPEAT)
    with pytest.raises(InvalidActionError, match=r"Counters-v0, env 2, .*action 1 is invalid"):
        vector.step(torch.tensor([0, 0, 1, 0]))
    with pytest.raises(InvalidActionError, match=r"env 1, .*action -1 "):
        vector.step(torch.tensor([0, -1, 0, 0]))


def test_an_invalid_action_is_counted_where_masks_are_not_enforced():
    game = Game(env_id="rlmask-tests/NativeSpaces-v0", env_kwargs={"mask": [[1, 0, 1]] * NUM_ENVS})
    vector = make_vector((game,), NUM_ENVS, SEED, vectorization="native", enforce=False)
    vector.reset()
    vector.step(torch.tensor([1, 0, 2, 1]))
    episodes = vector.step(torch.tensor([1, 1, 2, 0])).episodes
    assert [episode.invalid_actions for episode in episodes] == [2, 1, 0, 1]


OBSERVATIONS = [
    spaces.Discrete(5, start=2),
    spaces.Box(0, 255, (3, 4, 5), np.uint8),
    spaces.Box(-1, 1, (4, 5, 3), np.float64),
    spaces.Box(-1, 1, (2, 3), np.float32),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Dict({"board": spaces.Box(0, 1, (2, 2)), "clock": spaces.Discrete(3)}),
    spaces.Tuple((spaces.MultiBinary(2), spaces.Box(0, 1, (1,)))),
]


@pytest.mark.parametrize("space", OBSERVATIONS, ids=str)
def test_observations_become_what_their_space_becomes(space):
    vector = make("NativeSpaces", observation=space)
    expected_spec, convert = obs_spec(space)
    assert vector.spec.obs == expected_spec
    obs, _ = vector.reset()
    first, second = vector.step(REPEAT), vector.step(REPEAT)

    batch = batch_space(space, NUM_ENVS)
    batch.seed(episode_seed(SEED, 0, 0, 1))
    for tensor in (obs, first.obs, second.final_obs, second.obs):
        rows = [np.array(convert(one)) for one in iterate(batch, batch.sample())]
        expected = torch.from_numpy(np.array(rows)).to(expected_spec.torch_dtype)
        assert_close(tensor, expected, rtol=0, atol=0)


ACTIONS = [
    (spaces.Discrete(3, start=7), [0, 1, 2, 0], [7, 8, 9, 7]),
    (
        spaces.MultiDiscrete([3, 2], start=[1, 5]),
        [[0, 0], [1, 1], [2, 0], [0, 1]],
        [[1, 5], [2, 6], [3, 5], [1, 6]],
    ),
    (spaces.MultiBinary(2), [[0, 0], [1, 1], [1, 0], [0, 1]], [[0, 0], [1, 1], [1, 0], [0, 1]]),
    (spaces.MultiDiscrete([3], start=[4]), [0, 1, 2, 0], [[4], [5], [6], [4]]),
]


@pytest.mark.parametrize(("space", "action", "expected"), ACTIONS, ids=lambda x: str(x)[:20])
def test_actions_come_to_the_env_in_its_own_terms(space, action, expected, monkeypatch):
    monkeypatch.setattr(NativeSpaces, "taken", [])
    vector = make("NativeSpaces", action=space)
    vector.reset()
    vector.step(torch.tensor(action))
    (taken,) = NativeSpaces.taken
    assert taken.tolist() == expected


PARTS = [[1, 0, 0, 1, 1], [0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]]  # of 3 and 2 actions


def test_masks_of_several_parts_are_flat():
    vector = make("NativeSpaces", action=spaces.MultiDiscrete([3, 2]), mask=PARTS)
    _, mask = vector.reset()
    expected = torch.tensor(PARTS).bool()
    assert torch.equal(mask, expected)
    for step in play(vector, mask, 4)[1]:
        assert torch.equal(step.action_mask, expected)


@pytest.mark.parametrize(("env", "part", "first", "last"), [(2, 0, 0, 3), (1, 1, 3, 5)])
def test_a_part_without_a_valid_action_is_an_error(env, part, first, last):
    masks = deepcopy(PARTS)
    masks[env][first:last] = [0] * (last - first)
    vector = make("NativeSpaces", action=spaces.MultiDiscrete([3, 2]), mask=masks)
    with pytest.raises(MaskError, match=f"env {env}, .*part {part} has no valid action"):
        vector.reset()
