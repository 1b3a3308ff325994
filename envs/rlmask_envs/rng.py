"""Random numbers by counting: the draw number k of a key is a function of k and the key alone.

So what an env draws depends on nothing but its own key and how much it has drawn: not on the number
of envs, of threads, or on their order. `rng` is one row of two uint64, key and counter.

Reference: Salmon et al. 2011, doi:10.1145/2063384.2063405 (Philox-4x32-10).
"""

import numpy as np
from numba import njit

MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, SHIFT, ZERO, ONE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0), np.uint64(1)


def stream_keys(seed: int | None, num_envs: int) -> np.ndarray:
    """Return the key of each copy's stream, [N] uint64; that of copy i depends on seed and i."""
    return np.random.SeedSequence(seed).generate_state(num_envs, np.uint64)


@njit
def philox(c0, c1, c2, c3, k0, k1):
    """Return four words of 32 bits for a counter of four and a key of two, all as uint64."""
    for _ in range(10):
        product_0, product_1 = MULTIPLIER_0 * c0, MULTIPLIER_1 * c2
        c0, c2 = (product_1 >> SHIFT) ^ c1 ^ k0, (product_0 >> SHIFT) ^ c3 ^ k1
        c1, c3 = product_1 & LOW, product_0 & LOW
        k0, k1 = (k0 + WEYL_0) & LOW, (k1 + WEYL_1) & LOW
    return c0, c1, c2, c3


@njit
def random_bits(rng):
    """Return 32 random bits as uint64, and count."""
    key, counter = rng[0], rng[1]
    rng[1] = counter + ONE
    return philox(counter & LOW, counter >> SHIFT, ZERO, ZERO, key & LOW, key >> SHIFT)[0]


@njit
def random_integer(rng, n):
    """Return an integer of 0 .. n - 1, n < 2^31; no two probabilities differ by more than 2^-32."""
    return np.int64((random_bits(rng) * np.uint64(n)) >> SHIFT)


@njit
def random_unit(rng):
    """Return a float in [0, 1), a multiple of 2^-32."""
    return np.float64(random_bits(rng)) * 2.0**-32


@njit
def random_choice(rng, mask):
    """Return the index of one of the non-zero entries, all equally likely; -1 if there is none."""
    count = 0
    for index in range(len(mask)):
        if mask[index]:
            count += 1
    if count == 0:
        return -1
    left = random_integer(rng, count)
    for index in range(len(mask)):
        if mask[index]:
            if left == 0:
                return index
            left -= 1
    return -1  # never reached
