"""Threads that share the copies of a game between them.

They are Python's own, which run compiled code at the same time and sleep while they wait. Those of
OpenMP, which Numba would use, spin: where another process wants the core, a step then takes some
hundred times as long.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import numpy as np

ENVS_PER_THREAD = 512  # below that, waking a thread takes about as long as what it would do


class Crew:
    """Threads for N copies, this one among them; made when they are needed, and anew after a fork.

    Args:
        num_envs: N.
        num_threads: None: one for 512 copies each, at most all cores.

    Raises:
        ValueError: if not even one thread is wanted.
    """

    def __init__(self, num_envs: int, num_threads: int | None = None) -> None:
        if num_threads is None:
            num_threads = min(count_cores(), num_envs // ENVS_PER_THREAD)
        elif num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}; it has to be at least 1")
        bounds = np.linspace(0, num_envs, max(1, min(num_threads, num_envs)) + 1)
        self._own, *self._others = pairwise(bounds.astype(int).tolist())
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}  # a copy starts threads of its own

    def run(self, loop: Callable[[int, int], None]) -> None:
        """Call `loop(start, stop)` for all shares at once; return when all are done."""
        if not self._others:
            loop(*self._own)
            return
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(len(self._others)), os.getpid()
        futures = [self._pool.submit(loop, *share) for share in self._others]
        try:
            loop(*self._own)
        finally:
            wait(futures)
        for future in futures:
            future.result()

    def end(self) -> None:
        """End the other threads; `run` would start them again."""
        pool, self._pool = self._pool, None
        if pool is not None and self._process == os.getpid():
            pool.shutdown()


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
