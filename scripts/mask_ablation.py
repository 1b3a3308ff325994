"""Train the same learner on Taxi-v4 with and without its mask; count env steps, draw the curves.

    python scripts/mask_ablation.py                             # DQN, 10 seeds, some minutes
    python scripts/mask_ablation.py configs/pqn/taxi.yaml --out pqn.png

Without the mask the env is the same and forgives: an action that would change nothing costs what it
costs in Taxi-v4, 1, or 10 to pick up or drop off at the wrong place. The network, the settings and
the seeds are the same too. After every update the greedy policy's exact return is computed, the
mean over all starts from Taxi's own table of transitions; without the mask it chooses among all
actions there as well. A run ends when that is --threshold or more for the first time; one where it
never is counts with all its steps, fewer than it needs. A schedule that ends at total_steps, as
PQN's learning rate, ends at --max-steps here.
"""

import argparse
import statistics
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from taxi_seeds import exact_return
from torch import Tensor

from rlmask import runs
from rlmask.config import read_yaml
from rlmask.types import Policy, Update

CONFIG = Path(__file__).parents[1] / "configs" / "dqn" / "taxi.yaml"
MASKED, UNMASKED = "Taxi-v4", "TaxiWithoutMask-v4"
COLOURS = {MASKED: "tab:blue", UNMASKED: "tab:orange"}
LABELS = {MASKED: "with the mask", UNMASKED: "without"}
NO_END = -200.0  # what 200 steps on the road cost
Curve = list[tuple[int, float]]  # env steps, exact return


class WithoutMask(gym.Wrapper):
    """Takes the mask out of `info`."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(**kwargs)
        del info["action_mask"]
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take an action."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        del info["action_mask"]
        return obs, reward, terminated, truncated, info


def curve(updates: Iterable[Update], env: str, threshold: float) -> Curve:
    """Return the exact return of the greedy policy after every update, up to the threshold."""
    points: Curve = [(0, NO_END)]
    for update in updates:
        policy = update.policy if env == MASKED else partial(ignoring_mask, update.policy)
        points.append((update.env_steps, max(NO_END, exact_return(policy))))
        if points[-1][1] >= threshold:
            break
    return points


def ignoring_mask(policy: Policy, obs: Tensor, action_mask: Tensor) -> Tensor:
    """Return the best of all actions."""
    return policy(obs, torch.ones_like(action_mask))


def num_reached(done: list[Curve], threshold: float) -> int:
    """Return how many runs end at the threshold."""
    return sum(points[-1][1] >= threshold for points in done)


def more_than(done: list[Curve], threshold: float) -> str:
    """Return what to say before the median of env steps: that it is more, if half fell short."""
    return "" if 2 * num_reached(done, threshold) > len(done) else "more than "


def median_needed(done: list[Curve]) -> float:
    """Return the median of the env steps."""
    return statistics.median(points[-1][0] for points in done)


def draw(curves: dict[str, list[Curve]], threshold: float, out: Path) -> None:
    """Save a picture: a thin line a seed, a thick one of the median."""
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    longest = max((points for done in curves.values() for points in done), key=len)
    thousands = [env_steps / 1000 for env_steps, _ in longest]
    for env, done in curves.items():
        # held where it stopped
        held = [[p[min(i, len(p) - 1)][1] for i in range(len(longest))] for p in done]
        for returns in held:
            axes.plot(thousands, returns, color=COLOURS[env], alpha=0.3, linewidth=0.8)
        median = [statistics.median(column) for column in zip(*held, strict=True)]
        needed = f"{more_than(done, threshold)}{median_needed(done):,.0f} env steps"
        label = f"{LABELS[env]}: median {needed}"
        axes.plot(thousands, median, color=COLOURS[env], linewidth=2, label=label)
    axes.axhline(threshold, color="black", linestyle=":", linewidth=1)
    axes.set_yscale("symlog", linthresh=10)
    ticks = [NO_END, -100, -50, -20, -10, 0, threshold, 10]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(0, thousands[-1])
    axes.set_ylim(-230, 14)
    axes.set_xlabel("env steps, thousands")
    axes.set_ylabel(f"exact greedy return, clipped at {NO_END:g}")
    axes.set_title("Taxi-v4: the same learner with and without its mask (median and seeds)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    FigureCanvasAgg(figure).print_png(str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train Taxi with and without the mask.")
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG, help="of a run on Taxi-v4")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threshold", type=float, default=7.5, help="exact return to reach")
    parser.add_argument("--max-steps", type=int, default=400_000, help="env steps of a run")
    parser.add_argument("--out", type=Path, default=Path("mask_ablation.png"), help="the picture")
    arguments = parser.parse_args()
    gym.register(
        UNMASKED, lambda **kwargs: WithoutMask(gym.make(MASKED, disable_env_checker=True, **kwargs))
    )
    run = runs.parse_config(read_yaml(arguments.config), str(arguments.config))
    train = runs.ALGORITHMS[run.algo].train
    curves: dict[str, list[Curve]] = {MASKED: [], UNMASKED: []}
    for seed in range(arguments.seeds):
        settings = replace(run.settings, seed=seed, total_steps=arguments.max_steps)
        said = []
        for env, done in curves.items():
            done.append(curve(train(replace(settings, env=env)), env, arguments.threshold))
            env_steps, reached = done[-1][-1]
            said.append(f"{LABELS[env]} {env_steps:,} env steps to {reached:.2f}")
        print(f"seed {seed}: {', '.join(said)}", flush=True)
    draw(curves, arguments.threshold, arguments.out)
    for env, done in curves.items():
        needed = [points[-1][0] for points in done]
        reached = num_reached(done, arguments.threshold)
        print(
            f"{LABELS[env]}: {reached} of {arguments.seeds} reach {arguments.threshold}, median "
            f"{more_than(done, arguments.threshold)}{median_needed(done):,.0f} env steps "
            f"[{min(needed):,}, {max(needed):,}]"
        )
    ratio = median_needed(curves[UNMASKED]) / median_needed(curves[MASKED])
    more = more_than(curves[UNMASKED], arguments.threshold)
    print(f"without / with, of the medians: {more}{ratio:.1f}; {arguments.out}")


if __name__ == "__main__":
    main()
