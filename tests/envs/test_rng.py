from collections import Counter

import numpy as np
import pytest

from rlmask_envs.rng import (
    philox,
    random_bits,
    random_choice,
    random_integer,
    random_unit,
    stream_keys,
)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers of the authors' Random123 library, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, words):
    assert philox(*map(np.uint64, counter + key)) == words


def stream(key=7, counter=0):
    return np.array([key, counter], np.uint64)


def test_a_draw_is_a_function_of_key_and_count():
    rng = stream()
    drawn = [random_bits(rng) for _ in range(100)]
    assert rng[1] == 100
    assert [random_bits(stream(counter=k)) for k in range(100)] == drawn
    assert len(set(drawn)) == 100
    assert random_bits(stream(key=8)) != drawn[0]
    high = random_bits(stream(counter=2**32))  # the counter has more than 32 bits
    assert high != drawn[0]
    assert random_bits(stream(key=7 + 2**32)) != drawn[0]  # and so has the key


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000])
def test_integers_are_uniform(n):
    rng, draws = stream(), 40_000
    counts = Counter(random_integer(rng, n) for _ in range(draws))
    assert set(counts) <= set(range(n))
    expected = draws / n
    chi_squared = sum((counts[i] - expected) ** 2 / expected for i in range(n))
    # mean n - 1, standard deviation sqrt(2 (n - 1)); 5 of them above is one in a million
    assert chi_squared <= (n - 1) + 5 * (2 * max(n - 1, 0)) ** 0.5 + 1e-9


def test_units_are_uniform():
    rng = stream()
    units = np.array([random_unit(rng) for _ in range(20_000)])
    assert (units >= 0).all() and (units < 1).all()
    assert abs(units.mean() - 0.5) < 5 / (12 * 20_000) ** 0.5
    assert abs((units**2).mean() - 1 / 3) < 5 * 0.298 / 20_000**0.5  # sd of u²: sqrt(1/5 - 1/9)


def test_a_choice_is_among_the_marked_ones():
    rng, mask = stream(), np.array([0, 1, 0, 1, 1], np.int8)
    counts = Counter(random_choice(rng, mask) for _ in range(9_000))
    assert set(counts) == {1, 3, 4}
    assert all(abs(count - 3000) < 5 * (9000 * 2 / 9) ** 0.5 for count in counts.values())
    assert random_choice(rng, np.zeros(3, np.int8)) == -1


def test_keys_depend_on_seed_and_place_alone():
    assert (stream_keys(3, 10) == stream_keys(3, 50)[:10]).all()
    assert len(set(stream_keys(3, 1000)) | set(stream_keys(4, 1000))) == 2000
