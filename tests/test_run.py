import dataclasses
import datetime
import fcntl
import gc
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from envs_for_tests import env_id

from rlmask import checkpoint, run, runs
from rlmask.checkpoint import CheckpointError
from rlmask.config import ConfigError, to_settings
from rlmask.dqn import DQNConfig
from rlmask.log import read_metrics
from rlmask.ppo import PPOConfig
from rlmask.ppo import train as train_ppo
from rlmask.pqn import PQNConfig
from rlmask.recurrent_ppo import RecurrentPPOConfig
from rlmask.run import Interrupted
from rlmask.runs import RunConfig, RunError, RunExistsError, RunOptions
from rlmask.types import Chunk, Update
from rlmask.vector import EnvError, Game, MaskError

BATCH = 2 * 32
UPDATES = 4


def ppo(**settings):
    """Settings of a run of four updates."""
    small = dict(num_envs=2, num_steps=32, num_epochs=2, num_minibatches=2, hidden_sizes=(8, 8))
    return PPOConfig(**{**small, "total_steps": UPDATES * BATCH, "device": "cpu", **settings})


def dqn(**settings):
    """The same of DQN."""
    small = dict(num_envs=2, phases_per_update=32, batch_size=8, learning_starts=16)
    small |= dict(hidden_sizes=(8, 8), replay_capacity=100, target_update_period=5)
    return DQNConfig(**{**small, "total_steps": UPDATES * BATCH, "device": "cpu", **settings})


SNAKE = "rlmask_envs:rlmask/Snake-v0"
SHORT = {"max_episode_steps": 20}  # so that episodes end in training, and evaluations soon
TAXI = ppo(env="Taxi-v4", env_kwargs=SHORT)
CARTPOLE = ppo(env="CartPole-v1", normalize_obs=True, normalize_reward=True)
GAMES = (
    Game(env_id="Taxi-v4", env_kwargs=SHORT, action_ids=tuple(range(6))),
    Game(env_id="FrozenLake-v1", action_ids=(6, 0, 1, 2)),
)
RUNS = {
    "discrete": TAXI,
    "vector, normalized": CARTPOLE,
    "image": ppo(env=env_id("Grid"), activation="relu", shared_torso=True),
    "several parts": ppo(env=env_id("Target"), target_kl=0.01),
    "two games": ppo(games=GAMES, num_actions=8),
    "dqn": dqn(env="Taxi-v4", env_kwargs=SHORT),
    "dqn, all of it": dqn(
        env=env_id("Stacked"),
        frame_stack=3,
        prioritized=True,
        n_step=3,
        dueling=True,
        distribution="quantile",
        target_update_rate=0.1,
        anneal_learning_rate=True,
    ),
    "dqn, two games": dqn(games=GAMES, num_actions=8, distribution="categorical"),
    "dqn, native": dqn(env=env_id("CountersWithState"), vectorization="native"),
    "pqn": PQNConfig(
        env="Taxi-v4",
        env_kwargs=SHORT,
        num_envs=2,
        num_steps=32,
        hidden_sizes=(8, 8),
        total_steps=UPDATES * BATCH,
        device="cpu",
    ),
    "recurrent": RecurrentPPOConfig(
        env=env_id("Counter"),
        num_envs=2,
        num_steps=32,
        num_minibatches=2,
        hidden_sizes=(8,),
        cell="lstm",
        recurrent_size=8,
        attention="bahdanau",
        memory_length=4,
        normalize_obs=True,
        total_steps=UPDATES * BATCH,
        device="cpu",
    ),
    "native": ppo(env=env_id("CountersWithState"), vectorization="native"),
    "native, two games": ppo(
        games=(Game(env_id=env_id("CountersWithState"), action_ids=(0, 1, 2)),) * 2,
        vectorization="native",
    ),
    "native, compiled": dqn(env=SNAKE, vectorization="native"),
}


class Watch:
    """A display that does something after an update, and keeps what it was told."""

    def __init__(self, **actions):
        self.actions = {int(name.removeprefix("after_")): do for name, do in actions.items()}
        self.said, self.updates, self.stopped = [], 0, False

    def start(self, run_dir, total_steps, env_steps):
        self.first = env_steps

    def update(self, env_steps, metrics):
        self.updates += 1
        self.actions.get(env_steps // BATCH, lambda: None)()

    def say(self, text):
        self.said.append(text)

    def stop(self):
        self.stopped = True


def send(signum):
    return lambda: os.kill(os.getpid(), signum)


def make(run_dir, settings=TAXI, **options):
    options = {"eval_period": 2, "eval_episodes": 2, "checkpoint_seconds": 1e9, **options}
    (algo,) = [name for name, (cls, *_) in runs.ALGORITHMS.items() if cls is type(settings)]
    runs.create(run_dir, RunConfig(algo=algo, settings=settings, options=RunOptions(**options)))
    return run_dir


def interrupt(run_dir, update):
    with pytest.raises(Interrupted):
        run.train(run_dir, Watch(**{f"after_{update}": send(signal.SIGTERM)}))
    assert read_metrics(run_dir)[-1]["update"] == update


def leaves(tree, path=""):
    """Return every leaf of a tree by its path, as bytes."""
    if isinstance(tree, Chunk):
        return {path: repr(tree.version), **leaves(dict(tree.read()), path)}
    if isinstance(tree, dict):
        return {k: v for key in tree for k, v in leaves(tree[key], f"{path}/{key}").items()}
    if isinstance(tree, list):
        return {k: v for i, x in enumerate(tree) for k, v in leaves(x, f"{path}/{i}").items()}
    if isinstance(tree, torch.Tensor):
        tree = tree.numpy()
    if isinstance(tree, np.ndarray):
        return {path: (str(tree.dtype), tree.shape, tree.tobytes())}
    return {path: repr(tree)}


def result(run_dir):
    """Return all that must be equal in two runs: the state at the end, and the metrics."""
    state = leaves(checkpoint.load(runs.checkpoints(run_dir)[-1]))
    del state["/run/seconds"], state["/run/settings"]
    metrics = [
        {k: v for k, v in record.items() if k != "seconds" and not k.startswith("speed/")}
        for record in read_metrics(run_dir)
    ]
    return state, metrics


def assert_equal(run_dir, reference):
    state, metrics = result(run_dir)
    expected_state, expected_metrics = result(reference)
    assert metrics == expected_metrics
    assert state.keys() == expected_state.keys()
    different = [path for path in state if state[path] != expected_state[path]]
    assert not different


def flip(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    """Drawing takes longer than these runs; tests/test_log.py looks at the picture."""
    monkeypatch.setattr(run, "plot_learning_curve", lambda run_dir: run_dir / "x.png")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A Taxi run that nothing disturbed."""
    run_dir = make(tmp_path_factory.mktemp("runs") / "reference")
    run.train(run_dir, Watch())
    return run_dir


# what a run leaves


def test_the_files_of_a_run(reference):
    assert {path.name for path in reference.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "learning_curve.png",
        "metrics.jsonl",
        "result.json",
        "tensorboard",
        "versions.json",
    }
    assert [path.name for path in (reference / "checkpoints").iterdir()] == ["000004"]
    records = read_metrics(reference)
    assert [record["update"] for record in records] == [1, 2, 3, 4]
    assert [record["env_steps"] for record in records] == [64, 128, 192, 256]
    assert ["eval/mean_return" in record for record in records] == [False, True, False, True]


def test_the_config_of_a_run_comes_back(reference):
    config = runs.read_config(reference)
    assert config.algo == "ppo"
    assert config.settings == TAXI
    options = RunOptions(eval_period=2, eval_episodes=2, checkpoint_seconds=1e9)
    assert config.options == options


def test_the_result_is_the_last_evaluation(reference):
    found = json.loads((reference / "result.json").read_text())
    last = read_metrics(reference)[-1]
    assert found == {name: last[f"eval/{name}"] for name in found}
    assert found.keys() == {
        "mean_return",
        "standard_error",
        "episodes",
        "mean_length",
        "invalid_actions",
    }


def test_an_evaluation_may_play_with_other_keyword_arguments(tmp_path):
    short = {"max_episode_steps": 3}
    for settings in (TAXI, ppo(games=GAMES, num_actions=8)):
        run_dir = make(tmp_path / settings.all_games[-1].env_id, settings, eval_env_kwargs=short)
        config = runs.read_config(run_dir)
        assert all(game.env_kwargs["max_episode_steps"] == 3 for game in config.eval_games)
        assert config.settings == settings  # training does not
        assert run.train(run_dir, Watch()).mean_length <= 3


@pytest.mark.parametrize(
    ("settings", "kwargs", "error"),
    [
        (TAXI, {"nonsense": 1}, EnvError),
        (ppo(env=env_id("Counter")), {"size": 7}, ConfigError),  # other observations
        (ppo(env=SNAKE, vectorization="native"), {"height": 99}, EnvError),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_the_training(
    tmp_path, settings, kwargs, error
):
    with pytest.raises(error):
        make(tmp_path / "run", settings, eval_env_kwargs=kwargs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [CARTPOLE, dqn(env="CartPole-v1", epsilon_end=1.0)])
def test_an_evaluation_may_draw_its_actions(tmp_path, settings):
    results = {}
    for stochastic in (False, True):
        run_dir = make(
            tmp_path / f"{settings.env}-{stochastic}",
            settings,
            eval_stochastic=stochastic,
            eval_episodes=20,
        )
        evaluation = run.train(run_dir, Watch())
        policy = run.load(run_dir, greedy=not stochastic, seed=settings.seed)
        again, _ = run.evaluate_games(runs.read_config(run_dir), policy)
        assert again == evaluation
        assert run.train(run_dir, Watch()) == evaluation  # complete: evaluated once more
        results[stochastic] = evaluation.mean_return
    assert results[False] != results[True]


@pytest.mark.parametrize(
    ("vectorization", "limit"),
    [("sync", {}), ("native", {}), *(("native", {"max_episode_steps": n}) for n in (None, -1, 50))],
)
def test_a_long_evaluation_episode_is_cut(tmp_path, vectorization, limit):
    settings = ppo(env=SNAKE, vectorization=vectorization, env_kwargs=limit)
    run_dir = make(tmp_path / "run", settings, eval_max_episode_steps=3)
    with pytest.warns(run.CutWarning, match="cut after 3 steps"):
        assert run.train(run_dir, Watch()).mean_length == 3


def test_keywords_of_a_vector_env_fit_the_whole_run(tmp_path):
    settings = ppo(env=SNAKE, vectorization="native", env_kwargs={"num_threads": 2, "copy": False})
    assert run.train(make(tmp_path / "run", settings), Watch()).episodes == 2


def test_the_result_of_one_episode_is_json(tmp_path):
    run_dir = make(tmp_path / "run", ppo(env=env_id("Counter")), eval_episodes=1)
    run.train(run_dir, Watch())
    text = (run_dir / "result.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)  # called for NaN
    assert found["standard_error"] is None


def test_the_checkpoint_counts_env_steps_and_seconds(reference):
    state = checkpoint.load(reference / "checkpoints" / "000004")
    assert state["update"] == 4
    assert state["run"]["env_steps"] == 256
    assert state["run"]["seconds"] > 0


def test_only_the_newest_two_checkpoints_stay(tmp_path):
    run_dir = make(tmp_path / "run", checkpoint_seconds=0.0)
    run.train(run_dir, Watch())
    assert [path.name for path in runs.checkpoints(run_dir)] == ["000003", "000004"]
    assert len(list((run_dir / "checkpoints").iterdir())) == 2


# determinism


def test_the_same_seed_is_the_same_run(tmp_path, reference):
    run_dir = make(tmp_path / "run")
    watch = Watch()
    run.train(run_dir, watch)
    assert_equal(run_dir, reference)
    assert (watch.first, watch.updates, watch.stopped) == (0, UPDATES, True)


def test_another_seed_is_another_run(tmp_path, reference):
    run_dir = make(tmp_path / "run", dataclasses.replace(TAXI, seed=1))
    run.train(run_dir, Watch())
    losses = [[r["loss/value"] for r in read_metrics(d)] for d in (run_dir, reference)]
    assert all(loss != other for loss, other in zip(*losses, strict=True))


def test_evaluations_and_checkpoints_do_not_change_the_training(tmp_path, reference):
    run_dir = make(tmp_path / "run", eval_period=0, eval_episodes=3, checkpoint_seconds=0.0)
    run.train(run_dir, Watch())
    assert result(run_dir)[0] == result(reference)[0]


# resume


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_equal_to_the_last_bit(tmp_path, name):
    whole = make(tmp_path / "whole", RUNS[name])
    run.train(whole, Watch())
    halves = make(tmp_path / "halves", RUNS[name])
    interrupt(halves, 2)
    watch = Watch()
    run.train(halves, watch)
    assert (watch.first, watch.updates) == (2 * BATCH, UPDATES - 2)
    assert_equal(halves, whole)


def test_a_run_resumed_after_every_update_is_equal(tmp_path, reference):
    run_dir = make(tmp_path / "run")
    for update in range(1, UPDATES):
        interrupt(run_dir, update)
    run.train(run_dir, Watch())
    assert_equal(run_dir, reference)


@pytest.mark.slow
def test_an_async_run_is_equal_to_a_sync_one_and_so_is_its_resume(tmp_path, reference):
    run_dir = make(tmp_path / "run", dataclasses.replace(TAXI, vectorization="async"))
    interrupt(run_dir, 2)
    run.train(run_dir, Watch())
    assert_equal(run_dir, reference)


KILLED = """
import os, signal, sys
from pathlib import Path
from rlmask import run, runs

class Display:
    def start(self, run_dir, total_steps, env_steps): pass
    def update(self, env_steps, metrics):
        if env_steps >= int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    def say(self, text): pass
    def stop(self): pass

run.train(Path(sys.argv[1]), Display())
"""


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path, reference):
    run_dir = make(tmp_path / "run")
    command = [sys.executable, "-c", KILLED, str(run_dir), str(2 * BATCH)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert runs.checkpoints(run_dir) == []
    watch = Watch()
    run.train(run_dir, watch)
    assert watch.first == 0
    assert_equal(run_dir, reference)


def test_a_run_that_broke_goes_on_from_its_last_checkpoint(tmp_path, reference):
    def fail():
        raise KeyError("a bug")

    run_dir = make(tmp_path / "run", checkpoint_seconds=0.0)
    watch = Watch(after_3=fail)
    with pytest.raises(KeyError):
        run.train(run_dir, watch)
    assert watch.stopped
    watch = Watch()
    run.train(run_dir, watch)
    assert watch.first == 2 * BATCH
    assert_equal(run_dir, reference)


def test_a_complete_run_is_only_evaluated(tmp_path, reference):
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    (run_dir / "result.json").unlink()
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    watch = Watch()
    evaluation = run.train(run_dir, watch)
    assert (watch.first, watch.updates) == (UPDATES * BATCH, 0)
    assert (run_dir / "metrics.jsonl").read_bytes() == metrics
    assert (run_dir / "result.json").read_bytes() == (reference / "result.json").read_bytes()
    assert json.loads((run_dir / "result.json").read_text()) == dataclasses.asdict(evaluation)
    assert [path.name for path in runs.checkpoints(run_dir)] == ["000004"]


@pytest.mark.parametrize(
    "field", [{"hidden_sizes": (16, 8)}, {"num_envs": 4}, {"env": "CartPole-v1"}]
)
def test_a_config_that_was_edited_beside_its_checkpoint_is_refused(tmp_path, field):
    run_dir = make(tmp_path / "run")
    interrupt(run_dir, 1)
    changed = to_settings(dataclasses.replace(TAXI, **field))
    (run_dir / "config.yaml").write_text(yaml.safe_dump({"algo": "ppo", **changed}))
    with pytest.raises((ConfigError, RunError, CheckpointError)):
        run.train(run_dir, Watch())


def test_a_run_from_before_there_was_some_setting_goes_on(tmp_path, monkeypatch, reference):
    def without_gamma(config):
        lines = runs.settings_text(config).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("gamma:"))

    run_dir = make(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run, "settings_text", without_gamma)
        interrupt(run_dir, 2)
    run.train(run_dir, Watch())  # with the default
    assert_equal(run_dir, reference)


def test_a_policy_is_not_read_with_another_config(tmp_path, reference):
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    changed = to_settings(dataclasses.replace(TAXI, hidden_sizes=(16, 8)))
    (run_dir / "config.yaml").write_text(yaml.safe_dump({"algo": "ppo", **changed}))
    with pytest.raises(ConfigError, match="hidden_sizes"):
        run.load(run_dir)


def test_a_run_can_be_made_longer(tmp_path, reference):
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    longer = to_settings(dataclasses.replace(TAXI, total_steps=6 * BATCH))
    options = {"eval_episodes": 2}
    (run_dir / "config.yaml").write_text(yaml.safe_dump({"algo": "ppo", **longer, **options}))
    watch = Watch()
    run.train(run_dir, watch)
    assert (watch.first, watch.updates) == (UPDATES * BATCH, 2)
    assert read_metrics(run_dir)[:4] == read_metrics(reference)
    assert [record["update"] for record in read_metrics(run_dir)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("value", [{1: 2}, {"day": datetime.date(2024, 1, 2)}, {"x": math.nan}])
def test_keywords_of_an_env_that_only_yaml_can_hold(tmp_path, value):
    # this keyword of CartPole counts as true or false
    settings = ppo(env="CartPole-v1", env_kwargs={"sutton_barto_reward": value})
    whole, halves = make(tmp_path / "whole", settings), make(tmp_path / "halves", settings)
    run.train(whole, Watch())
    interrupt(halves, 2)
    run.train(halves, Watch())
    assert_equal(halves, whole)


# signals


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_the_run(tmp_path, reference, signum, code):
    before = signal.getsignal(signum)
    run_dir = make(tmp_path / "run")
    watch = Watch(after_2=send(signum))
    with pytest.raises(Interrupted) as caught:
        run.train(run_dir, watch)
    assert caught.value.exit_code == code
    assert watch.updates == 2
    assert watch.stopped
    assert [path.name for path in runs.checkpoints(run_dir)] == ["000002"]
    assert any(signal.Signals(signum).name in text for text in watch.said)
    assert signal.getsignal(signum) == before
    run.train(run_dir, Watch())
    assert_equal(run_dir, reference)


def test_a_signal_during_the_last_update_lets_the_run_end(tmp_path, reference):
    run_dir = make(tmp_path / "run")
    run.train(run_dir, Watch(after_4=send(signal.SIGTERM)))
    assert_equal(run_dir, reference)


def test_a_second_signal_exits_at_once(tmp_path, monkeypatch):
    class Exited(BaseException):
        pass

    def leave(code):
        raise Exited(code)

    def twice():
        send(signal.SIGTERM)()
        send(signal.SIGINT)()

    run_dir = make(tmp_path / "run")
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Exited) as caught:
        run.train(run_dir, Watch(after_2=twice))
    assert caught.value.args == (130,)
    assert runs.checkpoints(run_dir) == []


SLOW_TAXI = """
import os, time
import gymnasium as gym
from gymnasium.envs.toy_text.taxi import TaxiEnv

class SlowTaxi(TaxiEnv):
    def step(self, action):
        time.sleep(float(os.environ.get("SLOW_TAXI_SECONDS", 0)))
        return super().step(action)

gym.register("SlowTaxi-v0", entry_point=SlowTaxi, max_episode_steps=200)
"""


@pytest.mark.slow
def test_a_process_stopped_by_a_signal_is_resumed_in_another(tmp_path, monkeypatch):
    # an update takes 0.6 s, so that the signal comes long before the last; no evaluation until then
    (tmp_path / "slow_taxi.py").write_text(SLOW_TAXI)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ppo(env="slow_taxi:SlowTaxi-v0", env_kwargs=SHORT, total_steps=8 * BATCH)
    whole = make(tmp_path / "whole", settings, eval_period=0)
    run.train(whole, Watch())
    slow = {**os.environ, "PYTHONPATH": str(tmp_path), "SLOW_TAXI_SECONDS": "0.01"}
    processes = {}
    for signum in (signal.SIGINT, signal.SIGTERM):
        run_dir = make(tmp_path / signum.name, settings, eval_period=0)
        command = [sys.executable, "-m", "rlmask.cli", "train", "--resume", str(run_dir)]
        processes[signum] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=slow
        )
    try:
        for signum, process in processes.items():
            while " of 512 steps" not in (line := process.stdout.readline()):
                assert line, process.stderr.read()
            process.send_signal(signum)
        for signum, process in processes.items():
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 128 + signum
            finishing = "finishing this update and saving; again to exit now"
            assert errors == f"{signum.name}: {finishing}\n"
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    for signum in processes:
        (saved,) = runs.checkpoints(tmp_path / signum.name)
        assert 1 <= int(saved.name) < 8
        run.train(tmp_path / signum.name, Watch())
        assert_equal(tmp_path / signum.name, whole)


# checkpoints that are not good


@pytest.fixture
def three(tmp_path):
    """A run that was interrupted after update 3, with checkpoints 2 and 3."""
    run_dir = make(tmp_path / "run", checkpoint_seconds=0.0)
    interrupt(run_dir, 3)
    return run_dir


@pytest.mark.parametrize("name", ["network.safetensors", "envs.safetensors", "manifest.json"])
def test_a_corrupt_checkpoint_falls_back_to_the_one_before(three, reference, name):
    flip(three / "checkpoints" / "000003" / name)
    watch = Watch()
    run.train(three, watch)
    assert watch.first == 2 * BATCH
    (text,) = watch.said
    assert "000003" in text
    assert "trying the one before" in text
    assert_equal(three, reference)
    assert [path.name for path in runs.checkpoints(three)] == ["000003", "000004"]
    assert checkpoint.load(three / "checkpoints" / "000003")["update"] == 3


def test_an_incomplete_checkpoint_falls_back_to_the_one_before(three, reference):
    (three / "checkpoints" / "000003" / "optimizer.safetensors").unlink()
    run.train(three, Watch())
    assert_equal(three, reference)


def test_without_a_good_checkpoint_nothing_is_lost_or_started_over(three):
    metrics = (three / "metrics.jsonl").read_bytes()
    for directory in runs.checkpoints(three):
        flip(directory / "network.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is good"):
        run.train(three, Watch())
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is good"):
        run.load(three)
    assert (three / "metrics.jsonl").read_bytes() == metrics
    assert [path.name for path in runs.checkpoints(three)] == ["000002", "000003"]


@pytest.mark.parametrize("name", ["000002.bak", "000003 (copy)", "7z"])
def test_a_copy_that_somebody_made_is_no_checkpoint(three, name):
    shutil.copytree(three / "checkpoints" / "000002", three / "checkpoints" / name)
    assert [path.name for path in runs.checkpoints(three)] == ["000002", "000003"]


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("999999", "1000000", "000007"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    names = [path.name for path in runs.checkpoints(tmp_path)]
    assert names == ["000007", "999999", "1000000"]


def test_files_of_others_beside_the_checkpoints_do_not_matter(tmp_path):
    run_dir = make(tmp_path / "run", checkpoint_seconds=0.0)
    (run_dir / "checkpoints").mkdir()
    for name in (".DS_Store", ".nfs0001", "readme.txt"):  # of macOS, of a network disk, of a person
        (run_dir / "checkpoints" / name).touch()
    run.train(run_dir, Watch())
    assert [path.name for path in runs.checkpoints(run_dir)] == ["000003", "000004"]
    assert (run_dir / "checkpoints" / "readme.txt").exists()


class Killed(BaseException):
    """Stands for SIGKILL: from here on the process changes nothing."""


def kill_at(patch, step):
    """Let this and every later change of the disk fail."""
    steps = iter(range(1_000_000))

    def wrap(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            if next(steps) < step:
                return original(*args, **kwargs)
            if name == "rmtree" and Path(args[0]).is_dir():
                next(Path(args[0]).iterdir()).unlink()  # it had just begun
            raise Killed

        patch.setattr(owner, name, call)

    for name in ("fsync", "link"):
        wrap(os, name)
    for owner, name in ((Path, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
        wrap(owner, name)


def stub_state(number):
    """A state with two chunks, of which one never changes."""
    chunks = {
        "old": Chunk(version=1, read=lambda: {"x": np.arange(5)}),
        "new": Chunk(version=number, read=lambda: {"x": np.full(5, number, np.uint8)}),
    }
    network = {"x": torch.full((9,), number)}
    return {"update": number, "network": network, "replay": {"chunks": chunks}}


def save(run_dir, number, previous, state=None):
    update = Update(
        update=number,
        env_steps=number,
        metrics={},
        episodes=[],
        policy=lambda obs, action_mask: action_mask.int().argmax(-1),
        capture=lambda: state or stub_state(number),
    )
    return runs.save_checkpoint(run_dir, update, {"seconds": 0.0}, previous)


def test_a_process_killed_at_any_step_of_a_save_can_go_on(tmp_path, monkeypatch):
    for step in itertools.count():
        run_dir = tmp_path / str(step)
        run_dir.mkdir()
        saved = save(run_dir, 2, save(run_dir, 1, None))
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                save(run_dir, 3, saved)
                break
            except Killed:
                pass
        said = []
        state, found = runs.newest_checkpoint(run_dir, said.append)
        at = state["update"]
        assert at in (2, 3)
        assert found == run_dir / "checkpoints" / f"{at:06d}"
        assert leaves(state) == leaves({**stub_state(at), "run": {"seconds": 0.0}})
        assert not said  # no half checkpoint was ever in sight
        save(run_dir, 5, save(run_dir, 4, found))
        found = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
        assert found == ["000004", "000005"]  # nothing is left of the killed process
    assert step > 7


# chunks of a state


def chunk_inode(run_dir, update, name="old"):
    path = run_dir / "checkpoints" / f"{update:06d}" / f"replay.chunks.{name}.safetensors"
    return path.stat().st_ino


def test_a_checkpoint_shares_chunks_with_the_one_it_is_told_only(tmp_path):
    first = save(tmp_path, 1, None)
    save(tmp_path, 2, None)
    assert chunk_inode(tmp_path, 2) != chunk_inode(tmp_path, 1)
    save(tmp_path, 3, first)  # which is removed then
    assert [path.name for path in runs.checkpoints(tmp_path)] == ["000002", "000003"]
    assert chunk_inode(tmp_path, 3) != chunk_inode(tmp_path, 2)
    state = checkpoint.load(tmp_path / "checkpoints" / "000003")
    assert leaves(state) == leaves({**stub_state(3), "run": {"seconds": 0.0}})


def test_a_checkpoint_may_replace_the_one_it_shares_chunks_with(tmp_path):
    saved = save(tmp_path, 1, None)
    before = chunk_inode(tmp_path, 1)
    save(tmp_path, 1, saved, checkpoint.load(saved))
    assert chunk_inode(tmp_path, 1) == before
    state = checkpoint.load(saved)
    assert leaves(state) == leaves({**stub_state(1), "run": {"seconds": 0.0}})
    assert os.listdir(tmp_path / "checkpoints") == ["000001"]


@pytest.fixture
def with_chunks(monkeypatch):
    """A trainer whose state has chunks; returns the updates at which the old one was read."""
    reads = []

    def train(config, resume=None):
        if resume is not None:
            for chunk in resume["replay"]["chunks"].values():
                chunk.read()
        for update in train_ppo(config, resume):
            yield dataclasses.replace(update, capture=lambda u=update: capture(u))

    def capture(update):
        replay = stub_state(update.update)["replay"]
        old = replay["chunks"]["old"]

        def read():
            reads.append(update.update)
            return old.read()

        replay["chunks"]["old"] = Chunk(version=1, read=read)
        return {**update.capture(), "replay": replay}

    algorithm = runs.ALGORITHMS["ppo"]._replace(train=train)
    monkeypatch.setitem(runs.ALGORITHMS, "ppo", algorithm)
    return reads


def test_a_run_shares_chunks_with_the_checkpoint_it_saved_or_went_on_from(tmp_path, with_chunks):
    run_dir = make(tmp_path / "run", checkpoint_seconds=0.0)
    interrupt(run_dir, 1)
    first = chunk_inode(run_dir, 1)
    interrupt(run_dir, 3)
    run.train(run_dir, Watch())
    assert chunk_inode(run_dir, 3) == chunk_inode(run_dir, 4) == first
    assert with_chunks == [1]
    assert chunk_inode(run_dir, 3, "new") != chunk_inode(run_dir, 4, "new")
    reference = make(tmp_path / "reference")
    run.train(reference, Watch())
    assert_equal(run_dir, reference)


def test_a_run_never_shares_chunks_with_a_corrupt_checkpoint(tmp_path, with_chunks):
    run_dir = make(tmp_path / "run", checkpoint_seconds=0.0)
    interrupt(run_dir, 2)
    good = chunk_inode(run_dir, 2)
    newer = run_dir / "checkpoints" / "000009"  # of another history, with chunks of its own
    state = {**checkpoint.load(run_dir / "checkpoints" / "000002"), **stub_state(9)}
    state["replay"]["chunks"]["old"] = Chunk(version=1, read=lambda: {"x": np.zeros(7)})
    checkpoint.save(newer, state)
    flip(newer / "network.safetensors")
    bad = chunk_inode(run_dir, 9)
    watch = Watch()
    interrupt(run_dir, 3)
    assert chunk_inode(run_dir, 3) == good != bad
    run.train(run_dir, watch)
    assert watch.first == 3 * BATCH
    assert chunk_inode(run_dir, 4) == good
    assert with_chunks == [1]


def test_a_run_does_not_keep_the_state_it_went_on_from(tmp_path, monkeypatch):
    run_dir = make(tmp_path / "run")
    interrupt(run_dir, 1)
    good, loaded, alive = checkpoint.load, [], []

    def load(directory):
        state = good(directory)
        loaded.extend(weakref.ref(tensor) for tensor in state["network"].values())
        return state

    def look():
        gc.collect()
        alive.append([tensor() for tensor in loaded])

    monkeypatch.setattr(checkpoint, "load", load)
    run.train(run_dir, Watch(after_2=look))
    assert loaded
    assert alive == [[None] * len(loaded)]


# run directories


@pytest.mark.parametrize("what", ["run", "empty directory", "file"])
def test_what_exists_is_not_overwritten(tmp_path, reference, what):
    run_dir = tmp_path / "run"
    if what == "run":
        shutil.copytree(reference, run_dir)
    elif what == "file":
        run_dir.write_text("mine")
    else:
        run_dir.mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(RunError, match=r"run exists; go on with it by `rlmask train --resume"):
        make(run_dir)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (ppo(env="NoSuchEnv-v0"), EnvError),
        (ppo(env="Taxi-v4", env_kwargs={"no_such": 1}), EnvError),
        (ppo(env="Taxi-v4", mask_source="method"), MaskError),
        (ppo(env="NoSuchEnv-v0", vectorization="native"), EnvError),
        (ppo(env="Taxi-v4", vectorization="native"), EnvError),
    ],
)
def test_a_run_that_cannot_be_leaves_no_directory(tmp_path, settings, error):
    with pytest.raises(error):
        make(tmp_path / "runs" / "run", settings)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_leaves_no_run(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="No space left on device"):
        make(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_training_with_the_earlier_checkpoint(tmp_path, monkeypatch, reference):
    run_dir = make(tmp_path / "run", checkpoint_seconds=0.0)
    good = checkpoint.write_synced

    def fill_disk():
        def fail(path, data):
            path.write_bytes(data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr(checkpoint, "write_synced", fail)

    with pytest.raises(CheckpointError, match="No space left on device"):
        run.train(run_dir, Watch(after_3=fill_disk))
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] != []
    monkeypatch.setattr(checkpoint, "write_synced", good)
    watch = Watch()
    run.train(run_dir, watch)
    assert watch.first == 2 * BATCH
    assert_equal(run_dir, reference)


def test_a_run_that_another_process_trains_is_refused(three):
    before = {path: path.stat().st_mtime_ns for path in three.rglob("*")}
    with (three / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is being trained by another process"):
            run.train(three, Watch())
    after = {path: path.stat().st_mtime_ns for path in three.rglob("*") if path.name != ".lock"}
    assert after.items() <= before.items()
    run.train(three, Watch())  # the lock went with its holder


def test_the_lock_comes_before_a_look_at_the_checkpoints(three):
    # else one that the other process is about to remove is reported as corrupt
    flip(three / "checkpoints" / "000003" / "network.safetensors")
    watch = Watch()
    with (three / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is being trained by another process"):
            run.train(three, watch)
    assert watch.said == []


@pytest.mark.parametrize("function", [run.load, runs.read_config, lambda d: run.train(d, Watch())])
def test_a_directory_that_is_no_run_is_refused(tmp_path, function):
    with pytest.raises(RunError, match=r"is not a run: it has no config\.yaml"):
        function(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_config_does_not_hold_is_refused(tmp_path):
    run_dir = make(tmp_path / "run")
    path = run_dir / "config.yaml"
    path.write_text(path.read_text().replace("gamma:", "gama:"))
    with pytest.raises(
        ConfigError, match=r"config\.yaml: unknown key `gama`; did you mean `gamma`"
    ):
        run.train(run_dir, Watch())


# the policy of a run


def test_a_run_without_a_checkpoint_has_no_policy(tmp_path):
    with pytest.raises(RunError, match="has no checkpoint yet"):
        run.load(make(tmp_path / "run"))


@pytest.mark.parametrize("greedy", [True, False])
def test_a_loaded_policy_takes_valid_actions_only(reference, greedy):
    policy = run.load(reference, greedy=greedy)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randint(500, (20_000,), generator=generator)
    mask = torch.rand((20_000, 6), generator=generator) < 0.3
    mask[torch.arange(20_000), torch.randint(6, (20_000,), generator=generator)] = True
    action = policy(obs, mask)
    assert mask.gather(1, action[:, None]).all()
    assert len(action.unique()) == 6


def test_the_draws_of_a_loaded_policy_come_from_the_seed(reference):
    obs, mask = torch.arange(500), torch.ones(500, 6, dtype=torch.bool)
    draws = [run.load(reference, greedy=False, seed=seed)(obs, mask).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_a_loaded_greedy_policy_gets_the_result_of_the_run(reference):
    config = runs.read_config(reference)
    evaluation, _ = run.evaluate_games(config, run.load(str(reference)))
    assert dataclasses.asdict(evaluation) == json.loads((reference / "result.json").read_text())


@pytest.mark.parametrize("at", [2, UPDATES])
def test_an_evaluation_that_fails_loses_nothing(tmp_path, reference, monkeypatch, at):
    run_dir = make(tmp_path / "run")
    evaluate_games, calls = run.evaluate_games, itertools.count(1)

    def failing(*arguments, **keywords):
        if next(calls) == at // 2:  # one evaluation every second update
            raise EnvError("the simulator is gone")
        return evaluate_games(*arguments, **keywords)

    monkeypatch.setattr(run, "evaluate_games", failing)
    with pytest.raises(EnvError, match="the simulator is gone"):
        run.train(run_dir, Watch())
    assert runs.checkpoints(run_dir)[-1].name == f"{at:06d}"
    monkeypatch.undo()
    monkeypatch.setattr(run, "plot_learning_curve", lambda run_dir: run_dir / "x.png")
    evaluation = run.train(run_dir, Watch())
    assert dataclasses.asdict(evaluation) == json.loads((reference / "result.json").read_text())
    assert result(run_dir)[0] == result(reference)[0]


def test_a_new_run_never_takes_the_place_of_another(tmp_path, monkeypatch):
    def slow_versions():  # meanwhile another process makes the same run
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").touch()
        return {}

    monkeypatch.setattr(runs, "versions", slow_versions)
    with pytest.raises(RunExistsError, match="exists; go on with it"):
        make(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_options_out_of_range_are_refused():
    for options in (
        {"eval_period": -1},
        {"eval_episodes": 0},
        {"eval_max_episode_steps": 0},
        {"checkpoint_seconds": -math.inf},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            RunOptions(**options)
