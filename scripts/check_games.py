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
from pathlib import Path
from zlib import crc32

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from playing import draw, make_vec, options_of, states_of

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
    states, options = states_of(envs), options_of(envs)
    wrong = empty = episodes = valid = 0
    print_one = 0
    for seen in play(envs, steps):
        _, reward_end, info = seen
        for mask, state in zip(info["action_mask"], states, strict=True):
            expected = np.array(game.valid(state, options), bool)
            wrong += int((expected != (mask != 0)).sum())
            empty += not mask.any()
        valid += int(info["action_mask"].sum())
        episodes += int((reward_end[1] | reward_end[2]).sum())
        print_one = digest(seen, print_one)
    bits = steps * NUM_ENVS * envs.single_action_space.n
    print_two = 0
    for seen in play(make_vec(name, NUM_ENVS, num_threads=2), steps):
        print_two = digest(seen, print_two)
    same = "the same" if print_one == print_two else "DIFFERENT"
    print(
        f"{name:14}{steps * NUM_ENVS:11,}{bits:13,}{wrong:7}{empty:7}{episodes:10,}"
        f"{valid / bits:7.0%}{time.perf_counter() - start:9.0f}  {same}",
        flush=True,
    )
    return wrong + empty + (print_one != print_two)


def play(envs: gym.vector.VectorEnv, steps: int):
    """Take random valid actions; yield observations, (reward, terminated, truncated), info."""
    rng = np.random.default_rng(0)
    _, info = envs.reset(seed=0)
    for _ in range(steps):
        obs, *reward_end, info = envs.step(draw(info["action_mask"], rng))
        yield obs, reward_end, info


def digest(seen: tuple, before: int) -> int:
    """Return a checksum of all that is to be seen after a step."""
    obs, reward_end, info = seen
    final = (info["final_obs"], info["final_info"]["action_mask"]) if "final_obs" in info else ()
    for array in (obs, *reward_end, info["action_mask"], *final):
        before = crc32(np.ascontiguousarray(array), before)
    return before


if __name__ == "__main__":
    main()
