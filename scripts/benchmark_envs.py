"""Steps per second of the native games, with random valid actions.

    python scripts/benchmark_envs.py               # native games, and peers that are installed
    pip install pgx jumanji open_spiel             # (each in an env of its own if they disagree)

`native` is the vector env that `gymnasium.make_vec` gives: N = 1024 copies on all cores, actions
checked, masks, episodes restarted within the step, arrays copied for the caller. `step` is the time
of its `step` alone; `drawing` has the drawing of random valid actions by NumPy besides. `single` is
one `gymnasium.make` env, as people use it, drawing included. Of a peer, the same game in the way
that is fastest there: Pgx and Jumanji compile step, reset and a masked random policy for 1024
copies into one loop (JAX, on the CPU); OpenSpiel is called from Python, state by state. In games
for two, a native step is two plies, the agent's and the opponent's; a peer's is one, so that its
figure is halved. All in one process, in turn, in several rounds; medians, in thousands of steps a
second.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

import rlmask_envs  # noqa: F401  registers the games

NUM_ENVS = 1024
TARGETS = {  # thousands of steps a second on two cores
    "Snake": 2000,
    "Game2048": 2000,
    "Courier": 2000,
    "ConnectFour": 2000,
    "Sokoban": 500,
    "Tetris": 500,
    "Othello": 500,
    "Minesweeper": 500,
    "CVRP": 200,
    "JobShop": 200,
}
SIZES = {"CVRP": {"num_customers": 50}, "JobShop": {"num_jobs": 10, "num_machines": 10}}


TWO_PLAYERS = ("ConnectFour", "Othello")  # a step is the agent's ply and the opponent's


class Contestant(NamedTuple):
    """One way to play one game."""

    game: str
    who: str
    run: Callable[[], float]  # plays for a while; returns steps a second


def native(
    name: str, steps: int, num_threads: int | None = None, drawing: bool = False
) -> Contestant:
    """A native game as a vector env."""
    envs = gym.make_vec(
        f"rlmask/{name}-v0", NUM_ENVS, num_threads=num_threads, **SIZES.get(name, {})
    )
    rng = np.random.default_rng(0)
    mask = envs.reset(seed=0)[1]["action_mask"]

    def run() -> float:
        nonlocal mask
        seconds = 0.0
        for _ in range(steps):
            start = time.perf_counter()
            action = (rng.random(mask.shape, np.float32) * mask).argmax(1)
            if not drawing:
                start = time.perf_counter()
            *_, info = envs.step(action)
            seconds += time.perf_counter() - start
            mask = info["action_mask"]
        return NUM_ENVS * steps / seconds

    what = "drawing" if drawing else "step" if num_threads is None else "step, 1 thread"
    return Contestant(name, f"native, {what}", run)


def single(name: str, steps: int) -> Contestant:
    """A native game as an ordinary env."""
    env = gym.make(f"rlmask/{name}-v0", **SIZES.get(name, {}))
    rng = np.random.default_rng(0)
    mask = env.reset(seed=0)[1]["action_mask"]

    def run() -> float:
        nonlocal mask
        start = time.perf_counter()
        for _ in range(steps):
            action = rng.choice(np.flatnonzero(mask))
            *_, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                _, info = env.reset()
            mask = info["action_mask"]
        return steps / (time.perf_counter() - start)

    return Contestant(name, "native, single", run)


def halved(run: Callable[[], float]) -> Callable[[], float]:
    """Return plies a second as steps a second."""
    return lambda: run() / 2


def pgx_game(name: str, pgx_name: str, steps: int) -> Contestant:
    """A Pgx game, compiled with its restarts and a random policy."""
    import jax
    import pgx
    from pgx.experimental import auto_reset

    env = pgx.make(pgx_name)
    step = jax.vmap(auto_reset(env.step, env.init))

    @jax.jit
    def many(state: Any, key: Any) -> tuple[Any, Any]:
        def once(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, key = carry
            key, draw, again = jax.random.split(key, 3)
            logits = jax.numpy.where(state.legal_action_mask, 0.0, -1e9)
            action = jax.random.categorical(draw, logits)
            return step(state, action, jax.random.split(again, NUM_ENVS)), key

        return jax.lax.fori_loop(0, steps, once, (state, key))

    key = jax.random.key(0)
    state = jax.jit(jax.vmap(env.init))(jax.random.split(key, NUM_ENVS))
    jax.block_until_ready(many(state, key))  # compiled

    def run() -> float:
        nonlocal state, key
        start = time.perf_counter()
        state, key = jax.block_until_ready(many(state, key))
        return NUM_ENVS * steps / (time.perf_counter() - start)

    return Contestant(name, "Pgx", halved(run) if name in TWO_PLAYERS else run)


def jumanji_game(name: str, make: Callable[[], Any], steps: int) -> Contestant:
    """A Jumanji game, compiled with its restarts and a random policy."""
    import jax
    from jumanji.wrappers import AutoResetWrapper

    env = AutoResetWrapper(make())

    def choose(mask: Any, key: Any) -> Any:
        """Draw one of the valid actions; the mask may have several axes, as the action then has."""
        flat = mask.reshape(-1)
        index = jax.random.categorical(key, jax.numpy.where(flat, 0.0, -1e9))
        if mask.ndim == 1:
            return index
        return jax.numpy.stack(jax.numpy.unravel_index(index, mask.shape))

    @jax.jit
    def many(state: Any, timestep: Any, key: Any) -> tuple[Any, Any, Any]:
        def once(_: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            state, timestep, key = carry
            key, draw = jax.random.split(key)
            draws = jax.random.split(draw, NUM_ENVS)
            action = jax.vmap(choose)(timestep.observation.action_mask, draws)
            return *jax.vmap(env.step)(state, action), key

        return jax.lax.fori_loop(0, steps, once, (state, timestep, key))

    key = jax.random.PRNGKey(0)
    carry = (*jax.jit(jax.vmap(env.reset))(jax.random.split(key, NUM_ENVS)), key)
    jax.block_until_ready(many(*carry))  # compiled

    def run() -> float:
        nonlocal carry
        start = time.perf_counter()
        carry = jax.block_until_ready(many(*carry))
        return NUM_ENVS * steps / (time.perf_counter() - start)

    return Contestant(name, "Jumanji", run)


def open_spiel_game(name: str, open_spiel_name: str, steps: int) -> Contestant:
    """An OpenSpiel game, state by state."""
    import pyspiel

    game = pyspiel.load_game(open_spiel_name)
    rng = np.random.default_rng(0)
    state = game.new_initial_state()

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            while state.is_chance_node():
                outcomes, chances = zip(*state.chance_outcomes(), strict=True)
                state.apply_action(int(rng.choice(outcomes, p=chances)))
            legal = state.legal_actions()
            state.legal_actions_mask()
            if legal:  # its 2048 sometimes lists none where there are some
                state.apply_action(legal[rng.integers(len(legal))])
            if state.is_terminal() or not legal:
                state = game.new_initial_state()
        return steps / (time.perf_counter() - start)

    return Contestant(name, "OpenSpiel", halved(run) if name in TWO_PLAYERS else run)


def peers(name: str) -> list[Contestant]:
    """The peers that are installed, with the games that they have too."""
    found = []
    pgx_names = {"ConnectFour": "connect_four", "Othello": "othello", "Game2048": "2048"}
    if name in pgx_names and importlib.util.find_spec("pgx"):
        found.append(pgx_game(name, pgx_names[name], 100))
    if importlib.util.find_spec("jumanji"):
        import jumanji
        from jumanji.environments import CVRP
        from jumanji.environments.routing.cvrp.generator import UniformGenerator

        makers = {
            "Snake": lambda: jumanji.make("Snake-v1", num_rows=10, num_cols=10),
            "Game2048": lambda: jumanji.make("Game2048-v1"),
            "Minesweeper": lambda: jumanji.make("Minesweeper-v0"),
            "CVRP": lambda: CVRP(generator=UniformGenerator(50, 40, 9)),
            # other rules: Tetris places a piece at once, JobShop runs in time; Sokoban downloads
        }
        if name in makers:
            found.append(jumanji_game(name, makers[name], 20))
    open_spiel_names = {"ConnectFour": "connect_four", "Othello": "othello", "Game2048": "2048"}
    if name in open_spiel_names and importlib.util.find_spec("pyspiel"):
        found.append(open_spiel_game(name, open_spiel_names[name], 2000))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--games", nargs="+", choices=sorted(TARGETS), default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200, help="vector steps in a round")
    arguments = parser.parse_args()
    print("thousands of steps a second; median of", arguments.rounds, "rounds [lowest, highest]")
    for name in arguments.games:
        contestants = [
            native(name, arguments.steps),
            native(name, arguments.steps, drawing=True),
            native(name, arguments.steps, num_threads=1),
            single(name, 1000),
            *peers(name),
        ]
        for contestant in contestants:
            contestant.run()  # warm, and its episodes are at all stages
        speeds: dict[str, list[float]] = {contestant.who: [] for contestant in contestants}
        for _ in range(arguments.rounds):
            for contestant in contestants:
                speeds[contestant.who].append(contestant.run() / 1000)
        for who, figures in speeds.items():
            aim = f"   aim {TARGETS[name]:,}" if who == "native, step" else ""
            print(
                f"{name:12} {who:20} {statistics.median(figures):10,.0f} "
                f"[{min(figures):,.0f}, {max(figures):,.0f}]{aim}",
                flush=True,
            )


if __name__ == "__main__":
    main()
