"""At home: a partition's queries meet its own keys, and leave for other partitions with their bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from retro_db.join.keys import Keys, take_halves
from retro_db.join.near_files import NearWriter, Neighbors
from retro_db.join.partition import Routed, list_column
from retro_db.join.scan import nearest_keys
from retro_db.join.setting import JoinSetting
from retro_db.join.spatial_order import Order
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder
from retro_db.store.slices import Slice, SlicedFile, SliceWriter, writing_slices

# A file of visits is closed when it is larger: any disk holds it until it is uploaded.
_MOST_FILE_BYTES = 4_000_000_000


@dataclass(frozen=True)
class HomeResult:
    """What came of a partition's queries at home.

    Attributes:
        near: Their neighbors at home, a slice for each span.
        visits: Their visits to other partitions: the slices of all files, in order, are those of the
            partitions from 0 on.
        unbounded: Number of queries with fewer than k neighbors at home.
    """

    near: list[SlicedFile]
    visits: list[SlicedFile]
    unbounded: int

    def visits_to(self, partition: int) -> Slice:
        """The slice of the queries that visit a partition."""
        for file in self.visits:
            if partition < file.count:
                return file.at(partition)
            partition -= file.count
        raise IndexError(partition)


def join_at_home(
    keys: Keys,
    queries: Routed,
    partition: int,
    order: Order,
    starts: np.ndarray,
    setting: JoinSetting,
    folder: Folder,
    *,
    threads: int,
    report: Callable[[int], None],
) -> HomeResult:
    """Joins a partition's queries with its keys.

    Args:
        keys: Keys of the partition.
        queries: Chunks whose nearest list lies in the partition.
        partition: Number of the partition.
        order: Order of the lists.
        starts: int64 [spans], first id of each span of queries.
        setting: What the join agrees on.
        folder: Folder of the join.
        threads: Number of blocks of queries side by side; the result does not depend on it.
        report: Called with the number of queries joined since the last call.
    """
    first, end = (int(cut) for cut in order.cuts[partition : partition + 2])
    rows = np.argsort(queries.lists[:, 0], kind="stable")
    bounds = np.empty(len(queries.ids), np.float32)
    near = NearWriter(folder, "home", partition, starts, setting)
    step = setting.block_rows(threads, len(rows))

    def join(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        block = rows[start : start + step]
        return block, *nearest_keys(keys, queries.visitors(block, first, end), setting.k)

    _ = keys.matrix  # made once, before all threads ask for it
    with ThreadPoolExecutor(threads) as pool:
        for block, ids, distances in pool.map(join, range(0, len(rows), step)):
            bounds[block] = distances[:, -1]
            near.append(Neighbors.of(queries.ids[block], ids, distances))
            report(len(block))
    near.flush()
    visits = _Visits(queries, rows, bounds, order, partition, setting)
    return HomeResult(near.files, visits.write(folder), int(np.isinf(bounds).sum()))


class _Visits:
    """Queries by the other partitions that they visit."""

    def __init__(
        self,
        queries: Routed,
        rows: np.ndarray,
        bounds: np.ndarray,
        order: Order,
        partition: int,
        setting: JoinSetting,
    ) -> None:
        self._queries = queries
        self._bounds = bounds
        self._order = order
        self._partition = partition
        self._setting = setting
        pairs = list(self._pairs(rows))
        targets = np.concatenate([np.empty(0, np.int32), *(target for target, _ in pairs)])
        by_target = np.argsort(targets, kind="stable")
        self._rows = np.concatenate([np.empty(0, np.int64), *(row for _, row in pairs)])[by_target]
        self._ends = np.searchsorted(targets[by_target], np.arange(order.partitions + 1))

    def _pairs(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields partitions and the queries that visit them, in list order, without home."""
        step = contract("visits").batch_rows
        for start in range(0, len(rows) if self._order.partitions > 1 else 0, step):
            block = rows[start : start + step]
            targets = self._order.partition_of(self._queries.lists[block]).astype(np.int32)
            targets.sort(axis=1)
            new = np.diff(targets, axis=1, prepend=-1) > 0
            new &= targets != self._partition
            query, place = np.nonzero(new)
            yield targets[query, place], block[query]

    def write(self, folder: Folder) -> list[SlicedFile]:
        """Writes a slice for every partition; files are closed as they become large."""
        files: list[SlicedFile] = []
        target = 0
        while self._order.partitions > 1 and target < self._order.partitions:
            path = self._setting.path("visits", shard=self._partition, part=len(files))
            schema = self._setting.schema("visits")
            with writing_slices(folder, path, schema, files) as writer:
                size = 0
                while target < self._order.partitions and size < _MOST_FILE_BYTES:
                    writer.begin()
                    size += self._write_slice(writer, target)
                    target += 1
        return files

    def _write_slice(self, writer: SliceWriter, target: int) -> int:
        """Writes the queries that visit a partition; returns about how many bytes that took."""
        first, end = self._order.cuts[target : target + 2]
        step = contract("visits").batch_rows
        size = 0
        for start in range(self._ends[target], self._ends[target + 1], step):
            rows = self._rows[start : min(start + step, self._ends[target + 1])]
            lists = self._queries.lists[rows]
            within = (lists >= first) & (lists < end)
            labels = self._queries.labels[rows]
            columns = {
                "id": self._queries.ids[rows],
                "vector": take_halves(self._queries.store, rows),
                "lists": list_column(lists[within], within.sum(axis=1)),
                "label": labels.documents,
                "tokens": np.zeros(len(rows), np.uint64)
                if labels.tokens is None
                else labels.tokens,
                "bound": self._bounds[rows],
            }
            writer.write(columns)
            size += len(rows) * self._setting.row_bytes
        return size
