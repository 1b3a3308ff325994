"""The scripts that need no other library run, on little."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.quantize import QuantizedNetwork
from rlmask.types import ActionSpec, ObsSpec
from rlmask.vector import Game

SCRIPTS = Path(__file__).parents[1] / "scripts"
COMMANDS = {
    "check_games.py": ["--games", "ConnectFour", "--steps", "640"],
    "benchmark_envs.py": ["--games", "ConnectFour", "--rounds", "1", "--steps", "2"],
    "benchmark_distill.py": ["--rounds", "1"],
    "benchmark_native.py": [
        "child",
        "--job",
        json.dumps({"game": "cvrp", "who": "native", "seed": 0, "seconds": 0.1, "updates": 1}),
    ],
    "draw_games.py": ["--out", "games.png"],
    "count_invalid_samples.py": ["--help"],
    "kill_and_resume.py": ["--help"],
    "learned_masks.py": ["--seeds", "1", "--total-steps", "2048", "--out", "learned.png"],
    "mask_ablation.py": ["--help"],
    "memory.py": ["--help"],
    "quantized_students.py": ["--help"],
    "routing.py": ["--help"],
    "taxi_seeds.py": ["--help"],
    "train_games.py": ["--help"],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS)
def test_it_runs(script, tmp_path):
    command = [sys.executable, str(SCRIPTS / script), *COMMANDS[script]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or list(tmp_path.iterdir())


def loaded(script):
    """A script as a module."""
    spec = spec_from_file_location(script, SCRIPTS / f"{script}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def student(seed):
    obs = ObsSpec(kind="vector", shape=(3,), dtype="float32")
    return ActorMimicNetwork(
        obs, ActionSpec(nvec=(2,)), 1, conv_filters=(), hidden_sizes=(4,), activation="relu",
        game_stems=False, game_heads=False, value_head=False, normalize_obs=False,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def test_students_that_were_trained_again_are_measured_again(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    script = loaded("quantized_students")
    config = SimpleNamespace(eval_games=(Game(env_id="Taxi-v4"),), settings=None)
    networks = {"student-0": student(0), "8 bits-0": QuantizedNetwork(student(1), 8, 8)}
    teachers, measured = [SimpleNamespace(digest="expert")], []

    def figures(network, *_):
        if not isinstance(network, QuantizedNetwork):
            measured.append("float")
        else:
            measured.append("trained" if network is networks["8 bits-0"] else "after training")
        return {}

    def returns(*_):
        measured.append("policy")
        return {}

    fakes = {
        "students": lambda _: {name: (config, network) for name, network in networks.items()},
        "load_teachers": lambda _: teachers,
        "visited": lambda *_, **__: [(torch.ones(2, 3), torch.ones(2, 2, dtype=torch.bool))] * 4,
        "label": lambda *_: SimpleNamespace(scores=None),
        "teacher_policy": lambda *_, **__: None,
        "figures": figures,
        "returns": returns,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(script, name, fake)

    def newly_measured():
        measured.clear()
        done = script.measure(tmp_path, episodes=1, states=2, bits=[4])
        assert len(done) == 7  # five players, the protocol, the games
        return sorted(measured)

    everything = ["after training", "float", "policy", "policy", "trained"]
    assert newly_measured() == everything
    assert newly_measured() == []
    networks["8 bits-0"] = QuantizedNetwork(student(2), 8, 8)
    assert newly_measured() == ["trained"]
    networks["student-0"] = student(3)
    assert newly_measured() == ["after training", "float", "trained"]
    teachers[0].digest = "another"
    assert newly_measured() == everything
    assert newly_measured() == []


@pytest.mark.slow
def test_memory_says_why_a_run_failed(tmp_path):
    command = [sys.executable, str(SCRIPTS / "memory.py"), "--total-steps", "-5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "total_steps is -5: it must be at least 1" in done.stderr


def test_routing_trains_what_is_not_finished(tmp_path, monkeypatch):
    train, commands = loaded("routing").train, []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command[4:]))
    new, begun, finished = (tmp_path / name for name in ("new", "begun", "finished"))
    begun.mkdir()
    finished.mkdir()
    (finished / "result.json").write_text("{}")
    for run in (new, begun, finished):
        assert train("cvrp", run, 640) == run
    config = str(SCRIPTS.parent / "configs" / "ppo" / "cvrp.yaml")
    assert commands == [
        [config, "--run-dir", str(new), "--total-steps", "640"],
        ["--resume", str(begun)],
    ]


def test_all_others_compare_with_peers_or_need_a_compiler():
    others = {path.name for path in SCRIPTS.glob("*.py")} - COMMANDS.keys()
    assert others == {
        "benchmark_dqn.py",
        "benchmark_ppo.py",
        "benchmark_replay.py",
        "compile_for_gpu.py",
        "side_by_side.py",
    }
