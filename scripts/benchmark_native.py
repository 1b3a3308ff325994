"""PPO on Snake: all copies in one compiled call, against a Python loop over single envs.

    python scripts/benchmark_native.py             # five pairs; some minutes

The same PPO, network and game, configs/ppo/snake.yaml, with `vectorization` set to `native` and to
`sync`, in processes of their own, in turn, compared pair by pair. Counted are env steps a second of
training, everything included, after two updates to warm up. `env` is the same without the learner:
the vector env as the trainer sees it, stepped with random valid actions.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import yaml
from side_by_side import report, run_pairs

CONFIG = Path(__file__).parents[1] / "configs" / "ppo" / "snake.yaml"


def settings(vectorization: str, seed: int) -> dict:
    """Return the settings of the config, with another vectorization."""
    found = yaml.safe_load(CONFIG.read_text())
    del found["algo"]
    found |= {"vectorization": vectorization, "seed": seed, "device": "cpu"}
    if "hidden_sizes" in found:
        found["hidden_sizes"] = tuple(found["hidden_sizes"])
    return found


def train(vectorization: str, seed: int, updates: int) -> float:
    """Return env steps a second of training."""
    from rlmask import ppo

    torch.set_num_threads(1)
    trainer = ppo.train(ppo.PPOConfig(**settings(vectorization, seed)))
    for _ in range(2):
        before = next(trainer)
    start = time.perf_counter()
    for _ in range(updates):
        after = next(trainer)
    return (after.env_steps - before.env_steps) / (time.perf_counter() - start)


def step(vectorization: str, seed: int, seconds: float) -> float:
    """Return env steps a second without a learner."""
    from rlmask.ppo import PPOConfig
    from rlmask.vector import envs_of

    torch.set_num_threads(1)
    envs = envs_of(PPOConfig(**settings(vectorization, seed)))
    generator = torch.Generator().manual_seed(seed)
    _, mask = envs.reset()
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        action = torch.multinomial(mask.float(), 1, generator=generator)[:, 0]
        mask = envs.step(action).action_mask
        steps += envs.num_envs
    return steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description="PPO on Snake, compiled against a Python loop.")
    parser.add_argument("what", nargs="?", default="all", choices=["all", "child"])
    parser.add_argument("--pairs", type=int, default=5, help="A/B pairs of processes")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "child":
        job = json.loads(arguments.job)
        figures = {
            "env_steps": step(job["who"], job["seed"], 3.0),
            "train_steps": train(job["who"], job["seed"], 8),
        }
        print(json.dumps(figures))
        return
    jobs: dict[str, dict] = {"native": {}, "sync": {}}
    results = run_pairs(__file__, jobs, arguments.pairs)
    print("Snake, steps a second")
    for key in ("env_steps", "train_steps"):
        report(results, key, higher_is_better=True)


if __name__ == "__main__":
    main()
