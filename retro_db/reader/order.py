"""The order in which sequences are read: an epoch's permutation and the sources' shares, without memory.

Everything here is a function of a seed and a position: any position of any epoch is computed at once, the
same on every machine, and memory does not grow with the number of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_ROUNDS = 6
# Constants of the finalizer of splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def permuted(positions: np.ndarray, count: int, key: tuple[int, ...]) -> np.ndarray:
    """Images of positions under a permutation of 0 to count - 1.

    A Feistel network permutes the numbers below a power of four (Luby and Rackoff 1988); a number that falls
    beyond `count` is permuted again until it falls within (Black and Rogaway 2002), fewer than four times on
    average.

    Args:
        positions: int64 [n], each in [0, count).
        count: Number of positions that are permuted.
        key: Numbers of at least 0 that choose the permutation.

    Returns:
        Their images, int64 [n].
    """
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    images = positions.astype(np.uint64)
    beyond = np.arange(len(images))
    while len(beyond):
        images[beyond] = _mixed(images[beyond], half, keys)
        beyond = beyond[images[beyond] >= count]
    return images.astype(np.int64)


def _mixed(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers of 2 * half bits: uint64 [n]."""
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low
    for key in keys:
        mixed = (right + key) * _STEP
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & low)
    return left << half | right


@dataclass(frozen=True)
class Order:
    """The sequence at each position of each epoch.

    An epoch has as many positions as the dataset has sequences. Of n positions, a source of weight w has
    n w / W, where W is the sum of the weights, rounded so that they add up to n. Each epoch has its own
    permutation, which deals the positions out. Within a source, all sequences come before any comes again,
    however many epochs that takes.

    Attributes:
        counts: Number of sequences of each source; the sources follow one another.
        weights: Weights of the sources; None if every sequence comes exactly once in each epoch.
        seed: Seed of every permutation.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...] | None
    seed: int

    def __len__(self) -> int:
        return sum(self.counts)

    @cached_property
    def shares(self) -> np.ndarray:
        """Number of positions of an epoch that each source has: int64 [sources]."""
        counts = np.array(self.counts, np.int64)
        if self.weights is None:
            return counts
        weights = np.where(counts > 0, self.weights, 0.0)
        exact = len(self) * weights / (weights.sum() or 1.0)
        shares = np.floor(exact).astype(np.int64)
        # Hand the remainder to the largest fractional parts.
        missing = len(self) - int(shares.sum())
        shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
        return shares

    def sequences(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The sequences at positions of an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            positions: int64 [n], each in [0, len(self)).

        Returns:
            Their numbers, int64 [n].
        """
        slots = permuted(positions, len(self), (self.seed, epoch))
        ends = np.cumsum(self.shares)
        source = np.searchsorted(ends, slots, side="right")
        counts = np.array(self.counts, np.int64)
        drawn = epoch * self.shares[source] + slots - (ends - self.shares)[source]
        turn, place = np.divmod(drawn, counts[source])
        within = np.empty(len(slots), np.int64)  # number of the sequence in its source
        for number, time in set(zip(source.tolist(), turn.tolist(), strict=True)):
            chosen = (source == number) & (turn == time)
            key = (self.seed, number, time, 0)
            within[chosen] = permuted(place[chosen], self.counts[number], key)
        return within + (np.cumsum(counts) - counts)[source]
