"""Compare policies for vehicle routing with heuristics, on the same instances; draw the figure.

    python scripts/routing.py                          # trains both policies first; over an hour
    python scripts/routing.py --set runs/set --mlp runs/mlp      # runs of the two configs

What is trained stays in runs/routing (`--runs`): called again, the script goes on with a run that
was stopped there, and takes one that is finished as it is.

The policies are those of configs/ppo/cvrp_set.yaml, which fits any number of customers, and of
configs/ppo/cvrp.yaml, fully connected layers for 20. Tours are greedy; the first plays with 50
customers, too, which it has never seen. The lengths of the best tours known are those of Kool et
al. 2019, arXiv:1803.08475, Table 1.
"""

import argparse
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from rlmask.evaluate import evaluate
from rlmask.log import read_metrics
from rlmask.run import load
from rlmask.runs import read_config
from rlmask.vector import VectorEnv, make_vector
from rlmask_envs import cvrp, routes

ROOT = Path(__file__).parents[1]
PUBLISHED = {20: 6.10, 50: 10.38}  # mean length of the best tours known
SEED = 1234  # of the instances, which training never sees


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--set", type=Path, help="run of configs/ppo/cvrp_set.yaml")
    parser.add_argument("--mlp", type=Path, help="run of configs/ppo/cvrp.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/routing"), help="of what it trains")
    parser.add_argument("--total-steps", type=int, help="in place of those of the configs")
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "routing.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    of_set = arguments.set or train("cvrp_set", arguments.runs / "set", arguments.total_steps)
    of_mlp = arguments.mlp or train("cvrp", arguments.runs / "mlp", arguments.total_steps)
    print("| customers | who | mean length | above the best known |")
    print("|---|---|---|---|")
    levels = {}
    for size in (20, 50):
        levels[size] = heuristics(of_set, size, arguments.instances)
        levels[size]["set of customers"] = tours(of_set, size, arguments.instances)
        if size == 20:
            levels[size]["fully connected layers"] = tours(of_mlp, size, arguments.instances)
        for name, lengths in levels[size].items():
            print(row(size, name, lengths), flush=True)
    draw(of_set, of_mlp, levels[20], arguments.out)


def train(name: str, run: Path, total_steps: int | None) -> Path:
    """Train a config as far as that is yet to be done; return the run."""
    if (run / "result.json").is_file():
        return run
    command = [sys.executable, "-m", "rlmask.cli", "train"]
    if run.exists():
        command += ["--resume", str(run)]
    else:
        command += [str(ROOT / "configs" / "ppo" / f"{name}.yaml"), "--run-dir", str(run)]
        command += ["--total-steps", str(total_steps)] if total_steps else []
    subprocess.run(command, check=True)
    return run


def instances(run: Path, size: int, count: int) -> VectorEnv:
    """Return an env of each instance."""
    (game,) = read_config(run).settings.all_games
    game = replace(game, env_kwargs={"num_customers": size})
    return make_vector((game,), count, SEED, vectorization="native", stream=1)


def heuristics(run: Path, size: int, count: int) -> dict[str, list[float]]:
    """Return the lengths of the tours of the heuristics."""
    envs = instances(run, size, count)
    problems = [cvrp.instance(obs) for obs in envs.reset()[0].numpy()]
    envs.close()
    found = {"nearest neighbour": routes.nearest_neighbour, "savings": routes.savings}
    return {
        name: [routes.length(problem[0], heuristic(*problem)) for problem in problems]
        for name, heuristic in found.items()
    }


def tours(run: Path, size: int, count: int) -> list[float]:
    """Return the lengths of a policy's greedy tours, one an instance."""
    envs = instances(run, size, count)
    try:
        policy = load(run, games=envs.spec.games)
        return [-episode.episode_return for episode in evaluate(policy, envs, count)]
    finally:
        envs.close()


def row(size: int, name: str, lengths: list[float]) -> str:
    """Return a line of the table."""
    mean = statistics.fmean(lengths)
    error = statistics.stdev(lengths) / len(lengths) ** 0.5
    return f"| {size} | {name} | {mean:.2f} ± {error:.2f} | {mean / PUBLISHED[size] - 1:.1%} |"


def draw(of_set: Path, of_mlp: Path, levels: dict[str, list[float]], path: Path) -> None:
    """Draw the lengths over the training, and a tour among 50 customers."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for run, name in ((of_set, "set of customers"), (of_mlp, "fully connected layers")):
        lines = [line for line in read_metrics(run) if "rollout/episode_return" in line]
        lengths = [-line["rollout/episode_return"] for line in lines]
        left.plot([line["seconds"] / 60 for line in lines], lengths, label=name, linewidth=1.5)
    for name, style in (("nearest neighbour", ":"), ("savings", "-.")):
        left.axhline(statistics.fmean(levels[name]), color="gray", linestyle=style, label=name)
    left.axhline(PUBLISHED[20], color="gray", linewidth=1, label="best known (published)")
    left.set(xlabel="minutes of training", ylabel="length, last 100 tours", ylim=(5.8, 9.5))
    left.set_title("20 customers")
    left.legend(frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    draw_tour(of_set, right)
    figure.savefig(path, dpi=110)


def draw_tour(run: Path, axes: Axes) -> None:
    """Draw the greedy tour on one instance of 50 customers."""
    envs = instances(run, 50, 1)
    policy = load(run, games=envs.spec.games)
    obs, mask = envs.reset()
    coords, demands, _ = cvrp.instance(obs[0].numpy())
    visits, length = [0], 0.0
    while True:
        action = policy(obs, mask)
        step = envs.step(action)
        visits.append(int(action))
        length -= float(step.reward)
        if step.episodes:
            break
        obs, mask = step.obs, step.action_mask
    envs.close()
    route = -1
    for start, end in pairwise(visits):
        route += start == 0
        line = coords[[start, end]].T
        axes.plot(*line, color=f"C{route % 10}", linewidth=0.8 if 0 in (start, end) else 2)
    axes.scatter(*coords[1:].T, s=6 * demands[1:], color="black", zorder=3)
    axes.scatter(*coords[0], marker="s", s=60, color="black", zorder=3)
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"50 customers, learned on 20: one tour, length {length:.2f}")


if __name__ == "__main__":
    main()
