"""Compare rlmask's DQN with Stable-Baselines3's, and masked PQN with masked DQN.

    pip install 'rlmask[bench]'
    python scripts/benchmark_dqn.py                # both, some minutes on 2 cores
    python scripts/benchmark_dqn.py learner        # updates/s of DQN on CartPole-v1
    python scripts/benchmark_dqn.py time           # masked PQN and DQN: seconds to a return of 7.0

Every measurement is a process of its own, the two in turn, compared pair by pair. All has one torch
thread. In `learner` both have one gradient step in four env steps, Huber's loss, Gymnasium's own
CartPole-v1 without the passive checker, the same schedule of epsilon, and neither double nor
dueling; relu 64-64 and batches of 32, which are Stable-Baselines3's defaults, and once larger.
Counted is everything that happens between two gradient steps: act, step the envs, store, draw,
learn. `time` compares two configs, configs/pqn/taxi.yaml and configs/dqn/taxi.yaml, each with the
network and the settings that suit it: both train until the mean of the last hundred training
episodes is 7.0, which is looked at every 512 env steps. The clock starts when the envs are made,
after the imports and a first gradient step, so that nothing is compiled or loaded by then.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from side_by_side import mean_of_last, peak_memory_mb, report, run_pairs

CONFIGS = Path(__file__).parents[1] / "configs"
LEARNER = dict(learning_starts=1000, gamma=0.99, max_grad_norm=10.0)
NUM_STEPS, STEPS_PER_GRADIENT = 40_960, 4
LEARNING_RATE, CAPACITY, TARGET_PERIOD = 5e-4, 100_000, 250
EPSILON_FRACTION = 0.1  # of the run, over which epsilon falls from 1 to 0.05


def learner_rlmask(num_envs: int, width: int, batch_size: int, seed: int, steps: int) -> dict:
    from rlmask import dqn

    num_steps = max(1, STEPS_PER_GRADIENT // num_envs)
    config = dqn.DQNConfig(
        env="CartPole-v1",
        seed=seed,
        total_steps=steps,
        batch_size=batch_size,
        num_envs=num_envs,
        num_steps=num_steps,
        num_gradient_steps=num_envs * num_steps // STEPS_PER_GRADIENT,
        learning_rate=LEARNING_RATE,
        replay_capacity=CAPACITY,
        target_update_period=TARGET_PERIOD,
        epsilon_steps=int(EPSILON_FRACTION * steps),
        double=False,
        hidden_sizes=(width, width),
        device="cpu",
        **LEARNER,
    )
    times = []
    for update in dqn.train(config):
        times.append((time.perf_counter(), update.env_steps))
    return updates_per_second(times)


def learner_sb3(num_envs: int, width: int, batch_size: int, seed: int, steps: int) -> dict:
    import gymnasium as gym
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)
    times: list[tuple[float, int]] = []

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % 2048 == 0:
                times.append((time.perf_counter(), self.num_timesteps))
            return True

    num_steps = max(1, STEPS_PER_GRADIENT // num_envs)
    model = DQN(
        "MlpPolicy",
        DummyVecEnv([lambda: gym.make("CartPole-v1", disable_env_checker=True)] * num_envs),
        learning_rate=LEARNING_RATE,
        batch_size=batch_size,
        buffer_size=CAPACITY,
        train_freq=num_steps,
        gradient_steps=num_envs * num_steps // STEPS_PER_GRADIENT,
        target_update_interval=TARGET_PERIOD * STEPS_PER_GRADIENT,
        exploration_fraction=EPSILON_FRACTION,
        exploration_final_eps=0.05,
        policy_kwargs=dict(net_arch=[width, width]),
        seed=seed,
        device="cpu",
        **LEARNER,
    )
    model.learn(steps, callback=Clock())
    return updates_per_second(times)


def updates_per_second(times: list[tuple[float, int]]) -> dict:
    """Return the slope after the first tenth of the run, in which it begins to learn."""
    (t0, s0), (t1, s1) = times[max(1, len(times) // 10)], times[-1]
    return {
        "updates_per_second": (s1 - s0) / STEPS_PER_GRADIENT / (t1 - t0),
        "env_steps_per_second": (s1 - s0) / (t1 - t0),
        "peak_memory_mb": peak_memory_mb(),
    }


def learner(pairs: int) -> None:
    for num_envs, width, batch_size in [(8, 64, 32), (1, 64, 32), (8, 128, 128)]:
        job = {"what": "learner", "num_envs": num_envs, "width": width, "batch_size": batch_size}
        results = run_pairs(__file__, {"rlmask": job, "sb3": job}, pairs)
        print(
            f"DQN, CartPole-v1, {num_envs} envs, network {width}-{width}, batches of {batch_size} "
            f"({pairs} pairs, medians, 95 % of the ratio)"
        )
        report(results, "updates_per_second", higher_is_better=True)
        report(results, "peak_memory_mb", higher_is_better=False)


def time_to_return(pairs: int, target: float = 7.0) -> None:
    jobs = {who: {"what": "time", "target": target} for who in ("pqn", "dqn")}
    results = run_pairs(__file__, jobs, pairs)
    print(f"Taxi-v4, masked, seconds to a mean training return of {target} ({pairs} seeds)")
    for who, runs in results.items():
        print(f"  {who} reached it in {sum(r['reached'] for r in runs)} of {pairs} runs")
    report(results, "seconds", higher_is_better=False)
    report(results, "env_steps", higher_is_better=False)


def train_to(algo: str, seed: int, target: float) -> dict:
    from rlmask import runs
    from rlmask.config import read_yaml

    path = CONFIGS / algo / "taxi.yaml"
    config = runs.parse_config(read_yaml(path), str(path))
    _, train, _ = runs.ALGORITHMS[algo]
    settings = replace(config.settings, seed=seed)
    warm_up = settings
    if algo == "dqn":
        settings = replace(settings, phases_per_update=512 // settings.steps_per_phase)
        warm_up = replace(settings, learning_starts=64)
    next(train(warm_up))
    returns: list[float] = []
    start, env_steps = time.perf_counter(), 0
    for update in train(settings):
        returns += [episode.episode_return for episode in update.episodes]
        env_steps = update.env_steps
        if mean_of_last(returns) >= target:
            break
    return {
        "seconds": time.perf_counter() - start,
        "env_steps": env_steps,
        "reached": mean_of_last(returns) >= target,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare DQN with Stable-Baselines3 and PQN.")
    parser.add_argument(
        "what", nargs="?", default="all", choices=["all", "learner", "time", "child"]
    )
    parser.add_argument("--pairs", type=int, default=5, help="A/B pairs of processes")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "child":
        print(json.dumps(run_job(json.loads(arguments.job))))
    if arguments.what in ("all", "learner"):
        learner(arguments.pairs)
    if arguments.what in ("all", "time"):
        time_to_return(arguments.pairs)


def run_job(job: dict) -> dict:
    if job["what"] == "time":
        return train_to(job["who"], job["seed"], job["target"])
    run = learner_rlmask if job["who"] == "rlmask" else learner_sb3
    return run(job["num_envs"], job["width"], job["batch_size"], job["seed"], NUM_STEPS)


if __name__ == "__main__":
    main()
