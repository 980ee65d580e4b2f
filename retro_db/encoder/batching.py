"""Which texts an encoder reads together: a pure function of the texts and the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Batches come in few shapes: oneDNN compiles for each, and keeps half a megabyte of code.
ROW_STEP = 8


@dataclass(frozen=True)
class Tokenized:
    """The WordPieces of a window of texts, one after the other.

    Attributes:
        texts: What was tokenized, for messages.
        ids: int64 [t], all texts' WordPieces, the special ones included.
        weights: float32 [t], the share of each in its text's key; those of a text add up to one.
        starts: int64 [n], where each text's begin.
        lengths: int64 [n]; zero for a text without any WordPiece of its own.
    """

    texts: Sequence[str]
    ids: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def batches(self, budget: int) -> Iterator[np.ndarray]:
        """Rows that are read together, by (length, row): little padding, and no other order.

        Args:
            budget: Padded WordPieces of a batch.

        Yields:
            Rows, int64; together every row that has a WordPiece, once.
        """
        rows = np.flatnonzero(self.lengths)
        yield from batches_of(
            rows[np.argsort(self.lengths[rows], kind="stable")], self.lengths, budget
        )

    def padded(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """One batch as rectangles.

        Args:
            rows: int64 [b].
            pad_id: What fills the rest of shorter rows.

        Returns:
            ids int64 [b, w] and weights float32 [b, w], zero in the padding.
        """
        columns = np.arange(self.lengths[rows].max())
        held = columns < self.lengths[rows][:, None]
        at = np.where(held, self.starts[rows][:, None] + columns, 0)
        return np.where(held, self.ids[at], pad_id), np.where(held, self.weights[at], np.float32(0))


def batches_of(rows: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cuts rows, sorted by length, into batches of at most `budget` padded tokens.

    Args:
        rows: int64 [n], ordered by their length.
        lengths: int64 [m], by row; those of `rows` are positive.
        budget: Tokens of a batch; a single longer row is a batch of its own.

    Yields:
        Consecutive pieces of `rows`, in multiples of `ROW_STEP` where more fit.
    """
    start = 0
    while start < len(rows):
        most = max(1, budget // int(lengths[rows[start]]))
        ahead = rows[start : start + most]
        padded = lengths[ahead] * np.arange(1, len(ahead) + 1)
        count = max(1, int(np.searchsorted(padded, budget, side="right")))
        if count > ROW_STEP and start + count < len(rows):
            count -= count % ROW_STEP
        yield rows[start : start + count]
        start += count
