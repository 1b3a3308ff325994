"""The scripts that need no other library run, on little."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

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
    "learned_masks.py": ["--help"],
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


@pytest.mark.slow
def test_memory_says_why_a_run_failed(tmp_path):
    command = [sys.executable, str(SCRIPTS / "memory.py"), "--total-steps", "-5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "total_steps is -5: it must be at least 1" in done.stderr


def test_routing_trains_what_is_not_finished(tmp_path, monkeypatch):
    train, commands = runpy.run_path(str(SCRIPTS / "routing.py"))["train"], []
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
