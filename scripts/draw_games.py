"""Draw a picture of every native game, after some random valid steps: docs/games.png.

python scripts/draw_games.py [--out docs/games.png]
"""

import argparse
from pathlib import Path

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import rlmask_envs  # noqa: F401  registers the games

GAMES = {  # name -> seed, random steps, keyword arguments
    "Snake": (4, 900, {}),
    "Game2048": (0, 90, {}),
    "Sokoban": (3, 12, {}),
    "Tetris": (1, 14, {}),
    "Courier": (2, 60, {}),
    "Minesweeper": (5, 3, {}),
    "ConnectFour": (1, 7, {"opponent": "heuristic"}),
    "Othello": (0, 14, {}),
    "CVRP": (0, 30, {"num_customers": 50}),
    "JobShop": (0, 55, {}),
    "TMaze": (1, 30, {}),
    "Adventure": (2, 25, {}),
}


def frame(name: str) -> np.ndarray:
    """Return a picture of a game in full swing."""
    seed, steps, sizes = GAMES[name]
    env = gym.make(f"rlmask/{name}-v0", render_mode="rgb_array", **sizes)
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    picture = env.render()
    for _ in range(steps):
        *_, terminated, truncated, info = env.step(rng.choice(np.flatnonzero(info["action_mask"])))
        if terminated or truncated:
            break
        picture = env.render()
    return np.asarray(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/games.png")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(2, 6, figsize=(18, 6.6), layout="constrained")
    for axis, name in zip(axes.flat, GAMES, strict=True):
        axis.axis("off")
        axis.imshow(frame(name), interpolation="antialiased")
        axis.set_title(name)
    figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
