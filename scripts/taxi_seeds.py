"""Train Taxi-v4 on several seeds; print returns, training time and invalid actions.

    python scripts/taxi_seeds.py                           # configs/ppo/taxi.yaml, 10 seeds
    python scripts/taxi_seeds.py configs/dqn/taxi.yaml --seeds 10

The sampled return is the mean over 100 greedy episodes that training never saw. The exact one is
the mean over all starts, from Taxi's own table of transitions; no policy can have more than 7.93.
The time is that of the whole training, from the first env step to the last update.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import rlmask
from rlmask.types import Policy

CONFIG = Path(__file__).parents[1] / "configs" / "ppo" / "taxi.yaml"


def exact_return(policy: Policy, max_steps: int = 200) -> float:
    """Return the undiscounted return of a deterministic policy, averaged over all starts."""
    taxi: Any = gym.make("Taxi-v4").unwrapped
    states = range(taxi.observation_space.n)
    masks = torch.from_numpy(np.array([taxi.action_mask(state) for state in states])).bool()
    actions = policy(torch.tensor(states), masks).tolist()
    moves = [taxi.P[state][action][0] for state, action in zip(states, actions, strict=True)]
    _, successor, reward, terminated = (np.array(column) for column in zip(*moves, strict=True))
    value = np.zeros(len(moves))
    for _ in range(max_steps):  # as Taxi's time limit
        value = reward + np.where(terminated, 0, value[successor])
    return float(value @ taxi.initial_state_distrib)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train Taxi on several seeds.")
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG, help="of a run on Taxi-v4")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threshold", type=float, default=7.5, help="mean return to reach")
    arguments = parser.parse_args()
    reached, exact = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            run = Path(folder) / str(seed)
            command = ["-m", "rlmask.cli", "train", arguments.config]
            command += ["--seed", seed, "--run-dir", run]
            subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
            result = json.loads((run / "result.json").read_text())
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            reached += result["mean_return"] >= arguments.threshold
            exact.append(exact_return(rlmask.load(run)))
            print(
                f"seed {seed}: sampled {result['mean_return']:.2f} ± "
                f"{result['standard_error']:.2f}, exact {exact[-1]:.2f}, {last['seconds']:.0f} s, "
                f"{result['invalid_actions']:.2%} invalid actions",
                flush=True,
            )
    print(f"{reached} of {arguments.seeds} seeds reach {arguments.threshold}")
    print(f"exact return: mean {np.mean(exact):.3f}, lowest {min(exact):.3f}")


if __name__ == "__main__":
    main()
