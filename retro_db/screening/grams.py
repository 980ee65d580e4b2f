"""How alike two texts are: Jaccard similarity of their word grams, and MinHash bands to find pairs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rensa import RMinHash
from xxhash import xxh3_64_intdigest

_WORD = re.compile(r"\w+")
_SPACE = ord(" ")
_BLOCK_WORDS = 1 << 16
_HASHES = 128
_SEED = 1
# Of pairs exactly as alike as the threshold, at most this share shares no band.
_MISSED = 1e-4
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def gram_hashes(text: str, words: int) -> np.ndarray:
    """The set of a text's word grams (paper, section 2.1).

    The text is put in lower case and divided into words: runs of letters, digits and underscores.
    A text of fewer words than a gram is one gram; one without words has none.

    Args:
        text: Any.
        words: Of a gram; the paper takes 13.

    Returns:
        64-bit hashes (XXH3 of the words joined by spaces), sorted, none twice: uint64 [g].
    """
    found = _WORD.findall(text.lower())
    if not found:
        return np.empty(0, np.uint64)
    data = " ".join(found).encode("utf-8", "surrogatepass")
    del found
    spaces = np.flatnonzero(np.frombuffer(data, np.uint8) == _SPACE)
    starts, ends = np.append(0, spaces + 1), np.append(spaces, len(data))
    grams = max(len(starts) - words + 1, 1)
    hashes = np.fromiter(
        _hashes(data, starts[:grams], ends[min(words, len(ends)) - 1 :]), np.uint64, grams
    )
    return np.unique(hashes)


def _hashes(data: bytes, starts: np.ndarray, ends: np.ndarray) -> Iterator[int]:
    for block in range(0, len(starts), _BLOCK_WORDS):
        stop = block + _BLOCK_WORDS
        pairs = zip(starts[block:stop].tolist(), ends[block:stop].tolist(), strict=True)
        yield from (xxh3_64_intdigest(data[start:end]) for start, end in pairs)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Common members of two sets over all their members; 0 where both are empty.

    Args:
        one: Sorted, none twice: uint64 [a].
        other: The same: uint64 [b].
    """
    if not len(one) or not len(other):
        return 0.0
    small, large = sorted((one, other), key=len)
    places = np.minimum(np.searchsorted(large, small), len(large) - 1)
    common = int((large[places] == small).sum())
    return common / (len(one) + len(other) - common)


@dataclass(frozen=True)
class Bands:
    """How MinHash signatures are divided into bands.

    Two sets of Jaccard similarity s agree in one hash with probability s, in a band of r hashes with
    s^r, and in at least one of b bands with 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive
    Datasets, section 3.4). Pairs that agree in none are never compared.
    """

    count: int
    rows: int

    @classmethod
    def for_threshold(cls, similarity: float) -> Bands:
        """The most selective bands out of 128 hashes that miss at most 1 in 10,000 pairs there.

        Args:
            similarity: From which pairs are wanted, 0.1 to 1.
        """
        fit = (
            rows
            for rows in range(_HASHES, 0, -1)
            if (1 - similarity**rows) ** (_HASHES // rows) <= _MISSED
        )
        rows = next(fit, 1)
        return cls(_HASHES // rows, rows)

    def keys(self, sets: Sequence[np.ndarray]) -> np.ndarray:
        """One key for every band of every set; equal keys make a pair a candidate.

        Args:
            sets: uint64 [g_i] each, none empty.

        Returns:
            uint64 [n, count].
        """
        if not sets:
            return np.empty((0, self.count), np.uint64)
        offsets = np.concatenate([[0], np.cumsum([len(grams) for grams in sets])])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(sets), offsets.astype(np.uint64), self.count * self.rows, _SEED
        )
        hashes = np.array(matrix.to_rows(), np.uint64).reshape(len(sets), self.count, self.rows)
        # Bands start from different values, so that no two of them have keys in common.
        keys = np.tile(np.arange(self.count, dtype=np.uint64), (len(sets), 1))
        for row in range(self.rows):
            keys = (keys * _MULTIPLIER) ^ hashes[:, :, row]
            keys ^= keys >> np.uint64(29)
        return keys
