"""Train masked PPO on every native game, and compare it with the random valid policy.

    python scripts/train_games.py                        # configs/ppo of all ten; half an hour
    python scripts/train_games.py --games snake cvrp --out runs/games

Each row is `rlmask train configs/ppo/GAME.yaml`, in a process of its own, timed from start to exit
with its final evaluation of 100 episodes; one after the other. The random policy draws from
the valid actions with equal chances, 1,000 episodes of the same env. Where there is a yardstick
people know, its mean over 200 instances stands beside: nearest neighbour and savings (routing),
shortest and most work remaining (scheduling). Mean and standard error, as a markdown table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import yaml

from rlmask_envs import cvrp, dispatching, routes

ROOT = Path(__file__).parents[1]
GAMES = {
    "snake": "Snake",
    "game2048": "Game2048",
    "sokoban": "Sokoban",
    "tetris": "Tetris",
    "courier": "Courier",
    "minesweeper": "Minesweeper",
    "connect_four": "ConnectFour",
    "othello": "Othello",
    "cvrp": "CVRP",
    "job_shop": "JobShop",
}


def random_returns(env_id: str, sizes: dict, episodes: int = 1000) -> list[float]:
    """Return the returns of the random valid policy; every copy plays its share."""
    envs = gym.make_vec(env_id.rpartition(":")[2], 100, **sizes)
    rng = np.random.default_rng(0)
    share = -(-episodes // 100)
    running, returns = np.zeros(100), [[] for _ in range(100)]
    mask = envs.reset(seed=1)[1]["action_mask"]
    while min(map(len, returns)) < share:
        action = (rng.random(mask.shape, np.float32) * mask).argmax(1)
        _, reward, terminated, truncated, info = envs.step(action)
        mask = info["action_mask"]
        running += reward
        for index in np.flatnonzero(terminated | truncated):
            returns[index].append(float(running[index]))
            running[index] = 0
    return [value for of_one in returns for value in of_one[:share]]


def yardstick(game: str, sizes: dict) -> str:
    """Return what heuristics that people know reach, or nothing."""
    if game == "cvrp":
        env = gym.make("rlmask/CVRP-v0", **sizes)
        found = {"nearest neighbour": [], "savings": []}
        for seed in range(200):
            coords, demands, capacity = cvrp.instance(env.reset(seed=seed)[0])
            for name, rule in zip(found, (routes.nearest_neighbour, routes.savings), strict=True):
                found[name].append(routes.length(coords, rule(coords, demands, capacity)))
        return ", ".join(f"{name} {-statistics.fmean(v):.2f}" for name, v in found.items())
    if game == "job_shop":
        env = gym.make("rlmask/JobShop-v0", **sizes)
        found = {"spt": [], "mwkr": []}
        for seed in range(200):
            env.reset(seed=seed)
            state = env.unwrapped.state
            for rule, spans in found.items():
                spans.append(dispatching.dispatch(state.durations, state.machines, rule)[0])
        return ", ".join(f"{name.upper()} {-statistics.fmean(v):.0f}" for name, v in found.items())
    return ""


def plus_minus(returns: list[float]) -> str:
    error = statistics.stdev(returns) / len(returns) ** 0.5
    return f"{statistics.fmean(returns):.2f} ± {error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--games", nargs="+", choices=list(GAMES), default=list(GAMES))
    parser.add_argument("--out", type=Path, default=Path("runs/games"))
    arguments = parser.parse_args()
    print("| game | random valid | PPO | seconds | steps | yardstick |")
    print("|---|---|---|---|---|---|", flush=True)
    for game in arguments.games:
        config = ROOT / "configs" / "ppo" / f"{game}.yaml"
        settings = yaml.safe_load(config.read_text())
        sizes = settings.get("env_kwargs", {})
        run_dir = arguments.out / game
        command = [sys.executable, "-m", "rlmask.cli", "train", config, "--run-dir", run_dir]
        start = time.perf_counter()
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        result = json.loads((run_dir / "result.json").read_text())
        print(
            f"| {GAMES[game]} | {plus_minus(random_returns(settings['env'], sizes))} "
            f"| {result['mean_return']:.2f} ± {result['standard_error']:.2f} | {seconds:.0f} "
            f"| {settings['total_steps'] / 1e6:.1f} M | {yardstick(game, sizes)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
