"""Train the T-maze with and without memory on several seeds; print the table, draw the figure.

    python scripts/memory.py                          # 3 seeds; some minutes
    python scripts/memory.py --seeds 1 --total-steps 50_000 --out memory.png

Each run is `rlmask train CONFIG --seed S`, one after the other. The return of an episode is 1 if
the right door was taken, so that means are shares of successes: those of the curves over the last
100 training episodes, those of the table over 100 greedy episodes that training never saw.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from rlmask.log import read_metrics

ROOT = Path(__file__).parents[1]
VARIANTS = {
    "recurrent PPO with attention": "configs/recurrent_ppo/tmaze_attention.yaml",
    "recurrent PPO": "configs/recurrent_ppo/tmaze.yaml",
    "PPO": "configs/ppo/tmaze.yaml",
}
CHANCE = 1 / 4  # of four doors
SOLVED = 0.95


def train(config: str, seed: int, run: Path, total_steps: int | None) -> dict[str, list[float]]:
    """Train one run; return its curve, its success at the end, and its seconds."""
    command = [sys.executable, "-m", "rlmask.cli", "train", str(ROOT / config)]
    command += ["--seed", str(seed), "--run-dir", str(run)]
    if total_steps:
        command += ["--total-steps", str(total_steps)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # says on stderr what failed
    metrics = [line for line in read_metrics(run) if "rollout/episode_return" in line]
    return {
        "steps": [line["env_steps"] for line in metrics],
        "success": [line["rollout/episode_return"] for line in metrics],
        "final": [json.loads((run / "result.json").read_text())["mean_return"]],
        "seconds": [metrics[-1]["seconds"]],
    }


def row(name: str, runs: list[dict[str, list[float]]]) -> str:
    """Return the line of the table of one variant."""
    finals = ", ".join(f"{run['final'][0]:.0%}" for run in runs)
    solved = []
    for run in runs:
        pairs = zip(run["steps"], run["success"], strict=True)
        solved.append(next((step for step, success in pairs if success >= SOLVED), None))
    reached = ", ".join("never" if step is None else f"{step:,}" for step in solved)
    seconds = statistics.fmean(run["seconds"][0] for run in runs)
    return f"| {name} | {finals} | {reached} | {seconds:.0f} |"


def draw(results: dict[str, list[dict[str, list[float]]]], path: Path) -> None:
    """Draw success over env steps, a line a seed and their mean."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, (name, runs) in enumerate(results.items()):
        color = f"C{number}"
        for run in runs:
            axis.plot(run["steps"], run["success"], color=color, alpha=0.3, linewidth=1)
        grid = np.unique(np.concatenate([run["steps"] for run in runs]))
        curves = [np.interp(grid, run["steps"], run["success"]) for run in runs]
        axis.plot(grid, np.mean(curves, axis=0), color=color, linewidth=2, label=name)
    axis.axhline(CHANCE, color="gray", linestyle=":", label="chance, 1 of 4 doors")
    axis.set(xlabel="env steps", ylabel="success, last 100 episodes", ylim=(0, 1.02))
    axis.set_title(f"T-maze, {len(next(iter(results.values())))} seeds")
    axis.legend(frameon=False, loc="center right")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--total-steps", type=int, help="in place of those of the configs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "memory.png")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, list[float]]]] = {}
    print(f"| | success, each seed | env steps to {SOLVED:.0%} in training | seconds a run |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, config in VARIANTS.items():
            results[name] = [
                train(config, seed, Path(folder) / f"{name} {seed}", arguments.total_steps)
                for seed in range(arguments.seeds)
            ]
            print(row(name, results[name]), flush=True)
    draw(results, arguments.out)


if __name__ == "__main__":
    main()
