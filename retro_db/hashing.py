"""Uniform choices that depend only on names: never on order, process or machine."""

from __future__ import annotations

import functools
import hashlib

import numpy as np


def fraction_of(*names: str | int | bytes) -> float:
    """A uniform number in [0, 1) that depends only on the names.

    For a share p of all names it lies below p, and the names below p are also below every larger share.
    """
    hasher = hashlib.blake2b(digest_size=8)
    for name in names:
        data = name if isinstance(name, bytes) else str(name).encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "little") + data)
    return (int.from_bytes(hasher.digest(), "little") >> 11) / (1 << 53)


def fractions_of(ids: np.ndarray, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for integer ids (SplitMix64, Steele et al. 2014).

    Args:
        ids: int64 [n].
        seed: Seed of the choice; another seed gives other numbers.

    Returns:
        float64 [n].
    """
    z = ids.astype(np.uint64) + np.uint64(
        (seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % (1 << 64)
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / (1 << 53)


def hash_rows(words: np.ndarray) -> np.ndarray:
    """Hashes rows by sums of products with random odd numbers: equal ones have equal hashes.

    Two others have equal ones by a chance of about 2**-64.

    Args:
        words: uint64 [n, m].

    Returns:
        uint64 [n].
    """
    return words @ _odd_numbers(words.shape[1])


@functools.cache
def _odd_numbers(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(1 << 63, size=count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
