"""How much of a distillation's learner is anything but the network.

    python scripts/benchmark_distill.py                       # of configs/distill/grid_suite.yaml
    python scripts/benchmark_distill.py --experiment configs/distill/minatar.yaml --rounds 20

Three things are timed in turn, a round each, in one process with one torch thread: the network
alone (forward and backward of a minibatch that is in memory already), the same with plain autograd,
and the learner (drawing states, loss, forward, backward, clipping, Adam, what is logged). Untrained
teachers give the labels: their values change no time. Samples per second, and the median ratio of
the paired rounds with its 95 % interval.
"""

import argparse
import statistics
from pathlib import Path

import torch
from side_by_side import interval, time_interleaved

from rlmask import distill
from rlmask.experiment import read_experiment
from rlmask.runs import parse_config
from rlmask.states import Labelled
from rlmask.teachers import Teacher
from rlmask.types import split
from rlmask.vector import envs_of

SUITE = Path(__file__).parents[1] / "configs/distill/grid_suite.yaml"


def make(path: Path):
    """Return config and state of an experiment's student, its buffer full of random valid play."""
    student = {**read_experiment(path).student, "algo": "distill", "replay_capacity": 4000}
    config = parse_config(student, str(path)).settings
    with torch.no_grad():
        envs = envs_of(config)
        spec = envs.spec
        teachers = [
            Teacher(
                name="random",
                score=lambda obs, mask: (torch.randn(mask.shape), torch.zeros((len(mask), 0))),
                kind="policy",
                obs=spec.obs,
                action_ids=tuple(range(spec.action.num_actions)),
            )
            for _ in spec.games
        ]
        state = distill.initial_state(config, teachers, envs, torch.device("cpu"))
        obs, mask = envs.reset()
        now = distill.scheduled(config, 0)
        while len(state.states) < 2000:
            played = distill.collect(
                config, teachers, state, envs, obs, mask, now, torch.device("cpu")
            )
            obs, mask = played.obs, played.action_mask
            state.states.add(played.states)
        envs.close()
    return config, state, now


@torch.inference_mode()
def network_alone(config, state, batches: list[Labelled]) -> None:
    """Forward and backward, as the learner does them."""
    for batch in batches:
        logits, _, _, pullback = state.network.vjp_features(batch.obs)
        pullback(torch.full_like(logits, 1e-3))


def autograd_alone(config, state, batches: list[Labelled]) -> None:
    """Forward and backward by autograd."""
    for batch in batches:
        logits, _ = state.network(batch.obs)
        logits.backward(torch.full_like(logits, 1e-3))


def learner(config, state, now) -> None:
    """An update's gradient steps."""
    batches = distill.minibatches(config, state, None)
    learned = distill.learn(config, state, batches, None, now, torch.device("cpu"))
    distill.metrics_of(config, state, learned)


def main() -> None:
    """Time, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiment", type=Path, default=SUITE)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config, state, now = make(arguments.experiment)
    size, count = config.batch_size, config.num_gradient_steps
    batches = list(split(state.states.sample(size * count), size))
    kinds = {
        "network alone": lambda: network_alone(config, state, batches),
        "network alone, autograd": lambda: autograd_alone(config, state, batches),
        "learner": lambda: learner(config, state, now),
    }
    times = time_interleaved(list(kinds.values()), calls=1, repetitions=arguments.rounds)
    print(f"{count} gradient steps of {size} states of {len(config.all_games)} games")
    for kind, microseconds in zip(kinds, times, strict=True):
        ratios = [own / alone for own, alone in zip(microseconds, times[0], strict=True)]
        low, high = interval(ratios)
        print(
            f"{kind:<25} {size * count / statistics.median(microseconds) * 1e6:>10,.0f} samples/s "
            f"  {statistics.median(ratios):.2f}x the time of the network alone "
            f"[{low:.2f}, {high:.2f}]"
        )


if __name__ == "__main__":
    main()
