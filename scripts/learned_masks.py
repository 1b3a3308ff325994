"""PPO and DQN on Adventure with a learned mask, without any, and with the true one.

    python scripts/learned_masks.py                               # 3 seeds
    python scripts/learned_masks.py --seeds 1 --total-steps 50_000 --out learned_masks.png

Each run is in this process, one after the other, the seeds outermost. It says how many env steps it
took until the mean return of the last 100 training episodes reached the threshold (after the time
of two whole episodes at the earliest, since short ones end first), and what share of the way from
"none" to "true" the learned mask goes. At the first update with the mask on, and at the end, the
head is held against the true masks of states that random valid play visits.
"""

import argparse
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from rlmask.config import read_yaml
from rlmask.learned_mask import load_head
from rlmask.runs import ALGORITHMS, parse_config
from rlmask.types import Update
from rlmask.vector import Game, make_vector

ROOT = Path(__file__).parents[1]
ALGOS = ("ppo", "dqn")
KINDS = {"true": "true mask", "learned": "learned mask", "none": "no mask"}
COLORS = {"true": "#e08a1e", "learned": "#2f7ed8", "none": "#8a919e"}
GOAL = 0.8
EPISODE_STEPS = 200  # limit of all of them, invalid actions included
STEPS_OF_CHECK = 300  # of random play in 32 envs


class Truth(NamedTuple):
    """A learned mask after some env steps, against the true one.

    Attributes:
        precision: of "invalid".
        kept: share of the valid actions that it leaves.
    """

    env_steps: int
    precision: float
    kept: float


class Run(NamedTuple):
    """What one run showed.

    Attributes:
        reached: env steps to the threshold; None: never.
        first, last: of the learned mask, when it was first on, and at the end.
        share_on: of the updates from then on.
    """

    steps: list[int]
    returns: list[float]
    reached: int | None
    first: Truth | None
    last: Truth | None
    share_on: float


def settings(algo: str, kind: str, seed: int, total_steps: int) -> Any:
    """Return the settings of a run: those of the config but for the mask."""
    path = ROOT / "configs" / algo / "adventure_unmasked.yaml"
    config = parse_config(read_yaml(path), str(path)).settings
    env_kwargs = {**config.env_kwargs, "max_episode_steps": EPISODE_STEPS}
    config = replace(config, seed=seed, total_steps=total_steps, env_kwargs=env_kwargs)
    if kind == "learned":
        return config
    config = replace(config, learned_mask=False)
    if kind == "none":
        return config
    game = true_game(config)
    return replace(config, env=game.env_id, env_kwargs=game.env_kwargs)


def true_game(config: Any) -> Game:
    """Return the game with its mask."""
    inner = config.env_kwargs.get("env_kwargs", {})
    limit = {"max_episode_steps": EPISODE_STEPS}
    return Game(env_id=config.env_kwargs["env_id"], env_kwargs={**inner, **limit})


def train(algo: str, kind: str, seed: int, total_steps: int, threshold: float) -> Run:
    """Train until the threshold is reached, and half as long again; return what it showed."""
    config = settings(algo, kind, seed, total_steps)
    steps, returns = [], []
    reached, first, last, is_on = None, None, None, []
    # the first episodes to end are short ones, those with a success
    earliest = 2 * config.num_envs * EPISODE_STEPS
    updates = ALGORITHMS[algo].train(config)
    for update in updates:
        if first is not None:
            is_on.append(update.metrics["validity/on"])
        elif update.metrics.get("validity/on"):
            first = against_the_truth(config, update)
        if "rollout/episode_return" in update.metrics:
            steps.append(update.env_steps)
            returns.append(update.metrics["rollout/episode_return"])
            if reached is None and returns[-1] >= threshold and update.env_steps >= earliest:
                reached = update.env_steps
        is_over = reached is not None and update.env_steps >= 1.5 * reached
        if first is not None and (is_over or update.env_steps >= total_steps):
            last = against_the_truth(config, update)
        if is_over:
            updates.close()
            break
    share_on = statistics.fmean(is_on) if is_on else 0.0
    return Run(steps, returns, reached, first, last, share_on)


@torch.inference_mode()
def against_the_truth(config: Any, update: Update) -> Truth:
    """Return what a run's learned mask takes away from the true ones, and what it leaves."""
    head = load_head(config, update.capture())
    envs = make_vector((true_game(config),), 32, config.seed, stream=1)
    generator = torch.Generator().manual_seed(config.seed)
    obs, mask = envs.reset()
    out = right = valid = wrong = 0
    for _ in range(STEPS_OF_CHECK):
        said = head.eliminated(obs)
        out += int(said.sum())
        right += int((said & ~mask).sum())
        wrong += int((said & mask).sum())
        valid += int(mask.sum())
        step = envs.step(torch.multinomial(mask.float(), 1, generator=generator).squeeze(-1))
        obs, mask = step.obs, step.action_mask
    envs.close()
    return Truth(update.env_steps, right / max(1, out), 1 - wrong / valid)


def said(truth: Truth) -> str:
    return f"{truth.precision:.4f} at {truth.env_steps:,} ({truth.kept:.0%} kept)"


def report(algo: str, runs: dict[str, list[Run]], total_steps: int) -> None:
    """Print the table of one algorithm, and the share of the way."""
    means = {}
    for kind, name in KINDS.items():
        reached = [run.reached for run in runs[kind]]
        shown = ", ".join("never" if step is None else f"{step:,}" for step in reached)
        means[kind] = statistics.fmean(total_steps if s is None else s for s in reached)
        found = ", ".join(
            f"{said(run.first)}; {said(run.last)}, on in {run.share_on:.0%} of the updates"
            for run in runs[kind]
            if run.first is not None and run.last is not None
        )
        print(f"| {algo}, {name} | {shown} | {found or '-'} |", flush=True)
    if means["none"] <= means["true"]:
        print(f"{algo}: no mask needs no more steps than the true one")
        return
    share = (means["none"] - means["learned"]) / (means["none"] - means["true"])
    censored = any(run.reached is None for run in runs["none"])
    bound = " at least, as some runs without a mask never got there" if censored else ""
    if any(run.reached is None for run in runs["learned"]):
        bound += "; some runs with a learned one did not either, and count as the whole run"
    print(f"{algo}: {share:.0%} of the way from no mask to the true one{bound} (goal {GOAL:.0%})")


def draw(results: dict[str, dict[str, list[Run]]], threshold: float, path: Path) -> None:
    """Draw the learning curves, a line a seed."""
    figure, axes = plt.subplots(1, len(results), figsize=(11, 4), layout="constrained")
    for axis, (algo, kinds) in zip(np.atleast_1d(axes), results.items(), strict=True):
        for kind, runs in kinds.items():
            for number, run in enumerate(runs):
                label = KINDS[kind] if not number else None
                axis.plot(run.steps, run.returns, color=COLORS[kind], linewidth=1.6, label=label)
        axis.axhline(threshold, color="gray", linestyle=":", linewidth=1)
        axis.set(xlabel="env steps", title=algo.upper(), xscale="log", ylim=(-2.2, 1.05))
        axis.spines[["top", "right"]].set_visible(False)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("return, last 100 training episodes")
    first.legend(frameon=False, loc="center right")
    figure.savefig(path, dpi=110)


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in ALGOS if name in set(names))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--algos", nargs="+", choices=ALGOS, default=list(ALGOS))
    parser.add_argument("--total-steps", type=int, default=500_000, help="of a run at most")
    parser.add_argument("--threshold", type=float, default=0.5, help="a mean training return")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "learned_masks.png")
    arguments = parser.parse_args()
    algos = chosen(arguments.algos)
    results = {algo: {kind: [] for kind in KINDS} for algo in algos}
    for seed in range(arguments.seeds):
        for algo in algos:
            for kind in KINDS:
                run = train(algo, kind, seed, arguments.total_steps, arguments.threshold)
                results[algo][kind].append(run)
                print(f"{algo} {kind} seed {seed}: {run.reached}", flush=True)
    reached = f"env steps to a return of {arguments.threshold}, each seed"
    print(f"| | {reached} | precision of invalid when first on; at the end |")
    print("|---|---|---|")
    for algo in algos:
        report(algo, results[algo], arguments.total_steps)
    draw(results, arguments.threshold, arguments.out)


if __name__ == "__main__":
    main()
