"""Batches of texts that an encoder reads together: a pure function of the texts and the budget."""

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
        texts: The tokenized texts, for messages.
        ids: int64 [t], all texts' WordPieces, the special ones included.
        weights: float32 [t], each WordPiece's share in its text's embedding, zero for what is not pooled.
        starts: int64 [n], position of each text's first WordPiece.
        lengths: int64 [n], number of each text's WordPieces; zero for a text that has none of its own,
            beside the special ones and the prompt's.
    """

    texts: Sequence[str]
    ids: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def batches(self, budget: int, *, equal_lengths: bool = False) -> Iterator[np.ndarray]:
        """Divides rows into batches by (length, row): this needs little padding, and fixes the order.

        Args:
            budget: Most padded WordPieces of a batch.
            equal_lengths: Whether all rows of a batch must have one length, so that nothing is padded.

        Yields:
            Rows of a batch, int64; each row that has a WordPiece is in exactly one batch.
        """
        rows = np.flatnonzero(self.lengths)
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        groups = [rows]
        if equal_lengths:
            groups = np.split(rows, np.flatnonzero(np.diff(self.lengths[rows])) + 1)
        for group in groups:
            yield from batches_of(group, self.lengths, budget)

    def padded(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Pads one batch to rectangles.

        Args:
            rows: int64 [b].
            pad_id: Id that fills the rest of shorter rows.

        Returns:
            ids int64 [b, w] and weights float32 [b, w], zero in the padding.
        """
        columns = np.arange(self.lengths[rows].max())
        is_token = columns < self.lengths[rows][:, None]
        positions = np.where(is_token, self.starts[rows][:, None] + columns, 0)
        ids = np.where(is_token, self.ids[positions], pad_id)
        return ids, np.where(is_token, self.weights[positions], np.float32(0))


def batches_of(rows: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cuts rows, sorted by length, into batches of at most `budget` padded tokens.

    Args:
        rows: int64 [n], ordered by their length.
        lengths: int64 [m], lengths by row; positive for each of `rows`.
        budget: Most tokens of a batch; a single longer row makes a batch alone.

    Yields:
        Consecutive pieces of `rows`, in multiples of `ROW_STEP` rows if more rows fit.
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
