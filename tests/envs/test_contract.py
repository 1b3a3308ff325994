"""What every native game has to keep, whichever it is."""

import ast
import copy
import importlib
import inspect
import pickle
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import FunctionType

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_array_equal
from playing import draw, env_id, make_vec, play

import rlmask_envs
from rlmask import vector
from rlmask_envs import InvalidActionError, compiled, rules
from rlmask_envs.crew import Crew

NATIVE = "rlmask_envs.envs:GameEnv"
SPECS = {spec.name: spec for spec in gym.registry.values() if spec.entry_point == NATIVE}
GAMES = sorted(SPECS)
SUITE = ["Courier", "Game2048", "Snake", "Sokoban", "Tetris"]
SMALL = {  # other sizes, in which episodes end sooner
    "Adventure": {"world": 3, "num_uses": 1},
    "CVRP": {"num_customers": 5, "capacity": 15},
    "ConnectFour": {"height": 4, "width": 5, "opponent": "heuristic"},
    "Courier": {"height": 7, "width": 8, "num_doors": 1},
    "Game2048": {"size": 3},
    "JobShop": {"instance": "ft06"},
    "Minesweeper": {"height": 5, "width": 4, "num_mines": 4},
    "Othello": {"opponent": "heuristic", "seat": "second"},
    "Snake": {"height": 4, "width": 5},
    "Sokoban": {"height": 6, "width": 7, "num_boxes": 1},
    "TMaze": {"num_doors": 2, "corridor_length": 3},
    "Tetris": {"height": 8, "width": 6},
}


@pytest.fixture(params=GAMES)
def name(request):
    return request.param


def module_of(name):
    return importlib.import_module(SPECS[name].kwargs["game"])


def test_the_games_are_there():
    others = {"Adventure", "CVRP", "ConnectFour", "JobShop", "Minesweeper", "Othello", "TMaze"}
    assert set(GAMES) == set(SMALL) == {*SUITE, *others}


def test_it_keeps_rlmasks_contract(name):
    findings = vector.check_env(vector.Game(env_id=env_id(name)), 200, 0)
    assert not [finding for finding in findings if finding.level == "error"], findings
    for text in ("mask found in `info`", "resume is exact", "refuses an invalid", "its own vector"):
        assert any(one.level == "ok" and text in one.text for one in findings), (text, findings)


@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum) value is")
def test_gymnasium_accepts_it(name):
    env = gym.make(env_id(name), disable_env_checker=True).unwrapped
    step, masks = env.step, env._batch.masks
    env.step = lambda _: step(int(masks[0].argmax()))  # the checker knows no masks
    check_env(env, skip_render_check=True)
    env.close()


def reference_of(name):
    return importlib.import_module(f"reference_games.{module_of(name).__name__.split('.')[1]}")


@pytest.mark.parametrize("sizes", ["default", "small"])
def test_every_mask_agrees_with_brute_force(name, sizes):
    reference = reference_of(name)
    envs = make_vec(name, 8, **({} if sizes == "default" else SMALL[name]))
    options, states = envs.options, envs.states
    first = envs.reset(seed=0)[1]["action_mask"]
    for row, state in zip(first, states, strict=True):
        assert_array_equal(row, reference.valid(state, options))
    for *_, info in play(envs, 150):
        mask = info["action_mask"]
        for row, state in zip(mask, states, strict=True):
            assert_array_equal(row, reference.valid(state, options))
        assert mask.any(-1).all()


def test_masks_of_truncated_states_agree_with_brute_force(name):
    """The same play with and without a limit of one step: what is final there goes on here."""
    reference = reference_of(name)
    plain, cut = make_vec(name, 32), make_vec(name, 32, max_episode_steps=1)
    rng = np.random.default_rng(0)
    _, info = plain.reset(seed=0)
    cut.reset(seed=1)
    options, states, seen = plain.options, plain.states, 0
    for _ in range(20):
        cut.restore_state(plain.capture_state() | {"steps": np.zeros(32, np.int64)})
        action = draw(info["action_mask"], rng)
        *_, terminated, truncated, cut_info = cut.step(action)
        assert truncated.all()
        obs, _, own_terminated, _, info = plain.step(action)
        assert_array_equal(terminated, own_terminated)
        for i in np.flatnonzero(~terminated):
            assert_array_equal(cut_info["final_obs"][i], obs[i])
            final_mask = cut_info["final_info"]["action_mask"][i]
            assert_array_equal(final_mask, reference.valid(states[i], options))
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("sizes", ["default", "small"])
def test_arrays_fit_their_spaces(name, sizes):
    envs = make_vec(name, 8, **({} if sizes == "default" else SMALL[name]))
    space, num_actions = envs.single_observation_space, envs.single_action_space.n
    ends = 0
    for _, obs, reward, terminated, truncated, info in play(envs, 400, seed=1):
        assert all(one in space for one in obs)
        assert info["action_mask"].shape == (8, num_actions)
        assert info["action_mask"].dtype == np.int8
        assert set(np.unique(info["action_mask"])) <= {0, 1}
        assert reward.shape == (8,) and np.isfinite(reward).all()
        ended = terminated | truncated
        ends += ended.sum()
        assert ("final_obs" in info) == ended.any()
        if ended.any():
            assert_array_equal(info["_final_obs"], ended)
            assert all(one in space for one in info["final_obs"][ended])
            goes_on = truncated & ~terminated
            assert info["final_info"]["action_mask"][goes_on].any(-1).all()
            assert_array_equal(info["final_info"]["_action_mask"], ended)
            assert not info["final_obs"][~ended].any()
        assert info["_action_mask"].all()
    assert ends or sizes == "default"


def test_same_seed_same_trajectories_for_any_number_of_threads_and_copies(name):
    rng = np.random.default_rng(0)
    settings = [{"num_threads": 1}, {"num_threads": 3}, {"copy": False}, {"num_envs": 24}]
    all_envs = [make_vec(name, **{"num_envs": 16, **kwargs, **SMALL[name]}) for kwargs in settings]
    seen = [envs.reset(seed=5) for envs in all_envs]
    for _ in range(150):
        (obs, info), *others = seen
        for other_obs, other in others:
            assert_array_equal(other_obs[:16], obs)
            assert_array_equal(other["action_mask"][:16], info["action_mask"])
        action = draw(info["action_mask"], rng)
        seen = []
        for envs in all_envs:
            more = envs.num_envs - 16  # these play on their own
            rest = envs._batch.masks[16:].argmax(-1) if more else action[:0]
            obs, reward, terminated, truncated, info = envs.step(np.concatenate([action, rest]))
            seen.append((obs, {**info, "end": (reward[:16], terminated[:16], truncated[:16])}))
        for _, info in seen:
            assert_array_equal(np.array(info["end"]), np.array(seen[0][1]["end"]))


def test_copies_and_seeds_differ(name):
    envs = make_vec(name, 16)
    runs = [[obs for _, obs, *_ in play(envs, 60, seed)] for seed in (0, 1)]
    assert any((a != b).any() for a, b in zip(*runs, strict=True))
    assert any((obs[0] != obs[1]).any() for obs in runs[0])


def test_a_reset_without_a_seed_goes_on(name):
    envs = make_vec(name, 16)
    envs.reset(seed=3)
    states, rngs = envs._batch.states.copy(), envs._batch.rngs.copy()
    envs.reset()
    assert_array_equal(envs._batch.rngs[:, 0], rngs[:, 0])
    assert (envs._batch.rngs[:, 1] > rngs[:, 1]).any() or name == "Minesweeper"  # draws none yet
    assert (envs._batch.states != states).any() or name == "Minesweeper"
    envs.reset(seed=3)
    assert_array_equal(envs._batch.states, states)
    assert len(set(envs._batch.rngs[:, 0])) == 16


def test_some_copies_can_be_reset(name):
    envs = make_vec(name, 8)
    list(play(envs, 5))
    before, begin = envs.capture_state(), np.arange(8) % 2 == 0
    obs, info = envs.reset(seed=9, options={"reset_mask": begin})
    after = envs.capture_state()
    for key in ("states", "rngs", "steps"):
        assert_array_equal(after[key][~begin], before[key][~begin])
    fresh = make_vec(name, 8)
    expected, expected_info = fresh.reset(seed=9)
    assert_array_equal(obs[begin], expected[begin])
    assert_array_equal(info["action_mask"][begin], expected_info["action_mask"][begin])
    assert_array_equal(after["steps"][begin], 0)


def test_a_seed_is_one_number(name):
    with pytest.raises(TypeError):
        make_vec(name, 3).reset(seed=[1, 2, 3])
    envs = make_vec(name, 3)
    envs.reset(seed=5)
    assert envs.np_random_seed == 5


def test_a_captured_state_goes_on_bit_for_bit(name):
    envs, twin = make_vec(name, 8, **SMALL[name]), make_vec(name, 8, **SMALL[name])
    list(play(envs, 37, seed=2))
    state = copy.deepcopy(envs.capture_state())
    arrays = [value for value in state.values() if not isinstance(value, str)]
    assert all(array.dtype.names is None for array in arrays)
    obs, info = twin.restore_state(state)
    assert_array_equal(obs, envs._batch.obs)
    assert_array_equal(info["action_mask"], envs._batch.masks)
    rng = np.random.default_rng(0)
    for _ in range(120):
        action = draw(envs._batch.masks, rng)
        for ours, theirs in zip(envs.step(action)[:4], twin.step(action)[:4], strict=True):
            assert_array_equal(ours, theirs)
    assert_array_equal(envs.capture_state()["states"], twin.capture_state()["states"])


def test_a_state_of_other_envs_is_refused(name):
    envs = make_vec(name, 4)
    envs.reset(seed=0)
    before = envs.capture_state()
    other = "Snake" if name != "Snake" else "Courier"
    for others in (make_vec(name, 5), make_vec(name, 4, **SMALL[name]), make_vec(other, 4)):
        others.reset(seed=0)
        with pytest.raises(ValueError, match="same game, keyword arguments and num_envs"):
            envs.restore_state(others.capture_state())
    for damaged in (
        {key: value for key, value in before.items() if key != "rngs"},
        {**before, "states": before["states"].astype(float) + 300},
    ):
        with pytest.raises(ValueError, match="differs"):
            envs.restore_state(damaged)
    for key, value in envs.capture_state().items():
        assert_array_equal(value, before[key])
    envs.restore_state(before)


@pytest.mark.parametrize(
    ("game", "one", "two"),
    [
        ("Minesweeper", {"num_mines": 10}, {"num_mines": 30}),
        ("CVRP", {"capacity": 30}, {"capacity": 9}),
        ("ConnectFour", {"opponent": "random"}, {"opponent": "heuristic"}),
        ("Othello", {"seat": "first"}, {"seat": "second"}),
    ],
)
def test_what_is_no_size_counts_too(game, one, two):
    envs, others = make_vec(game, 4, **one), make_vec(game, 4, **two)
    others.reset(seed=0)
    with pytest.raises(ValueError, match="sizes"):
        envs.restore_state(others.capture_state())


def test_a_single_env_goes_back_to_a_captured_state_and_can_be_copied(name):
    env = gym.make(env_id(name), **SMALL[name]).unwrapped
    _, info = env.reset(seed=2)
    rng = np.random.default_rng(0)
    for _ in range(2):
        *_, terminated, _, info = env.step(int(draw(info["action_mask"], rng)))
        if terminated:
            _, info = env.reset()
    state, mask = env.capture_state(), info["action_mask"]
    fresh = gym.make(env_id(name), **SMALL[name]).unwrapped
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env)), fresh]
    _, restored = fresh.restore_state(state)
    assert_array_equal(restored["action_mask"], mask)
    action = int(draw(mask, rng))
    expected = env.step(action)
    for other in copies:
        seen = other.step(action)
        assert_array_equal(seen[0], expected[0])
        assert seen[1:3] == expected[1:3]
    envs = make_vec(name, 4, num_threads=2)
    (obs, _), twin = envs.reset(seed=1), pickle.loads(pickle.dumps(envs))
    action = draw(envs._batch.masks, rng)
    for own, others in zip(envs.step(action)[:4], twin.step(action)[:4], strict=True):
        assert_array_equal(own, others)
    assert_array_equal(copy.deepcopy(envs).reset(seed=1)[0], obs)


def test_an_invalid_action_moves_nothing(name):
    envs = make_vec(name, 8)
    rng = np.random.default_rng(0)
    envs.reset(seed=0)
    tried = 0
    for _ in range(60):
        masks = envs._batch.masks
        action = draw(masks, rng)
        before = envs.capture_state()
        for index in np.flatnonzero((masks == 0).any(-1))[:2]:
            wrong = action.copy()
            wrong[index] = masks[index].argmin()
            text = f"env {index}: action {wrong[index]} is invalid"
            with pytest.raises(InvalidActionError, match=text):
                envs.step(wrong)
            tried += 1
        for outside in (-1, masks.shape[1], 2**40, -(2**40)):
            with pytest.raises(InvalidActionError):
                envs.step(np.where(np.arange(8) == 3, outside, action))
        for no_integers in (action + 0.5, action.astype(str), action[:, None], [None] * 8):
            with pytest.raises(ValueError, match=r"actions (are|have)"):
                envs.step(no_integers)
        for key, array in envs.capture_state().items():
            assert_array_equal(array, before[key])
        envs.step(action)
    assert tried


def test_a_single_env_raises_too_and_plays_on(name):
    env = gym.make(env_id(name))
    _, info = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        mask = info["action_mask"]
        for invalid in (*([] if mask.all() else [int(mask.argmin())]), 0.5, None, "0", -1, 2**70):
            with pytest.raises(InvalidActionError):
                env.step(invalid)
        *_, terminated, truncated, info = env.step(int(draw(mask, rng)))
        if terminated or truncated:
            _, info = env.reset()


def test_a_single_env_is_a_copy_of_the_vector_env(name):
    """The same state and randomness, the same game; the end is shown, not the next beginning."""
    envs, single = make_vec(name, 1, **SMALL[name]), gym.make(env_id(name), **SMALL[name])
    single.reset(seed=0)
    batch = single.unwrapped._batch
    rng = np.random.default_rng(1)
    for _ in range(3):
        envs.reset(seed=4)
        batch.states[:], batch.rngs[:] = envs._batch.states, envs._batch.rngs
        batch.masks[:] = envs._batch.masks
        while True:
            action = draw(batch.masks, rng)
            obs, reward, terminated, truncated, info = envs.step(action)
            one = single.unwrapped.step(int(action[0]))
            assert (one[1], one[2]) == (reward[0], terminated[0])
            if truncated[0]:
                break
            if terminated[0]:
                assert_array_equal(one[0], info["final_obs"][0])
                assert_array_equal(one[4]["action_mask"], info["final_info"]["action_mask"][0])
                break
            assert_array_equal(one[0], obs[0])
            assert_array_equal(one[4]["action_mask"], info["action_mask"][0])
        single.unwrapped.reset()


def test_a_step_needs_a_running_episode(name):
    env = gym.make(env_id(name), disable_env_checker=True).unwrapped
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    with pytest.raises(gym.error.ResetNeeded):
        make_vec(name, 2).step(np.zeros(2, int))
    envs = make_vec(name, 2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(3,\), not \(2,\)"):
        envs.step(np.zeros(3, int))


def test_what_is_returned_is_its_own(name):
    envs = make_vec(name, 4)
    (obs, info), rng = envs.reset(seed=0), np.random.default_rng(0)
    kept = []

    def keep(*arrays):
        kept.extend((array, array.copy()) for array in arrays)

    for round_ in range(20):
        keep(obs, info["action_mask"])
        obs, reward, terminated, truncated, info = envs.step(draw(info["action_mask"], rng))
        keep(reward, terminated, truncated)
        if "final_obs" in info:
            keep(info["final_obs"], info["final_info"]["action_mask"])
        if round_ == 10:
            keep(obs, info["action_mask"])
            obs, info = envs.restore_state(envs.capture_state())
    for array, before in kept:
        assert_array_equal(array, before)
    assert len({array.ctypes.data for array, _ in kept}) == len(kept)


@pytest.mark.parametrize("limit", [1, 7])
def test_episodes_are_truncated(name, limit):
    envs = make_vec(name, 6, max_episode_steps=limit)
    lengths = np.zeros(6, int)
    for _, _, _, terminated, truncated, _ in play(envs, 40):
        lengths += 1
        assert (lengths <= limit).all()
        assert_array_equal(truncated, lengths == limit)  # as Gymnasium's TimeLimit has it
        lengths[terminated | truncated] = 0
    assert gym.make(env_id(name)).spec.max_episode_steps == SPECS[name].max_episode_steps
    with pytest.raises(ValueError, match="max_episode_steps is 0"):
        make_vec(name, 2, max_episode_steps=0)
    *_, last = play(make_vec(name, 2, max_episode_steps=-1), 3)
    assert not last[4].any()


def test_pictures_and_text(name):
    for sizes in ({}, SMALL[name]):
        env = gym.make(env_id(name), render_mode="rgb_array", **sizes)
        words = gym.make(env_id(name), render_mode="ansi", **sizes)
        shown = set()
        for one in (env, words):
            _, info = one.reset(seed=0)
            rng = np.random.default_rng(0)
            for _ in range(30):
                frame = one.render()
                if one is env:
                    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
                    assert frame.shape[0] >= 64 and frame.shape[1] >= 64
                    shown.add(frame.tobytes())
                else:
                    assert isinstance(frame, str) and frame.strip()
                *_, terminated, truncated, info = one.step(int(draw(info["action_mask"], rng)))
                if terminated or truncated:
                    if one is env:
                        shown.add(one.render().tobytes())
                    break
        assert len(shown) > 1
        envs = make_vec(name, 2, render_mode="rgb_array", **sizes)
        envs.reset(seed=0)
        assert len(envs.render()) == 2
        with pytest.raises(gym.error.ResetNeeded):
            make_vec(name, 2, render_mode="ansi", **sizes).render()
        with pytest.raises(gym.error.ResetNeeded):
            gym.make(env_id(name), render_mode="ansi", **sizes).unwrapped.render()
    assert make_vec(name, 2).render() is None
    with pytest.raises(ValueError, match="rgb_array or ansi"):
        make_vec(name, 2, render_mode="human")


def test_reset_sets_every_field(name):
    """Whatever is left of the last episode, the next one is the same."""
    game, envs = module_of(name), make_vec(name, 1, **SMALL[name])
    options = envs._options[0]
    for seed in range(5):
        starts = []
        for filling in (0, 1, 255):
            raw = np.full(envs._batch.states.nbytes, filling, np.uint8)
            states = raw.view(envs._batch.states.dtype)
            rng = np.array([seed, 0], np.uint64)
            game.reset(states[0], rng, options)
            starts.append((states[0].tolist(), rng[1]))
        for index, field in enumerate(envs._batch.states.dtype.names):
            first, second, third = (np.array(start[0][index]) for start in starts)
            assert_array_equal(first, second, err_msg=field)
            assert_array_equal(first, third, err_msg=field)
        assert len({counter for _, counter in starts}) == 1


@pytest.mark.parametrize("game", SUITE)
def test_the_suite_shares_its_spaces(game):
    env = gym.make(env_id(game))
    assert env.action_space == gym.spaces.Discrete(6)
    assert env.observation_space == gym.spaces.Box(0, 255, (10, 10, 16), np.uint8)


def test_the_docstring_says_what_gymnasium_says_of_an_env(name):
    text = module_of(name).__doc__
    found = re.findall(r"^## (.*)$", text, re.M)
    assert found == [
        "Description",
        "Action Space",
        "Action mask",
        "Observation Space",
        "Rewards",
        "Starting State",
        "Episode End",
        "Arguments",
    ]


# what Numba's CUDA target does not take, or what would be slow there
FORBIDDEN = (
    ast.List,
    ast.Dict,
    ast.Set,
    ast.ListComp,
    ast.DictComp,
    ast.SetComp,
    ast.GeneratorExp,
    ast.JoinedStr,
    ast.Raise,
    ast.Try,
    ast.With,
    ast.Lambda,
    ast.Assert,
    ast.Yield,
    ast.Global,
    ast.Slice,
)
NUMBERS = {"int64", "int32", "uint64", "float64", "float32", "uint8", "sqrt", "hypot", "abs"}


def test_the_rules_use_nothing_that_a_gpu_has_not(name):
    """No allocation, no objects, and nothing called but each other and plain functions."""
    module = module_of(name)
    functions = {
        key: value.py_func for key, value in vars(module).items() if hasattr(value, "py_func")
    }
    assert set(rules.RULES) <= functions.keys()
    for function in functions.values():
        assert isinstance(function, FunctionType)
        tree = ast.parse(inspect.getsource(function))
        for node in ast.walk(tree):
            assert not isinstance(node, FORBIDDEN), (function.__name__, ast.dump(node))
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                known = called in ("range", "min", "max", "abs", "len", "float", "int", "bool")
                known |= hasattr(function.__globals__.get(called), "py_func")  # compiled as well
                known |= called.split(".")[0] in ("np", "math") and called.split(".")[1] in NUMBERS
                assert known, f"{function.__name__} calls {called}"


def test_an_unknown_argument_or_game_is_an_error():
    for name, hint in (
        ("no_such_size", "it takes height, width"),
        ("heigth", "did you mean height"),
    ):
        for make in (make_vec, lambda game, _, **sizes: gym.make(env_id(game), **sizes)):
            with pytest.raises(ValueError, match=f"snake has no argument {name}; {hint}"):
                make("Snake", 2, **{name: 3})
    with pytest.raises(TypeError, match="no function reset, step"):
        compiled.check_game(gym)
    with pytest.raises(ValueError, match="num_envs is 0"):
        make_vec("Snake", 0)
    with pytest.raises(ValueError, match="num_threads is 0"):
        make_vec("Snake", 2, num_threads=0)
    envs = make_vec("Snake", 2, num_threads=1000)  # no more than there are copies
    assert list(play(envs, 3))
    assert gym.make(env_id("Snake"), num_threads=4, copy=False)  # so that a config fits both


def test_machine_code_is_of_what_is_reached_through_a_module_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "far_game.py").write_text(
        "from numba import njit\nimport far_helper\n"
        "from rlmask_envs.snake import setup, reset, observe, valid_actions, image, text\n\n\n"
        "@njit\ndef step(state, action, rng, options):\n"
        "    return float(far_helper.one() + far_helper.N), True\n"
    )
    for n in (1, 10):
        (tmp_path / "far_helper.py").write_text(
            f"from numba import njit\nN = {n}\n\n\n@njit\ndef one():\n    return {n}\n"
        )
        importlib.invalidate_caches()
        for module in ("far_helper", "far_game"):
            sys.modules.pop(module, None)
        envs = rlmask_envs.GameVectorEnv("far_game", 1)
        _, info = envs.reset(seed=0)
        assert envs.step(info["action_mask"].argmax(1))[1].tolist() == [2 * n]


def test_the_name_of_machine_code_is_the_same_in_every_process(name):
    program = (
        "import sys; from rlmask_envs.compiled import compile_game; "
        "print(compile_game(sys.argv[1]).step_some.py_func.__qualname__)"
    )
    command = [sys.executable, "-c", program, SPECS[name].kwargs["game"]]
    seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert seen == compiled.compile_game(command[-1]).step_some.py_func.__qualname__


def test_games_are_played_where_nothing_can_be_written():
    program = (
        "import numba.core.caching as caching; caching.CacheImpl._locator_classes = []; "
        "import gymnasium, rlmask_envs; "
        "print(gymnasium.make_vec('rlmask/Snake-v0', 2).reset(seed=0)[0].shape)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 10, 10, 16)", done.stderr


def test_a_state_is_known_by_its_options_and_not_by_their_print():
    envs = make_vec("JobShop", 2, instance="ft10")
    envs.reset(seed=0)
    state = envs.capture_state()
    with np.printoptions(threshold=10, precision=1):
        twin = make_vec("JobShop", 2, instance="ft10")
        obs, _ = twin.restore_state(state)
        assert twin.capture_state()["sizes"] == state["sizes"]
    assert_array_equal(obs, envs._batch.obs)


def test_a_field_that_numpy_hides_is_refused():
    setup = module_of("Snake").setup()
    for wrong, text in (
        (replace(setup, options={"size": 3}), "`size`"),
        (replace(setup, state=np.dtype([("max", np.int32)])), "`max`"),
        (replace(setup, observation_space=gym.spaces.Box(0, 1, (2,), np.float64)), "float64"),
    ):
        with pytest.raises(TypeError, match=text):
            rules.check_setup(wrong)


def test_threads_can_be_ended_and_come_back():
    envs = make_vec("Snake", 8, num_threads=2)
    before = threading.active_count()
    list(play(envs, 2))
    assert threading.active_count() == before + 1
    envs.close()
    assert threading.active_count() == before
    list(play(envs, 2))
    envs.close()


def test_an_error_in_one_share_waits_for_the_others():
    done = []

    def loop(start, stop):
        if start == 0:
            raise RuntimeError("first share")
        time.sleep(0.05)
        done.append(start)

    with pytest.raises(RuntimeError, match="first share"):
        Crew(9, 3).run(loop)
    assert sorted(done) == [3, 6]


def test_what_a_caller_writes_to_a_mask_does_not_matter(name):
    for kwargs in ({"copy": True}, {"copy": False}):
        envs = make_vec(name, 4, **kwargs)
        _, info = envs.reset(seed=0)
        try:
            info["action_mask"][:] = 1
        except ValueError:
            assert kwargs == {"copy": False}  # read-only there
        mask = envs._batch.masks
        if not mask.all():
            index = int((mask == 0).any(-1).argmax())
            action = draw(mask, np.random.default_rng(0))
            action[index] = mask[index].argmin()
            with pytest.raises(InvalidActionError):
                envs.step(action)


def test_machine_code_is_of_the_source_as_it_is_now(tmp_path, monkeypatch):
    """Also where a function of another file has changed, or a constant, or after a reload."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_game.py").write_text(
        "from numba import njit\n"
        "from rlmask_envs.snake import setup, reset, observe, valid_actions, image, text\n"
        "from own_bonus import bonus\n\n\n"
        "@njit\ndef step(state, action, rng, options):\n    return bonus(), True\n"
    )
    names = set()
    for reward in (1.0, 2.0, 3.5):
        constant = "" if reward < 3 else "REWARD = 3.5\n"
        body = reward if reward < 3 else "REWARD"
        (tmp_path / "own_bonus.py").write_text(
            f"from numba import njit\n{constant}\n\n@njit\ndef bonus():\n    return {body}\n"
        )
        importlib.invalidate_caches()
        for module in ("own_bonus", "own_game"):
            sys.modules.pop(module, None)
        game = compiled.compile_game("own_game")
        names.add(game.step_some.py_func.__qualname__)
        envs = rlmask_envs.GameVectorEnv("own_game", 2)
        _, info = envs.reset(seed=0)
        assert envs.step(info["action_mask"].argmax(1))[1].tolist() == [reward, reward]
    assert len(names) == 3
    assert compiled.compile_game("own_game").step_some is game.step_some  # not made again


def test_specs_can_be_copied_and_pickled(name):
    spec = gym.make(env_id(name)).spec
    assert pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec)
    assert rlmask_envs.register.__doc__
