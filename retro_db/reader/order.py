"""In which order sequences are read: an epoch's permutation, and the sources' shares of it, without memory.

Everything here is a function of a seed and a position, so that any position of any epoch is found at once,
on every machine alike, and nothing grows with the number of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_ROUNDS = 6
# Of the finalizer of splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def permuted(positions: np.ndarray, count: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a permutation of 0 to count - 1 takes positions.

    A Feistel network permutes the numbers below a power of four (Luby and Rackoff 1988); what falls beyond
    `count` walks on until it falls within (Black and Rogaway 2002), fewer than four steps on average.

    Args:
        positions: int64 [n], each in [0, count).
        count: Of what is permuted.
        key: Which permutation: numbers of at least 0.

    Returns:
        int64 [n].
    """
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    found = positions.astype(np.uint64)
    beyond = np.arange(len(found))
    while len(beyond):
        found[beyond] = _mixed(found[beyond], half, keys)
        beyond = beyond[found[beyond] >= count]
    return found.astype(np.int64)


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
    """Which sequence stands where in each epoch.

    An epoch has as many positions as there are sequences. Of n positions, a source of weight w has
    n w / W, where W is the sum of the weights, rounded so that they add up to n. An epoch's positions are
    dealt out by a permutation of its own. Within a source sequences come without repetition, all of them
    before any comes again, however many epochs that takes.

    Attributes:
        counts: Sequences of each source, which follow one another.
        weights: Of the sources; None where every sequence comes exactly once in each epoch.
        seed: Decides every permutation.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...] | None
    seed: int

    def __len__(self) -> int:
        return sum(self.counts)

    @cached_property
    def shares(self) -> np.ndarray:
        """Positions of an epoch that each source has: int64 [sources]."""
        counts = np.array(self.counts, np.int64)
        if self.weights is None:
            return counts
        weights = np.where(counts > 0, self.weights, 0.0)
        exact = len(self) * weights / (weights.sum() or 1.0)
        shares = np.floor(exact).astype(np.int64)
        # What rounding down has left goes to those that it took most from.
        missing = len(self) - int(shares.sum())
        shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
        return shares

    def sequences(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The sequences at positions of an epoch.

        Args:
            epoch: From 0.
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
        found = np.empty(len(slots), np.int64)
        for one, time in set(zip(source.tolist(), turn.tolist(), strict=True)):
            chosen = (source == one) & (turn == time)
            key = (self.seed, one, time, 0)
            found[chosen] = permuted(place[chosen], self.counts[one], key)
        return found + (np.cumsum(counts) - counts)[source]
