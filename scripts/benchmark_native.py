"""PPO on a native game: all copies in one compiled call, against a Python loop over single envs.

    python scripts/benchmark_native.py             # Snake, five pairs; some minutes
    python scripts/benchmark_native.py --game cvrp # a small network: the env counts for more

The same PPO, network and game, configs/ppo/GAME.yaml, with `vectorization` set to `native` and to
`sync`, in processes of their own, in turn, compared pair by pair. Counted are env steps a second of
training, everything included, after two updates to warm up. `env` is the same without the learner:
the vector env as the trainer sees it, stepped with random valid actions.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from side_by_side import report, run_pairs

CONFIGS = Path(__file__).parents[1] / "configs" / "ppo"


def settings(game: str, vectorization: str, seed: int) -> Any:
    """Return the settings of the config, with another vectorization."""
    from rlmask.config import read_yaml
    from rlmask.runs import parse_config

    path = CONFIGS / f"{game}.yaml"
    config = parse_config(read_yaml(path), str(path)).settings
    return replace(config, vectorization=vectorization, seed=seed, device="cpu")


def train(game: str, vectorization: str, seed: int, updates: int) -> float:
    """Return env steps a second of training."""
    from rlmask import ppo

    torch.set_num_threads(1)
    trainer = ppo.train(settings(game, vectorization, seed))
    for _ in range(2):
        before = next(trainer)
    start = time.perf_counter()
    for _ in range(updates):
        after = next(trainer)
    return (after.env_steps - before.env_steps) / (time.perf_counter() - start)


def step(game: str, vectorization: str, seed: int, seconds: float) -> float:
    """Return env steps a second without a learner."""
    from rlmask.vector import envs_of

    torch.set_num_threads(1)
    envs = envs_of(settings(game, vectorization, seed))
    generator = torch.Generator().manual_seed(seed)
    _, mask = envs.reset()
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        action = torch.multinomial(mask.float(), 1, generator=generator)[:, 0]
        mask = envs.step(action).action_mask
        steps += envs.num_envs
    return steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description="PPO with compiled copies against a Python loop.")
    parser.add_argument("what", nargs="?", default="all", choices=["all", "child"])
    parser.add_argument("--game", default="snake", help="a config of configs/ppo")
    parser.add_argument("--pairs", type=int, default=5, help="A/B pairs of processes")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "child":
        job = json.loads(arguments.job)
        figures = {
            "env_steps": step(job["game"], job["who"], job["seed"], job["seconds"]),
            "train_steps": train(job["game"], job["who"], job["seed"], job["updates"]),
        }
        print(json.dumps(figures))
        return
    job = {"game": arguments.game, "seconds": 3.0, "updates": 8}
    jobs = {"native": job, "sync": job}
    results = run_pairs(__file__, jobs, arguments.pairs)
    print(f"{arguments.game}, steps a second")
    for key in ("env_steps", "train_steps"):
        report(results, key, higher_is_better=True)


if __name__ == "__main__":
    main()
