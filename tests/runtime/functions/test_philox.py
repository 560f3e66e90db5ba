"""Philox4x32-10 against the published answers and, by way of a generic implementation, against numpy's Philox4x64-10."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenspeed.runtime.functions.philox import philox, uniform

CONSTANTS = {
    32: ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)),
    64: ((0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)),
}


def generic(counter: list[int], key: list[int], width: int) -> list[int]:
    """Philox4xW-10 in Python's integers, straight from the paper."""
    multipliers, weyl = CONSTANTS[width]
    mask = (1 << width) - 1
    for _ in range(10):
        products = multipliers[0] * counter[0], multipliers[1] * counter[2]
        counter = [
            (products[1] >> width) ^ counter[1] ^ key[0],
            products[1] & mask,
            (products[0] >> width) ^ counter[3] ^ key[1],
            products[0] & mask,
        ]
        key = [(word + step) & mask for word, step in zip(key, weyl, strict=True)]
    return counter


def word(value: int) -> NDArray[np.uint64]:
    return np.array([value], np.uint64)


def vectorised(counter: list[int], key: list[int]) -> list[int]:
    c0, c1, c2, c3 = counter
    words = philox((word(c0), word(c1), word(c2), word(c3)), (word(key[0]), word(key[1])))
    return [int(found[0]) for found in words]


def test_published_answers() -> None:
    # Random123, kat_vectors
    ones = 0xFFFFFFFF
    assert vectorised([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert vectorised([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert vectorised(pi, [0xA4093822, 0x299F31D0]) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_the_generic_form_is_numpys_philox_at_64_bits_and_ours_at_32() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        counter, key = [int(w) for w in random.integers(0, 1 << 63, 4)], [int(w) for w in random.integers(0, 1 << 63, 2)]
        numpys = np.random.Philox(counter=np.array(counter, np.uint64), key=np.array(key, np.uint64)).random_raw(4)
        counter_after = [counter[0] + 1, *counter[1:]]  # numpy counts before it draws
        assert generic(counter_after, key, 64) == numpys.tolist()
        counter, key = [w & 0xFFFFFFFF for w in counter], [w & 0xFFFFFFFF for w in key]
        assert generic(counter, key, 32) == vectorised(counter, key)


def test_uniform_depends_on_seed_and_position_only() -> None:
    seeds = np.array([5, -1, 5, 1 << 40], np.int64)
    positions = np.array([0, 3, 1, 3], np.int32)
    whole = uniform(seeds, positions)
    assert ((whole >= 0) & (whole < 1)).all() and len(set(whole.tolist())) == 4
    for index in range(4):
        assert uniform(seeds[index : index + 1], positions[index : index + 1])[0] == whole[index]
    high, low = (int(w) for w in generic([3, 0, 0, 0], [0xFFFFFFFF, 0xFFFFFFFF], 32)[:2])
    assert whole[1] == ((high << 32 | low) >> 11) * 2.0**-53


def test_uniform_is_uniform() -> None:
    drawn = uniform(np.full(20000, 42, np.int64), np.arange(20000, dtype=np.int32))
    counts, _ = np.histogram(drawn, 20, (0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
