"""Play every native game at random for a million steps, and check every bit of every mask.

    python scripts/check_games.py                  # a million steps a game; about a quarter hour
    python scripts/check_games.py --games Snake Othello --steps 100_000

Each mask is compared with the rules as `tests/reference_games` has them: written once more, in
ordinary Python, from the state of the game. Counted too are masks without a valid action, and the
whole play is done again with another number of threads: every observation, mask, reward and end has
to be the same. Exit code 1 if anything differs. (Other sizes, the masks of truncated states and
those after a reset are compared in tests/envs/test_contract.py.)
"""

import argparse
import importlib
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from playing import make_vec, play

import rlmask_envs  # noqa: F401  registers the games

NUM_ENVS = 64
GAMES = {
    spec.name: spec.kwargs["game"]
    for spec in gym.registry.values()
    if spec.entry_point == "rlmask_envs.envs:GameEnv"
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--games", nargs="+", choices=sorted(GAMES), default=sorted(GAMES))
    parser.add_argument("--steps", type=int, default=1_000_000, help="of each game, over 64 envs")
    arguments = parser.parse_args()
    steps = -(-arguments.steps // NUM_ENVS)
    print(
        f"{'game':14}{'steps':>11}{'mask bits':>13}{'wrong':>7}{'empty':>7}{'episodes':>10}"
        f"{'valid':>7}{'seconds':>9}  threads"
    )
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        failures = sum(pool.imap(check, [(name, steps) for name in arguments.games]))
    sys.exit(failures > 0)


def check(job: tuple[str, int]) -> int:
    """Check one game; print a line, and return the number of failures."""
    name, steps = job
    start = time.perf_counter()
    game = importlib.import_module(f"reference_games.{GAMES[name].rpartition('.')[2]}")
    envs = make_vec(name, NUM_ENVS, num_threads=1)
    states, options = envs.states, envs.options
    wrong = empty = episodes = valid = 0
    first = 0
    for _, *seen in play(envs, steps):
        *_, terminated, truncated, info = seen
        for mask, state in zip(info["action_mask"], states, strict=True):
            expected = np.array(game.valid(state, options), bool)
            wrong += int((expected != (mask != 0)).sum())
            empty += not mask.any()
        valid += int(info["action_mask"].sum())
        episodes += int((terminated | truncated).sum())
        first = checksum(seen, first)
    bits = steps * NUM_ENVS * envs.single_action_space.n
    second = 0
    for _, *seen in play(make_vec(name, NUM_ENVS, num_threads=2), steps):
        second = checksum(seen, second)
    same = "the same" if first == second else "DIFFERENT"
    print(
        f"{name:14}{steps * NUM_ENVS:11,}{bits:13,}{wrong:7}{empty:7}{episodes:10,}"
        f"{valid / bits:7.0%}{time.perf_counter() - start:9.0f}  {same}",
        flush=True,
    )
    return wrong + empty + (first != second)


def checksum(seen: Sequence, before: int) -> int:
    """Return a checksum of all that is to be seen after a step."""
    *arrays, info = seen
    final = (info["final_obs"], info["final_info"]["action_mask"]) if "final_obs" in info else ()
    for array in (*arrays, info["action_mask"], *final):
        before = crc32(np.ascontiguousarray(array), before)
    return before


if __name__ == "__main__":
    main()
