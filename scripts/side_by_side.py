"""What the benchmarks share: two contestants in turn, compared pair by pair.

A shared machine is now quick, now slow. So every measurement of one contestant has one of the other
beside it, in alternating order (A B, B A, ...), and what is compared is the ratio of the two.
"""

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Results = dict[str, list[dict[str, Any]]]


def run_pairs(script: str, jobs: dict[str, dict[str, Any]], pairs: int) -> Results:
    """Run the two jobs in processes of their own: `script child --job JSON`, seeds 0, 1, ...

    Each prints what it measured as JSON in its last line.
    """
    results: Results = {who: [] for who in jobs}
    for pair in range(pairs):
        order = list(jobs) if pair % 2 == 0 else list(reversed(jobs))
        for who in order:
            job = json.dumps({"who": who, "seed": pair, **jobs[who]})
            command = [sys.executable, script, "child", "--job", job]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[who].append(json.loads(output.splitlines()[-1]))
        print(f"  pair {pair + 1} of {pairs}", file=sys.stderr)
    return results


def report(results: Results, key: str, higher_is_better: bool) -> None:
    """Print the medians of two contestants, and by how much the first is better, pair by pair."""
    (first, ours), (second, theirs) = ((who, [r[key] for r in rs]) for who, rs in results.items())
    ratios = [a / b if higher_is_better else b / a for a, b in zip(ours, theirs, strict=True)]
    low, high = interval(ratios)
    print(
        f"  {key:18} {first} {statistics.median(ours):10.1f}   {second} "
        f"{statistics.median(theirs):10.1f}   ratio {statistics.median(ratios):5.2f} "
        f"[{low:.2f}, {high:.2f}]",
        flush=True,
    )


def interval(ratios: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def time_interleaved(
    functions: Sequence[Callable[[], object]], calls: int, repetitions: int
) -> list[list[float]]:
    """Return microseconds a call for each function, by repetition."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repetition in range(repetitions + 1):
        for index, function in enumerate(functions):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            if repetition:  # the first round warms up
                seconds[index].append((time.perf_counter() - start) / calls * 1e6)
    return seconds


def mean_of_last(returns: Sequence[float], count: int = 100) -> float:
    """Return the mean of the last episodes' returns; -inf while there are fewer."""
    return statistics.fmean(returns[-count:]) if len(returns) >= count else float("-inf")


def peak_memory_mb() -> float:
    """Return the most memory that this process has had, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
