"""What a partition's task has found, by query: written in slices for the tasks that gather it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from retro_db.join.setting import JoinSetting
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder
from retro_db.store.slices import SlicedFile, writing_slices

_ROW_BYTES = 20
# Share of the memory that may be collected; it is sorted in twice as much again.
_SHARE = 32


@dataclass(frozen=True)
class Neighbors:
    """Neighbors of queries, one a row.

    Attributes:
        queries: int64 [p], chunk ids of the queries.
        ids: int64 [p], chunk ids of the neighbors.
        distances: float32 [p], squared L2.
    """

    queries: np.ndarray
    ids: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, queries: np.ndarray, ids: np.ndarray, distances: np.ndarray) -> Neighbors:
        """Takes rows of neighbors apart: queries int64 [n], ids and distances [n, k], padded with -1."""
        rows, columns = np.nonzero(ids >= 0)
        return cls(queries[rows], ids[rows, columns], distances[rows, columns])

    @classmethod
    def joined(cls, pieces: list[Neighbors]) -> Neighbors:
        """Many as one."""
        none = [np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)]
        columns = ([piece.queries, piece.ids, piece.distances] for piece in pieces)
        lists = zip(none, *columns, strict=True)
        return cls(*(np.concatenate(arrays) for arrays in lists))

    def take(self, rows: np.ndarray) -> Neighbors:
        """Some of the rows, or all in another order."""
        return Neighbors(self.queries[rows], self.ids[rows], self.distances[rows])


class NearWriter:
    """Collects neighbors, and writes files of them that are sorted by query, each of bounded size.

    Args:
        folder: Folder of the join.
        kind: What the files' names begin with.
        partition: Number of the partition.
        starts: int64 [spans], first id of each span of queries.
        setting: What the join agrees on.

    Attributes:
        files: Files that are complete.
    """

    def __init__(
        self, folder: Folder, kind: str, partition: int, starts: np.ndarray, setting: JoinSetting
    ) -> None:
        self.files: list[SlicedFile] = []
        self._folder = folder
        self._kind = kind
        self._partition = partition
        self._starts = starts
        self._setting = setting
        self._pieces: list[Neighbors] = []
        self._rows = 0

    def append(self, neighbors: Neighbors) -> None:
        """Adds neighbors of any queries."""
        self._pieces.append(neighbors)
        self._rows += len(neighbors.queries)
        if self._rows * _ROW_BYTES > self._setting.memory // _SHARE:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected."""
        table = contract("near")
        neighbors = Neighbors.joined(self._pieces)
        self._pieces, self._rows = [], 0
        if not len(neighbors.queries):
            return
        neighbors = neighbors.take(np.argsort(neighbors.queries, kind="stable"))
        queries, ids, distances = neighbors.queries, neighbors.ids, neighbors.distances
        part = len(self.files)
        path = self._setting.path("near", kind=self._kind, shard=self._partition, part=part)
        bounds = [*np.searchsorted(queries, self._starts).tolist(), len(queries)]
        schema = self._setting.schema("near")
        with writing_slices(self._folder, path, schema, self.files) as writer:
            for first, end in itertools.pairwise(bounds):
                writer.begin()
                for start in range(first, end, table.batch_rows):
                    rows = slice(start, min(start + table.batch_rows, end))
                    writer.write(
                        {"query": queries[rows], "id": ids[rows], "distance": distances[rows]}
                    )
