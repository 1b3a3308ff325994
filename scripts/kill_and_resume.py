"""Kill a training run at random moments, resume it, and compare it with one left in peace.

    python scripts/kill_and_resume.py              # PPO, 50 kills, a quarter of an hour on 2 cores
    python scripts/kill_and_resume.py --algo dqn --kills 200 --seed 1

Measures how often a run that SIGKILL hit can be resumed, and how often it then ends as if nothing
had happened. First `rlmask train` trains Taxi-v4 undisturbed, with a checkpoint after every update;
DQN with a prioritised replay buffer that is soon full and written over.
Then, `--kills` times, the same run is started in a process of its own, killed after a time drawn
uniformly from 0 to the duration of the undisturbed one (again, if the run had ended by then), and
resumed by `rlmask train --resume`; if the kill came before there was a run directory, it is started
again. `resumed` counts the runs that came to their end that way. `equal` counts those whose last
checkpoint (weights, optimizer, random numbers, envs, replay buffer) and metrics.jsonl equal those
of the undisturbed run in every bit; only times and speeds are left out. Exits with 1 unless all do.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlmask import checkpoint
from rlmask.log import read_metrics
from rlmask.types import Chunk

CONFIGS = Path(__file__).parents[1] / "configs"
COMMON = "--eval-episodes 5 --checkpoint-seconds 0 --device cpu"
SETTINGS = {
    "ppo": "--total-steps 24576 --num-envs 16 --num-steps 64 --eval-period 8",
    "dqn": "--total-steps 8192 --phases-per-update 64 --eval-period 4 "
    "--replay-capacity 3000 --prioritized",
    "pqn": "--total-steps 65536 --num-envs 16 --num-steps 64 --eval-period 8",
    "recurrent_ppo": "--total-steps 12288 --num-envs 16 --num-steps 32 --eval-period 8",
}
NAMES = {"recurrent_ppo": "tmaze_attention.yaml"}  # of configs; of the others, taxi.yaml


def start_command(algo: str, run_dir: Path) -> list[str]:
    config = CONFIGS / algo / NAMES.get(algo, "taxi.yaml")
    flags = [*COMMON.split(), *SETTINGS[algo].split()]
    return [*rlmask("train"), str(config), *flags, "--run-dir", str(run_dir)]


def resume_command(run_dir: Path) -> list[str]:
    return [*rlmask("train"), "--resume", str(run_dir)]


def rlmask(command: str) -> list[str]:
    return [sys.executable, "-m", "rlmask.cli", command]


def finish(command: list[str], limit: float) -> tuple[bool, str]:
    """Run a command to its end; return whether it came there, and what it said if not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return False, f"no end after {limit:.0f} s"
    return done.returncode == 0, done.stderr.strip()


def kill_after(command: list[str], seconds: float) -> bool:
    """Start a command and kill it; return whether it was still running then."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def result(run_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the last checkpoint, leaf by leaf, and the metrics; both without times."""
    newest = max((run_dir / "checkpoints").glob("[0-9]*"), key=lambda path: path.name)
    state = leaves(checkpoint.load(newest))
    del state["/run/seconds"]
    metrics = [
        {k: v for k, v in record.items() if k != "seconds" and not k.startswith("speed/")}
        for record in read_metrics(run_dir)
    ]
    return state, metrics


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
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


def stage(run_dir: Path) -> str:
    """Return how far a killed run had come."""
    if not (run_dir / "config.yaml").exists():
        return "before the run directory"
    saved = sorted(path.name for path in (run_dir / "checkpoints").glob("[0-9]*"))
    return f"after checkpoint {int(saved[-1])}" if saved else "before the first checkpoint"


def try_once(
    start: list[str], run_dir: Path, duration: float, rng: random.Random, expected: Any
) -> tuple[bool, bool]:
    """Kill a run and go on with it; return whether it came to its end, and to the same one."""
    seconds = rng.uniform(0, duration)
    while not kill_after(start, seconds):
        shutil.rmtree(run_dir)  # it was quicker than the undisturbed one
        seconds = rng.uniform(0, duration)
    at = stage(run_dir)
    exists = (run_dir / "config.yaml").exists()
    resumed, said = finish(resume_command(run_dir) if exists else start, limit=60 + 10 * duration)
    equal = resumed and result(run_dir) == expected
    outcome = "equal" if equal else "DIFFERENT" if resumed else f"NOT RESUMED: {said}"
    print(f"killed after {seconds:5.2f} s, {at}: {outcome}", flush=True)
    return resumed, equal


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", choices=list(SETTINGS), default="ppo")
    parser.add_argument("--kills", type=int, default=50, help="how many runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("--kills must be at least 1")
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        reference = Path(name) / "reference"
        start = time.perf_counter()
        done, said = finish(start_command(options.algo, reference), limit=600)
        duration = time.perf_counter() - start
        if not done:
            print(f"the undisturbed run failed: {said}", file=sys.stderr)
            return 1
        expected = result(reference)
        print(f"undisturbed: {duration:.2f} s, {len(expected[1])} updates", flush=True)
        outcomes = []
        for number in range(options.kills):
            run_dir = Path(name) / f"{number}"
            command = start_command(options.algo, run_dir)
            outcomes.append(try_once(command, run_dir, duration, rng, expected))
            if all(outcomes[-1]):
                shutil.rmtree(run_dir)
    resumed, equal = (sum(column) for column in zip(*outcomes, strict=True))
    print(f"{resumed} of {options.kills} resumed, {equal} of {options.kills} equal")
    return 0 if resumed == equal == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
