"""Similarity of texts: Jaccard similarity of their word grams, and MinHash bands to find pairs."""

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
# Largest share of pairs just at the threshold that may have no band in common.
_MISSED = 1e-4
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def gram_hashes(text: str, words: int) -> np.ndarray:
    """The set of a text's word grams (paper, section 2.1).

    The text is lowercased and divided into words: runs of letters, digits and underscores.
    A text with fewer words than a gram is one gram; a text without words has none.

    Args:
        text: Text to divide.
        words: Number of words in a gram; the paper takes 13.

    Returns:
        64-bit hashes (XXH3 of the words joined by spaces), sorted and distinct: uint64 [g].
    """
    text_words = _WORD.findall(text.lower())
    if not text_words:
        return np.empty(0, np.uint64)
    data = " ".join(text_words).encode("utf-8", "surrogatepass")
    del text_words
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


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard similarity of two sets: their common members over all their members; 0 if one is empty.

    Args:
        first: Sorted, distinct members: uint64 [a].
        second: Sorted, distinct members: uint64 [b].
    """
    if not len(first) or not len(second):
        return 0.0
    small, large = sorted((first, second), key=len)
    positions = np.minimum(np.searchsorted(large, small), len(large) - 1)
    common = int((large[positions] == small).sum())
    return common / (len(first) + len(second) - common)


@dataclass(frozen=True)
class Bands:
    """Division of MinHash signatures into bands.

    Two sets of Jaccard similarity s agree in one hash with probability s, in a band of r hashes with
    s^r, and in at least one of b bands with 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive
    Datasets, section 3.4). Pairs that agree in none are never compared.

    Attributes:
        count: Number of bands, b.
        rows: Number of hashes in a band, r.
    """

    count: int
    rows: int

    @classmethod
    def for_threshold(cls, similarity: float) -> Bands:
        """The most selective bands of 128 hashes that miss at most 1 in 10,000 pairs at a threshold.

        Args:
            similarity: Threshold from which pairs are wanted, 0.1 to 1.
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
            sets: Grams of each document, uint64 [g_i], none empty.

        Returns:
            Band keys, uint64 [n, count].
        """
        if not sets:
            return np.empty((0, self.count), np.uint64)
        offsets = np.concatenate([[0], np.cumsum([len(grams) for grams in sets])])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(sets), offsets.astype(np.uint64), self.count * self.rows, _SEED
        )
        hashes = np.array(matrix.to_rows(), np.uint64).reshape(len(sets), self.count, self.rows)
        # Bands start from different values, so that no two bands have a key in common.
        keys = np.tile(np.arange(self.count, dtype=np.uint64), (len(sets), 1))
        for row in range(self.rows):
            keys = (keys * _MULTIPLIER) ^ hashes[:, :, row]
            keys ^= keys >> np.uint64(29)
        return keys
