"""Compare rlmask's replay buffer with those of Stable-Baselines3, Tianshou and torchrl.

    pip install 'rlmask[bench]'
    python scripts/benchmark_replay.py             # a million transitions; some minutes to fill

All hold the same steps of 8 envs: observations of 8 float32, 18 actions, a mask of each state, and
episodes that end; the peers have observation and mask in one dict, as their users would. What is
timed is drawing a batch of 256, uniformly or by priority, with observation and mask of both ends of
each transition, as the buffer's own library takes it: torch tensors (rlmask, Stable-Baselines3), a
TensorDict (torchrl), a Batch of NumPy arrays (Tianshou, which still has to make tensors of them).
Setting the priorities of a batch is timed too. Every buffer is filled through its own methods. One
process, one torch thread, in turn; medians, and the ratio repetition by repetition with the 95 %
interval of its median. MB are those of the buffer's arrays. Stable-Baselines3 has no prioritised
buffer, and torchrl has one only where its compiled sum tree fits the version of torch.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from side_by_side import interval, time_interleaved
from stable_baselines3.common.buffers import DictReplayBuffer
from tensordict import TensorDict
from tianshou.data import Batch, PrioritizedVectorReplayBuffer, VectorReplayBuffer
from torchrl.data import (
    LazyTensorStorage,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
)

from rlmask.replay import Replay
from rlmask.types import ObsSpec

NUM_ENVS, OBS_SIZE, NUM_ACTIONS, BATCH_SIZE = 8, 8, 18, 256
ALPHA, BETA = 0.6, 0.4


class Steps(NamedTuple):
    """What happened in T steps of N envs; `next_*` is the true successor."""

    obs: np.ndarray  # [T, N, 8] float32
    mask: np.ndarray  # [T, N, 18] bool
    action: np.ndarray  # [T, N] int64
    reward: np.ndarray  # [T, N] float32
    terminated: np.ndarray  # [T, N] bool
    truncated: np.ndarray  # [T, N] bool
    next_obs: np.ndarray  # [T, N, 8]
    next_mask: np.ndarray  # [T, N, 18]


class Contestant(NamedTuple):
    """A filled buffer."""

    name: str
    megabytes: float
    sample: Callable[[], Any]
    masks: Callable[[Any], tuple[Any, Any]]  # of both ends of what was sampled
    update: Callable[[], object] | None = None  # priorities of a batch


def make_steps(num_steps: int) -> Steps:
    rng = np.random.default_rng(0)
    shape = (num_steps + 1, NUM_ENVS)
    obs = rng.random((*shape, OBS_SIZE), np.float32)
    mask = rng.random((*shape, NUM_ACTIONS), np.float32) < 0.5
    mask[..., 0] = True
    end = rng.random((num_steps, NUM_ENVS))
    ended = end < 0.03  # a third of them truncated
    next_obs, next_mask = obs[1:].copy(), mask[1:].copy()
    next_obs[ended] += 1
    next_mask[ended] = ~next_mask[ended]
    return Steps(
        obs=obs[:-1],
        mask=mask[:-1],
        action=rng.integers(NUM_ACTIONS, size=(num_steps, NUM_ENVS)),
        reward=rng.random((num_steps, NUM_ENVS), np.float32),
        terminated=end < 0.02,
        truncated=ended & (end >= 0.02),
        next_obs=next_obs,
        next_mask=next_mask,
    )


def random_batches(num: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield transitions and priorities without end."""
    rng = np.random.default_rng(1)
    while True:
        yield rng.integers(num, size=BATCH_SIZE), rng.random(BATCH_SIZE)


def rlmask_buffer(steps: Steps, prioritized: bool) -> Contestant:
    tensors = Steps(*map(torch.from_numpy, steps))
    ended = tensors.terminated | tensors.truncated
    replay = Replay(
        NUM_ENVS,
        ended.numel() + int(ended.sum()) + 2 * NUM_ENVS,  # final observations have slots too
        ObsSpec(kind="vector", shape=(OBS_SIZE,), dtype="float32"),
        NUM_ACTIONS,
        prioritized=prioritized,
        priority_exponent=ALPHA,
    )
    replay.start(tensors.obs[0], tensors.mask[0])
    for t in range(len(ended) - 1):
        at = ended[t].nonzero().flatten()
        replay.add(
            tensors.action[t],
            tensors.reward[t],
            tensors.terminated[t],
            tensors.obs[t + 1],
            tensors.mask[t + 1],
            at,
            tensors.next_obs[t][at],
            tensors.next_mask[t][at],
        )
    draws = 4 * ended.numel() // 2**16 + 1  # a slot is not among them once in e^4
    starts = torch.cat([replay.sample(2**16, gamma=0.99)[1] for _ in range(draws)]).unique()
    batches = (
        (starts[index], torch.from_numpy(priority))
        for index, priority in random_batches(len(starts))
    )
    return Contestant(
        "rlmask",
        replay.num_bytes / 1e6,
        lambda: replay.sample(BATCH_SIZE, gamma=0.99, importance_exponent=BETA),
        lambda sample: (sample[0].action_mask, sample[0].next_action_mask),
        (lambda: replay.update_priorities(*next(batches))) if prioritized else None,
    )


def sb3_buffer(steps: Steps) -> Contestant:
    space = spaces.Dict(
        {
            "obs": spaces.Box(-np.inf, np.inf, (OBS_SIZE,)),
            "action_mask": spaces.MultiBinary(NUM_ACTIONS),
        }
    )
    buffer = DictReplayBuffer(
        steps.action.size,
        space,
        spaces.Discrete(NUM_ACTIONS),
        device="cpu",
        n_envs=NUM_ENVS,
        handle_timeout_termination=True,
        optimize_memory_usage=False,
    )
    for s in map(Steps._make, zip(*steps, strict=True)):
        buffer.add(
            {"obs": s.obs, "action_mask": s.mask},
            {"obs": s.next_obs, "action_mask": s.next_mask},
            s.action,
            s.reward,
            s.terminated | s.truncated,
            [{"TimeLimit.truncated": cut} for cut in s.truncated.tolist()],
        )
    stored = [*buffer.observations.values(), *buffer.next_observations.values()]
    stored += [buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts]
    return Contestant(
        "Stable-Baselines3",
        sum(array.nbytes for array in stored) / 1e6,
        lambda: buffer.sample(BATCH_SIZE),
        lambda b: (b.observations["action_mask"], b.next_observations["action_mask"]),
    )


def tianshou_buffer(steps: Steps, prioritized: bool) -> Contestant:
    if prioritized:
        buffer = PrioritizedVectorReplayBuffer(steps.action.size, NUM_ENVS, alpha=ALPHA, beta=BETA)
    else:
        buffer = VectorReplayBuffer(steps.action.size, NUM_ENVS)
    for s in map(Steps._make, zip(*steps, strict=True)):
        buffer.add(
            Batch(
                obs=Batch(obs=s.obs, mask=s.mask),
                act=s.action,
                rew=s.reward,
                terminated=s.terminated,
                truncated=s.truncated,
                obs_next=Batch(obs=s.next_obs, mask=s.next_mask),
                info=Batch(),
            )
        )
    batches = random_batches(steps.action.size)
    return Contestant(
        "Tianshou",
        nbytes(buffer._meta) / 1e6,
        lambda: buffer.sample(BATCH_SIZE),
        lambda sample: (sample[0].obs.mask, sample[0].obs_next.mask),
        (lambda: buffer.update_weight(*next(batches))) if prioritized else None,
    )


def nbytes(batch: Any) -> int:
    if isinstance(batch, Batch):
        return sum(nbytes(value) for value in batch.values())
    return batch.nbytes


def torchrl_buffer(steps: Steps, prioritized: bool) -> Contestant:
    flat = [torch.from_numpy(x.reshape(steps.action.size, *x.shape[2:])) for x in steps]
    obs, mask, action, reward, terminated, truncated, next_obs, next_mask = flat
    after = {"obs": next_obs, "action_mask": next_mask, "reward": reward.unsqueeze(-1)}
    after |= {"terminated": terminated.unsqueeze(-1), "truncated": truncated.unsqueeze(-1)}
    after |= {"done": (terminated | truncated).unsqueeze(-1)}
    data = TensorDict(
        {"obs": obs, "action_mask": mask, "action": action, "next": after}, [len(action)]
    )
    storage = LazyTensorStorage(len(action))
    if prioritized:
        buffer = TensorDictPrioritizedReplayBuffer(
            alpha=ALPHA, beta=BETA, storage=storage, batch_size=BATCH_SIZE
        )
    else:
        buffer = TensorDictReplayBuffer(storage=storage, batch_size=BATCH_SIZE)
    buffer.extend(data)
    batches = (
        (torch.from_numpy(index), torch.from_numpy(priority).float())
        for index, priority in random_batches(len(action))
    )
    return Contestant(
        "torchrl",
        data.bytes() / 1e6,
        buffer.sample,
        lambda sample: (sample["action_mask"], sample["next", "action_mask"]),
        (lambda: buffer.update_priority(*next(batches))) if prioritized else None,
    )


def compare(title: str, contestants: list[Contestant], repetitions: int) -> None:
    for contestant in contestants:
        for mask in contestant.masks(contestant.sample()):
            if tuple(mask.shape) != (BATCH_SIZE, NUM_ACTIONS):
                raise RuntimeError(f"{contestant.name} samples masks of shape {mask.shape}")
    print(title)
    table("sample", contestants, [c.sample for c in contestants], repetitions)
    updates = [(c, c.update) for c in contestants if c.update is not None]
    if updates:
        table("set priorities", *map(list, zip(*updates, strict=True)), repetitions)


def table(
    what: str, contestants: list[Contestant], functions: list[Callable], repetitions: int
) -> None:
    times = time_interleaved(functions, calls=100, repetitions=repetitions)
    for contestant, theirs in zip(contestants, times, strict=True):
        ratios = [a / b for a, b in zip(theirs, times[0], strict=True)]
        low, high = interval(ratios)
        print(
            f"  {what:15} {contestant.name:18} {statistics.median(theirs):8.1f} µs   "
            f"{statistics.median(ratios):5.2f} [{low:.2f}, {high:.2f}] times rlmask's   "
            f"{contestant.megabytes:5.0f} MB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare replay buffers.")
    parser.add_argument("--transitions", type=int, default=1_000_000, help="stored in each buffer")
    parser.add_argument("--repetitions", type=int, default=20, help="of a hundred calls each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = make_steps(arguments.transitions // NUM_ENVS)
    print(f"{arguments.transitions:,} transitions, batches of {BATCH_SIZE}")
    uniform = [rlmask_buffer(steps, False), sb3_buffer(steps)]
    uniform += [tianshou_buffer(steps, False), torchrl_buffer(steps, False)]
    compare("uniform", uniform, arguments.repetitions)
    del uniform
    prioritized = [rlmask_buffer(steps, True), tianshou_buffer(steps, True)]
    try:
        prioritized.append(torchrl_buffer(steps, True))
    except RuntimeError as error:  # its sum tree is compiled for some versions of torch only
        print(f"torchrl has no prioritised buffer here: {error}")
    for contestant in prioritized:
        for _ in range(arguments.transitions // BATCH_SIZE):
            contestant.update()
    compare("prioritised", prioritized, arguments.repetitions)


if __name__ == "__main__":
    main()
