"""Stored chunks by global id: their tokens, documents and continuations."""

from __future__ import annotations

import numpy as np

from retro_db.store.gathering import Rows, Table


class Chunks:
    """Tokens by global chunk id.

    Args:
        table: The chunks table.
        first_chunks: Id of the first chunk in each of its files, int64 [files + 1].
        first_documents: First row of the documents table in each file, int64 [files + 1].
        pad_id: Token id that pads.
    """

    def __init__(
        self, table: Table, first_chunks: np.ndarray, first_documents: np.ndarray, pad_id: int
    ) -> None:
        self._table = table
        self._tokens = table.column("tokens")
        self._lengths = table.column("length")
        self._documents = table.column("document")
        self._first_chunks = first_chunks
        self._first_documents = first_documents
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Tokens, uint16 or uint32 [n, m], padded; ids of any shape, one id, or a slice.

        Raises:
            IndexError: An id is out of range.
        """
        return self._tokens[ids]

    def lengths(self, ids: np.ndarray | list[int] | slice) -> np.ndarray:
        """Tokens before the padding, uint16 [n]."""
        return self._lengths[ids]

    def documents(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """Global document rows, int64 [n]."""
        wanted = np.asarray(ids, dtype=np.int64)
        part = np.searchsorted(self._first_chunks, wanted, side="right") - 1
        return self._documents[wanted] + self._first_documents[part]

    def values(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """[N, F]: each chunk with its continuation in the same document (paper, section 2.3).

        Args:
            ids: int64 [n] or any other shape, such as rows of neighbors without -1.

        Returns:
            uint16 or uint32 [n, 2 m]; F is all padding after a document's last chunk.

        Raises:
            IndexError: An id is out of range.
        """
        return self.values_and_lengths(ids)[0]

    def values_and_lengths(self, ids: np.ndarray | list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The results of `values` and `value_lengths`, in one pass."""
        rows = self._table.rows(ids)
        lengths = self._value_lengths(rows)
        values = self._table.take_pairs("tokens", rows)
        values[..., 1, :][lengths[..., 1] == 0] = self._pad_id
        return values.reshape(*values.shape[:-2], 2 * values.shape[-1]), lengths

    def value_lengths(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """Tokens before the padding of N and of F: int64 [n, 2], 0 after a document's last chunk."""
        return self._value_lengths(self._table.rows(ids))

    def _value_lengths(self, rows: Rows) -> np.ndarray:
        documents = self._table.take_pairs("document", rows)
        lengths = self._table.take_pairs("length", rows).astype(np.int64)
        lengths[..., 1] *= documents[..., 0] == documents[..., 1]
        return lengths
