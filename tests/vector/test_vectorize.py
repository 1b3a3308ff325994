import multiprocessing
import os
import signal
import time

import envs_for_tests
import gymnasium as gym
import numpy as np
import pytest
import torch
from envs_for_tests import assert_same_steps, env_id, play
from torch.testing import assert_close

from rlmask.ops import InvalidActionError
from rlmask.vector import (
    EnvError,
    Game,
    MaskError,
    ReplayWarning,
    make_vector,
)

KINDS = ["sync", pytest.param("async", marks=pytest.mark.slow)]
GAMES = [
    ("Corridor", {"wind": 0.2}),
    ("Counter", {"where": "obs"}),
    ("Grid", {"where": "method"}),
    ("Target", {"layout": "tuple"}),
]
REPEAT = torch.zeros(2, dtype=torch.int64)


@pytest.fixture
def make():
    vectors = []

    def make(name, vectorization, num_envs=2, enforce=True, **kwargs):
        game = Game(env_id=env_id(name), env_kwargs=kwargs)
        vector = make_vector((game,), num_envs, 5, vectorization=vectorization, enforce=enforce)
        vectors.append(vector)
        return vector

    yield make
    for vector in vectors:
        vector.close()


def workers():
    return multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), GAMES)
def test_sync_and_async_are_equal_to_the_last_bit(make, name, kwargs):
    runs = []
    for kind in ("sync", "async"):
        vector = make(name, kind, **kwargs)
        obs, mask = vector.reset()
        obs, mask = vector.reset()  # the second episodes, for the sake of reset
        actions, steps = play(vector, mask, 60)
        runs.append((vector.spec, obs, mask, actions, steps))
    (spec, obs, mask, actions, steps), (its_spec, *others) = runs
    assert spec == its_spec
    assert sum(len(step.episodes) for step in steps) >= 3
    assert_close([obs, mask, actions], others[:3], rtol=0, atol=0)
    assert_same_steps(others[3], steps)


def play_to_the_middle(vector):
    """Play 33 steps, into the middle of an episode; return the mask and the state."""
    mask = play(vector, vector.reset()[1], 33)[1][-1].action_mask
    state = vector.capture()
    assert any(len(env["actions"]) for env in state)
    return mask, state


def assert_goes_on(twin, mask, state, expected):
    """A vector env in that state plays on as the one that was not disturbed."""
    assert_close(twin.restore(state)[1], mask, rtol=0, atol=0)
    actions, steps = play(twin, mask, 300, seed=1)
    assert_close(actions, expected[0], rtol=0, atol=0)
    assert_same_steps(steps, expected[1])


@pytest.mark.parametrize(("name", "kwargs"), GAMES)
def test_a_restored_run_goes_on_to_the_last_bit(make, name, kwargs):
    vector = make(name, "sync", **kwargs)
    mask, state = play_to_the_middle(vector)
    expected = play(vector, mask, 300, seed=1)
    assert sum(len(step.episodes) for step in expected[1]) >= 10
    assert_goes_on(make(name, "sync", **kwargs), mask, state, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), [GAMES[0], GAMES[3]])
def test_it_does_so_across_processes(make, name, kwargs):
    vector, elsewhere = make(name, "sync", **kwargs), make(name, "async", **kwargs)
    mask, state = play_to_the_middle(vector)
    expected = play(vector, mask, 300, seed=1)
    its_mask, its_state = play_to_the_middle(elsewhere)
    assert torch.equal(its_mask, mask)
    for env, other in zip(state, its_state, strict=True):
        assert env.keys() == other.keys()
        assert all(np.array_equal(env[key], other[key]) for key in env)
    assert_goes_on(make(name, "sync", **kwargs), mask, its_state, expected)
    assert_goes_on(make(name, "async", **kwargs), mask, state, expected)


@pytest.mark.parametrize(("name", "kwargs"), GAMES)
def test_restore_shows_what_was_to_be_seen(make, name, kwargs):
    vector = make(name, "sync", **kwargs)
    last = play(vector, vector.reset()[1], 33)[1][-1]
    state = vector.capture()
    play(vector, last.action_mask, 50)
    for _ in range(2):  # a state can be used again
        obs, mask = vector.restore(state)
        assert_close(obs, last.obs, rtol=0, atol=0)
        assert_close(mask, last.action_mask, rtol=0, atol=0)


def test_a_state_of_the_first_reset_can_be_restored(make):
    vector = make("Counter", "sync")
    obs, mask = vector.reset()
    obs_again, mask_again = make("Counter", "sync").restore(vector.capture())
    assert_close(obs_again, obs)
    assert_close(mask_again, mask)


def leaves(tree):
    if isinstance(tree, dict):
        assert all(isinstance(key, str) for key in tree)
        tree = list(tree.values())
    if isinstance(tree, list):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_holds_what_a_checkpoint_can_hold(make, kind):
    vector = make("Target", kind)
    play(vector, vector.reset()[1], 5)
    for leaf in leaves(vector.capture()):
        assert isinstance(leaf, (np.ndarray, int, float, str))
        assert not isinstance(leaf, np.ndarray) or leaf.dtype.kind in "biuf"


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_number_of_envs_is_refused(make, kind):
    vector = make("Counter", "sync", num_envs=3)
    vector.reset()
    with pytest.raises(ValueError):
        make("Counter", kind, num_envs=2).restore(vector.capture())


@pytest.mark.parametrize("kind", KINDS)
def test_an_env_that_ignores_its_seed_is_warned_of(make, kind):
    vector = make("NonDeterministic", kind, what="obs")
    play(vector, vector.reset()[1], 10)
    state = vector.capture()
    with pytest.warns(ReplayWarning, match="NonDeterministic-v0: .* 2 of 2 envs") as caught:
        _, mask = make("NonDeterministic", kind, what="obs").restore(state)
    assert len(caught) == 1
    assert mask.all()


def test_only_the_envs_that_differ_are_counted(make):
    vector = make("Counter", "sync", num_envs=3)
    vector.reset()
    state = vector.capture()
    state[1]["obs"] = state[1]["obs"] + 1
    with pytest.warns(ReplayWarning, match=r"1 of 3 envs \(first: env 1\)"):
        vector.restore(state)


def test_other_masks_in_the_replay_are_warned_of(make):
    vector = make("NonDeterministic", "sync", what="mask")
    play(vector, vector.reset()[1], 30)
    with pytest.warns(ReplayWarning):
        _, mask = vector.restore(vector.capture())
    play(vector, mask, 30)  # and goes on


def test_an_end_in_the_replay_is_warned_of(make, monkeypatch):
    vector = make("NonDeterministic", "sync", what="length")
    mask = play(vector, vector.reset()[1], 30)[1][-1].action_mask
    monkeypatch.setattr(envs_for_tests.NonDeterministic, "length", 10)
    with pytest.warns(ReplayWarning):
        obs, its_mask = vector.restore(vector.capture())
    assert obs.shape == (2, 4)
    assert torch.equal(its_mask, mask)
    steps = play(vector, its_mask, 20)[1]
    assert [e.episode_length for step in steps for e in step.episodes] == [10] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_actions_are_counted_everywhere(make, kind):
    """In Malformed the actions 0..t are valid at t: of four times action 2 two are not."""
    vector = make("Malformed", kind, enforce=False)
    vector.reset()
    for _ in range(4):
        step = vector.step(torch.tensor([2, 0]))
    assert [episode.invalid_actions for episode in step.episodes] == [2, 0]


ERRORS = [
    ("two", MaskError, "Malformed-v0, env 0, episode 1, step 2: entry 1 of the mask is 2"),
    ("error", RuntimeError, "the game is broken"),
    ("error with %", RuntimeError, "the game is quite broken"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fault", "error", "message"), ERRORS)
def test_errors_come_through_as_they_are(make, kind, fault, error, message):
    vector = make("Malformed", kind, fault=fault, at=2)
    vector.reset()
    vector.step(REPEAT)
    with pytest.raises(error, match=message):
        vector.step(REPEAT)
    vector.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_invalid_action_of_the_second_env_is_named(make, kind):
    vector = make("Malformed", kind)
    vector.reset()
    with pytest.raises(InvalidActionError, match=r"Malformed-v0, env 1, .* action 3 "):
        vector.step(torch.tensor([0, 3]))


@pytest.mark.slow
def test_errors_of_the_first_reset_come_through(make):
    vector = make("Malformed", "async", fault="two", at=0)
    with pytest.raises(MaskError, match="step 0: entry 1 of the mask is 2"):
        vector.reset()


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_within_seconds(make):
    vector = make("Malformed", "async", fault="death", at=2)
    vector.reset()
    vector.step(REPEAT)
    start = time.monotonic()
    with pytest.raises(EnvError, match=r"a worker process of .*Malformed-v0 died"):
        vector.step(REPEAT)
    vector.close()
    assert time.monotonic() - start < 5
    assert not workers()


CALLS = {
    "step": lambda vector, state: vector.step(REPEAT),
    "reset": lambda vector, state: vector.reset(),
    "capture": lambda vector, state: vector.capture(),
    "restore": lambda vector, state: vector.restore(state),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_a_killed_worker_is_an_error_of_every_call(make, call):
    vector = make("Counter", "async")
    vector.reset()
    state = vector.capture()
    killed = workers()[-1]
    killed.kill()
    killed.join()
    start = time.monotonic()
    with pytest.raises(EnvError, match=r"a worker process of .*Counter-v0 died"):
        CALLS[call](vector, state)
    vector.close()
    assert time.monotonic() - start < 5
    assert not workers()


@pytest.mark.slow
def test_ctrl_c_is_left_to_the_parent(make):
    vector = make("Counter", "async")
    vector.reset()
    for worker in workers():
        os.kill(worker.pid, signal.SIGINT)
    assert vector.step(REPEAT).reward.tolist() == [1, 1]
    assert len(workers()) == 2
    vector.close()
    assert not workers()


@pytest.mark.slow
def test_an_id_that_the_workers_do_not_know_is_an_error():
    name = "rlmask-tests/KnownInThisProcess-v0"
    gym.register(name, entry_point="envs_for_tests:Counter")
    try:
        with pytest.raises(EnvError, match=name):
            make_vector((Game(env_id=name),), 2, 0, vectorization="async")
    finally:
        gym.registry.pop(name)
    assert not workers()


@pytest.mark.parametrize("num_envs", [0, -1])
def test_there_has_to_be_an_env(num_envs):
    with pytest.raises(ValueError, match="num_envs"):
        make_vector((Game(env_id=env_id("Counter")),), num_envs, 0)


def test_there_has_to_be_a_game():
    with pytest.raises(ValueError, match="game"):
        make_vector((), 2, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("always", [True, False])
def test_what_an_env_says_of_the_taken_actions(make, kind, always):
    vector = make("Telling", kind, num_envs=3, always=always)
    vector.reset()
    invalid, lengths = torch.zeros(3, dtype=torch.int64), []
    for t in range(1, 11):
        action = torch.tensor([0, 2, 2 if t % 3 == 0 else 1])
        step = vector.step(action)
        assert step.action_valid.dtype == torch.bool
        assert step.action_valid.tolist() == (action != 2).tolist()
        invalid += ~step.action_valid
        assert step.action_mask.all()  # it has none
        if step.episodes:
            lengths.append([episode.episode_length for episode in step.episodes])
            assert [episode.invalid_actions for episode in step.episodes] == invalid.tolist()
            invalid.zero_()
    assert lengths == [[5, 5, 5], [5, 5, 5]]


@pytest.mark.parametrize("kind", KINDS)
def test_all_actions_of_an_env_that_says_nothing_are_valid(make, kind):
    vector = make("Corridor", kind)
    _, steps = play(vector, vector.reset()[1], 30)
    assert all(step.action_valid.tolist() == [True, True] for step in steps)
    assert not any(episode.invalid_actions for step in steps for episode in step.episodes)


@pytest.mark.parametrize("says", [0, None, np.array([False]), "no"])
def test_what_is_neither_true_nor_false_is_an_error(make, says):
    vector = make("Telling", "sync", says=says)
    vector.reset()
    with pytest.raises(EnvError, match=r"info\['action_valid'\] is .* give True or False"):
        vector.step(REPEAT + 2)


def test_numpys_bool_is_one(make):
    vector = make("Telling", "sync", says=np.False_)
    vector.reset()
    assert vector.step(torch.tensor([2, 0])).action_valid.tolist() == [False, True]
    assert vector.step(torch.tensor([0, 2])).action_valid.tolist() == [True, False]


def test_it_is_known_again_after_a_restore(make):
    vector, twin = make("Telling", "sync"), make("Telling", "sync")
    vector.reset()
    vector.step(REPEAT + 2)
    twin.restore(vector.capture())
    for action in (0, 2, 0, 2):
        one, other = vector.step(REPEAT + action), twin.step(REPEAT + action)
        assert_same_steps([one], [other])
    assert [episode.invalid_actions for episode in other.episodes] == [3, 3]
