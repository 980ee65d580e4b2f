"""Stored neighbors by global chunk id, without removed chunks."""

from __future__ import annotations

import numpy as np

from retro_db.errors import DamagedFileError
from retro_db.reader.removals import Removals
from retro_db.reader.rows import pack
from retro_db.store.gathering import Table


class Neighbors:
    """Neighbors by global chunk id. Removed chunks are skipped.

    Args:
        table: The neighbors table.
        count: Number of chunks that the neighbor ids refer to.
        removals: Removals among these chunks; None if none was removed.
        url: URL of the database, for messages.
    """

    def __init__(self, table: Table, count: int, removals: Removals | None, url: str) -> None:
        self._ids = table.column("ids")
        self._distances = table.column("distances")
        self._count = count
        self._removals = removals
        self._url = url

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Chunk ids of other documents, nearest first, int64 [n, k]; -1 marks a missing neighbor.

        Raises:
            DamagedFileError: A stored id is out of range.
        """
        stored = self._ids[ids]
        if stored.size and (stored.min() < -1 or stored.max() >= self._count):
            raise DamagedFileError(f"{self._url}: neighbors: an id is out of range; run verify")
        removed = self._removed_among(stored)
        return stored if removed is None else pack(stored, ~removed, -1)

    def distances(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Their squared L2 distances, float32 [n, k]; infinity for a missing neighbor."""
        stored = self._distances[ids]
        if self._removals is None:
            return stored
        removed = self._removed_among(self._ids[ids])
        return stored if removed is None else pack(stored, ~removed, np.inf)

    def _removed_among(self, stored: np.ndarray) -> np.ndarray | None:
        """Which of some stored neighbors were removed, bool [n, k]; None if none was."""
        if self._removals is None:
            return None
        removed = self._removals.has_chunks(stored)
        return removed if removed.any() else None
