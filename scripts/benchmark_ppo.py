"""Compare rlmask's PPO with sb3-contrib's MaskablePPO: same env, settings and machine, in turn.

    pip install 'rlmask[bench]'
    python scripts/benchmark_ppo.py                # everything, about half an hour on 2 cores
    python scripts/benchmark_ppo.py speed          # steps/s for two settings
    python scripts/benchmark_ppo.py time           # seconds to a mean return of 7.0
    python scripts/benchmark_ppo.py ops            # the masked ops alone

Every measurement is a process of its own; the two are interleaved (A B, B A, ...) and compared
pair by pair, so that a drift of the machine's speed hits both. Both get Gymnasium's own Taxi-v4
without the passive checker, tanh 64-64 networks that share nothing, Adam with eps 1e-5, and one
torch thread.
"""

import argparse
import json
import math
import statistics
import time

from side_by_side import mean_of_last, peak_memory_mb, report, run_pairs, time_interleaved

START = time.perf_counter()

SPEED = {
    "64 envs x 128 steps, 4 epochs, minibatch 1024": dict(
        num_envs=64, num_steps=128, num_epochs=4, num_minibatches=8, total_steps=15 * 8192
    ),
    "8 envs x 2048 steps, 10 epochs, minibatch 64": dict(
        num_envs=8, num_steps=2048, num_epochs=10, num_minibatches=256, total_steps=3 * 16384
    ),
}
TIME = dict(
    num_envs=64,
    num_steps=64,
    num_epochs=4,
    num_minibatches=8,
    total_steps=3_000_000,
    learning_rate=2.5e-3,
    gae_lambda=0.9,
    max_grad_norm=10.0,
)


def train_rlmask(settings: dict, seed: int, target: float | None) -> dict:
    from rlmask import ppo

    config = ppo.PPOConfig(
        env="Taxi-v4", seed=seed, anneal_learning_rate=False, device="cpu", **settings
    )
    times, returns = [], []
    for update in ppo.train(config):
        times.append((time.perf_counter(), update.env_steps))
        returns += [episode.episode_return for episode in update.episodes]
        if target is not None and mean_of_last(returns) >= target:
            break
    return summary(times, returns)


def train_sb3(settings: dict, seed: int, target: float | None) -> dict:
    import gymnasium as gym
    import torch
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)

    class TaxiMask(gym.Wrapper):
        """Keeps the mask of the last info, the cheapest thing that `action_masks()` can return."""

        def reset(self, **kwargs):
            obs, info = self.env.reset(**kwargs)
            self.mask = info["action_mask"]
            self.total, self.length = 0.0, 0
            return obs, info

        def step(self, action):
            obs, reward, terminated, truncated, info = self.env.step(action)
            self.mask = info["action_mask"]
            self.total += float(reward)
            if terminated or truncated:
                returns.append(self.total)
            return obs, reward, terminated, truncated, info

        def action_masks(self):
            return self.mask

    returns: list[float] = []
    times: list[tuple[float, int]] = []

    class Clock(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps:
                times.append((time.perf_counter(), self.num_timesteps))

        def _on_step(self) -> bool:
            # as for rlmask: looked at once an update, when a rollout is complete
            at_end = self.num_timesteps % (num_envs * settings["num_steps"]) == 0
            return not (target is not None and at_end and mean_of_last(returns) >= target)

    num_envs = settings["num_envs"]

    def make() -> gym.Env:
        return TaxiMask(gym.make("Taxi-v4", disable_env_checker=True))

    model = MaskablePPO(
        "MlpPolicy",
        DummyVecEnv([make] * num_envs),
        learning_rate=settings.get("learning_rate", 2.5e-4),
        n_steps=settings["num_steps"],
        batch_size=num_envs * settings["num_steps"] // settings["num_minibatches"],
        n_epochs=settings["num_epochs"],
        gamma=0.99,
        gae_lambda=settings.get("gae_lambda", 0.95),
        clip_range=0.2,
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=settings.get("max_grad_norm", 0.5),
        policy_kwargs=dict(
            net_arch=dict(pi=[64, 64], vf=[64, 64]),
            activation_fn=torch.nn.Tanh,
            optimizer_kwargs=dict(eps=1e-5),
        ),
        seed=seed,
        device="cpu",
    )
    model.learn(settings["total_steps"], callback=Clock())
    times.append((time.perf_counter(), model.num_timesteps))
    return summary(times, returns)


def summary(times: list[tuple[float, int]], returns: list[float]) -> dict:
    """Steps/s is the slope after the first tenth of the updates (at least one)."""
    (t0, s0), (t1, s1) = times[max(0, len(times) // 10 - 1)], times[-1]
    return {
        "steps_per_second": (s1 - s0) / (t1 - t0) if t1 > t0 else None,
        "seconds": t1 - START,
        "env_steps": s1,
        "mean_return": statistics.fmean(returns[-100:]) if returns else -math.inf,
        "peak_memory_mb": peak_memory_mb(),
    }


def jobs_of(settings: dict, target: float | None) -> dict:
    return {who: {"settings": settings, "target": target} for who in ("rlmask", "sb3-contrib")}


def speed(pairs: int) -> None:
    for name, settings in SPEED.items():
        results = run_pairs(__file__, jobs_of(settings, target=None), pairs)
        print(f"Taxi-v4, {name} ({pairs} pairs, medians, 95 % interval of the paired ratio)")
        report(results, "steps_per_second", higher_is_better=True)
        report(results, "peak_memory_mb", higher_is_better=False)


def time_to_return(pairs: int, target: float = 7.0) -> None:
    results = run_pairs(__file__, jobs_of(TIME, target), pairs)
    hits = {who: sum(r["mean_return"] >= target for r in rs) for who, rs in results.items()}
    print(f"Taxi-v4, seconds from process start to a mean training return of {target}: {TIME}")
    print(f"  reached: rlmask {hits['rlmask']}, sb3-contrib {hits['sb3-contrib']} of {pairs}")
    if hits["rlmask"] + hits["sb3-contrib"] < 2 * pairs:
        print("  a run that did not reach it counts with its whole time, so the ratio is a bound")
    report(results, "seconds", higher_is_better=False)
    report(results, "env_steps", higher_is_better=False)


def ops(repetitions: int) -> None:
    """Time the masked ops against sb3-contrib's distribution and unmasked torch."""
    import torch
    from sb3_contrib.common.maskable.distributions import MaskableCategorical

    from rlmask.ops import masked_log_prob_and_entropy, masked_sample

    torch.set_num_threads(1)
    print(
        f"masked ops, one thread, median of {repetitions} interleaved rounds; "
        "ratio = other / rlmask"
    )
    for rows, actions in [(64, 6), (1024, 6), (4096, 1225)]:
        logits = torch.randn(rows, actions)
        mask = torch.rand(rows, actions) < 0.5
        mask[:, 0] = True
        action = mask.int().argmax(-1)
        grad_logits = logits.clone().requires_grad_()

        def sample_rlmask(logits=logits, mask=mask):
            masked_sample(logits, mask)

        def sample_sb3(logits=logits, mask=mask):
            distribution = MaskableCategorical(logits=logits, masks=mask)
            distribution.log_prob(distribution.sample())

        def sample_torch(logits=logits):
            # what one writes without masks: the Gumbel-max draw, as torch.multinomial does it
            log_probs = torch.log_softmax(logits, -1)
            gumbel = torch.empty_like(log_probs).exponential_().log_()
            drawn = (log_probs - gumbel).argmax(-1, keepdim=True)
            return drawn.squeeze(-1), log_probs.gather(-1, drawn).squeeze(-1)

        def loss_rlmask(logits=grad_logits, mask=mask, action=action):
            logits.grad = None
            log_prob, entropy = masked_log_prob_and_entropy(logits, mask, action)
            (log_prob.mean() + entropy.mean()).backward()

        def loss_sb3(logits=grad_logits, mask=mask, action=action):
            logits.grad = None
            distribution = MaskableCategorical(logits=logits, masks=mask)
            (distribution.log_prob(action).mean() + distribution.entropy().mean()).backward()

        def loss_torch(logits=grad_logits, action=action):
            logits.grad = None
            log_probs = torch.log_softmax(logits, -1)
            log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            (log_prob.mean() + entropy.mean()).backward()

        calls = max(1, 200_000 // (rows * actions))
        with torch.inference_mode():  # as in a rollout
            row = time_interleaved([sample_rlmask, sample_sb3, sample_torch], calls, repetitions)
        print_row(f"sample + log-prob, {rows} x {actions}", row)
        row = time_interleaved([loss_rlmask, loss_sb3, loss_torch], calls, repetitions)
        print_row(f"log-prob + entropy + backward, {rows} x {actions}", row)
        ppo_loss(logits, mask, action, calls, repetitions)


def ppo_loss(logits, mask, action, calls: int, repetitions: int) -> None:
    """Time the whole loss of a minibatch and its gradient by logits and value."""
    import torch
    from sb3_contrib.common.maskable.distributions import MaskableCategorical

    from rlmask.ops import masked_ppo_loss

    rows = len(logits)
    old_log_prob, old_value, advantage, value_target = torch.randn(4, rows)
    with_grad, value = logits.clone().requires_grad_(), torch.randn(rows, requires_grad=True)
    settings = dict(
        clip_range=0.2,
        value_clip_range=None,
        value_coef=0.5,
        entropy_coef=0.01,
        normalize_entropy=False,
    )

    def rlmask():
        masked_ppo_loss(
            logits,
            value,
            mask,
            action,
            old_log_prob,
            old_value,
            advantage,
            value_target,
            **settings,
        )

    def backward(log_prob, entropy):
        ratio = (log_prob - old_log_prob).exp()
        gain, clipped = advantage * ratio, advantage * ratio.clamp(0.8, 1.2)
        value_loss = torch.nn.functional.mse_loss(value, value_target)
        loss = -torch.minimum(gain, clipped).mean() + 0.5 * value_loss - 0.01 * entropy.mean()
        torch.autograd.grad(loss, (with_grad, value))

    def sb3():
        distribution = MaskableCategorical(logits=with_grad, masks=mask)
        backward(distribution.log_prob(action), distribution.entropy())

    def unmasked():
        log_probs = torch.log_softmax(with_grad, -1)
        log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        backward(log_prob, -(log_probs.exp() * log_probs).sum(-1))

    times = time_interleaved([rlmask, sb3, unmasked], calls, repetitions)
    print_row(f"PPO loss + gradient, {rows} x {logits.shape[1]}", times)


def print_row(name: str, times: list[list[float]]) -> None:
    ours, sb3, unmasked = times
    medians = [statistics.median(t) for t in times]
    to_sb3 = statistics.median(b / a for a, b in zip(ours, sb3, strict=True))
    to_unmasked = statistics.median(a / b for a, b in zip(ours, unmasked, strict=True))
    print(
        f"  {name:46} rlmask {medians[0]:9.1f} µs   sb3-contrib {medians[1]:9.1f} µs "
        f"({to_sb3:.1f}x)   unmasked torch {medians[2]:9.1f} µs (rlmask takes {to_unmasked:.2f}x)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare rlmask with sb3-contrib.")
    parser.add_argument(
        "what", nargs="?", default="all", choices=["all", "speed", "time", "ops", "child"]
    )
    parser.add_argument("--pairs", type=int, default=5, help="A/B pairs of processes")
    parser.add_argument("--repetitions", type=int, default=31, help="rounds of the op table")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "child":
        job = json.loads(arguments.job)
        train = train_rlmask if job["who"] == "rlmask" else train_sb3
        print(json.dumps(train(job["settings"], job["seed"], job["target"])))
        return
    if arguments.what in ("all", "ops"):
        ops(arguments.repetitions)
    if arguments.what in ("all", "speed"):
        speed(arguments.pairs)
    if arguments.what in ("all", "time"):
        time_to_return(arguments.pairs)


if __name__ == "__main__":
    main()
