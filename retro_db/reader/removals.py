"""Which documents of a corpus were removed, and which chunks with them."""

from __future__ import annotations

import functools

import numpy as np

from retro_db.errors import DamagedFileError
from retro_db.manifest.model import Tables
from retro_db.reader.opening import read_documents, read_rows
from retro_db.reader.rows import ids_in
from retro_db.store.folder import Folder


class Removals:
    """The removed documents of a corpus and their chunks.

    They keep their ids and can still be read; they are neither neighbors nor training text. Files are read
    when something is first asked of them.

    Args:
        folder: Folder of the database.
        tables: Files of the corpus.
    """

    def __init__(self, folder: Folder, tables: Tables) -> None:
        self._folder = folder
        self._tables = tables

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """Rows of the removed documents in the documents table: int64 [R], ascending.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        tables = [read_rows(self._folder, entry, "removed") for entry in self._tables.removed]
        pieces = [np.empty(0, np.int64), *(table["document"].to_numpy() for table in tables)]
        rows = np.sort(np.concatenate(pieces))
        total = sum(entry.rows for entry in self._tables.documents)
        if len(rows) and (rows[0] < 0 or rows[-1] >= total or (np.diff(rows) == 0).any()):
            raise DamagedFileError(
                f"{self._folder.url}: removed: a document is out of range or listed twice; run verify"
            )
        return rows

    def documents_among(self, first: int, count: int) -> np.ndarray:
        """Removed documents in a range of rows of the documents table.

        Args:
            first: First row of the range.
            count: Number of its rows.

        Returns:
            Their rows, counted from `first`: int64 [r], ascending.
        """
        inside = slice(*np.searchsorted(self.documents, [first, first + count]))
        return self.documents[inside] - first

    @functools.cached_property
    def chunks(self) -> np.ndarray:
        """Ids of the removed documents' chunks: int64 [n], ascending.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        firsts, ends = self._chunk_ranges
        return ids_in(firsts, ends - firsts)

    def has_chunks(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """Whether chunks belong to a removed document.

        Args:
            ids: Chunk ids of any shape, such as rows of neighbors; -1 marks a missing neighbor.

        Returns:
            bool, in the shape of the ids; False for -1.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        if not len(self.documents):
            return np.zeros(wanted.shape, bool)
        firsts, ends = self._chunk_ranges
        position = np.searchsorted(firsts, wanted, side="right") - 1
        return (position >= 0) & (wanted < ends[position])

    @functools.cached_property
    def _chunk_ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """First chunk of each removed document and the one after its last: int64 [R] each."""
        firsts, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        first_row, first_chunk = 0, 0
        files = zip(self._tables.documents, self._tables.chunks, strict=True)
        for documents, chunks in files if len(self.documents) else ():
            table = read_documents(self._folder, documents, chunks.rows)
            removed = table.take(self.documents_among(first_row, documents.rows))
            firsts.append(removed["first_chunk"].to_numpy() + first_chunk)
            counts.append(removed["chunk_count"].to_numpy())
            first_row, first_chunk = first_row + documents.rows, first_chunk + chunks.rows
        begins = np.concatenate(firsts)
        return begins, begins + np.concatenate(counts)
