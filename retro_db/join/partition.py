"""The chunks of one join partition, read from what was routed to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from retro_db.errors import DamagedFileError
from retro_db.join.keys import Keys, Labels, needed_keys, take_halves
from retro_db.join.products import precision_of
from retro_db.join.scan import Visitors
from retro_db.join.setting import JoinSetting
from retro_db.store.folder import Folder
from retro_db.store.slices import Slice, column, read_slice


@dataclass(frozen=True)
class RoutedSlice:
    """Chunks of one span that were routed to one partition.

    Attributes:
        slice: Where they lie.
        rows: Number of the chunks.
    """

    slice: Slice
    rows: int


@dataclass(frozen=True)
class Routed:
    """Chunks that were routed to one partition, in the order in which they were read.

    Attributes:
        ids: int64 [m], global chunk ids.
        store: float16 [m, d], embeddings.
        lists: int32 [m, nprobe], places of the lists that each visits, nearest first.
        labels: Labels of the chunks.
        indexed: bool [m], whether each may be anyone's neighbor.
    """

    ids: np.ndarray
    store: np.ndarray
    lists: np.ndarray
    labels: Labels
    indexed: np.ndarray

    @classmethod
    def read(
        cls,
        folder: Folder,
        slices: Sequence[RoutedSlice],
        setting: JoinSetting,
        nprobe: int,
        report: Callable[[int], None],
    ) -> Routed:
        """Reads a partition.

        Args:
            folder: Folder of the routed files.
            slices: The partition's slice of every routed file, in the order of ids.
            setting: What the join agrees on.
            nprobe: Number of lists of each chunk in these files.
            report: Called with the bytes of every slice that was read.

        Raises:
            DamagedFileError: A slice cannot be read, or holds another number of chunks.
        """
        count = sum(routed.rows for routed in slices)
        store = np.empty((count, setting.dimension), np.float16)
        lists = np.empty((count, nprobe), np.int32)
        ids, label = np.empty(count, np.int64), np.empty(count, np.int64)
        tokens, indexed = np.empty(count, np.uint64), np.empty(count, bool)
        schema = setting.schema("routed", nprobe)
        name = "name" if setting.by_name else "document"
        row = 0
        for routed in slices:
            end = row + routed.rows
            for batch in read_slice(folder, routed.slice, schema):
                rows = slice(row, row + batch.num_rows)
                if rows.stop > end:
                    break
                store.view(np.uint16)[rows] = column(batch, "vector").view(np.uint16)
                lists[rows] = column(batch, "lists")
                ids[rows], label[rows] = column(batch, "id"), column(batch, name)
                tokens[rows], indexed[rows] = column(batch, "tokens"), column(batch, "indexed")
                row = rows.stop
            if row != end:
                raise DamagedFileError(
                    f"{folder.url}: {routed.slice.path}: a slice does not hold {routed.rows} chunks; run the "
                    "same command again"
                )
            report(routed.slice.bytes)
        copies = tokens if setting.passes_over_copies else None
        return cls(ids, store, lists, Labels(label, copies), indexed)

    def keys(self, first: int, end: int, setting: JoinSetting) -> Keys:
        """The keys among them, by list.

        Args:
            first: Place of the partition's first list.
            end: One after the place of its last list.
            setting: What the join agrees on.
        """
        rows = np.flatnonzero(self.indexed)
        # Spans come in the order of ids, and the chunks of a list within a span too.
        rows = rows[np.argsort(self.lists[rows, 0], kind="stable")]
        lists = self.lists[rows, 0].astype(np.int64) - first
        needed = needed_keys(self.store, rows, self.labels[rows], lists, setting.k)
        rows, lists = rows[needed], lists[needed]
        offsets = np.searchsorted(lists, np.arange(end - first + 1))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return Keys(
            offsets=offsets,
            ids=self.ids[rows],
            labels=self.labels[rows],
            store=self.store,
            places=rows,
            precision=precision_of(setting.products, device),
            device=device,
        )

    def visitors(self, rows: np.ndarray, first: int, end: int) -> Visitors:
        """Some of them as queries that visit the partition's lists, without bounds.

        Args:
            rows: int64 [n].
            first: Place of the partition's first list.
            end: One after the place of its last list.
        """
        lists = self.lists[rows]
        query, place = np.nonzero((lists >= first) & (lists < end))
        return Visitors(
            vectors=take_halves(self.store, rows),
            labels=self.labels[rows],
            bounds=np.full(len(rows), np.inf, np.float32),
            rows=query,
            lists=lists[query, place].astype(np.int64) - first,
        )


def list_column(lists: np.ndarray, counts: np.ndarray) -> pa.Array:
    """Arrow's lists of varying length.

    Args:
        lists: int32 [sum of counts], the values row after row.
        counts: int64 [n], values of each row.
    """
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    item = pa.field("item", pa.int32(), nullable=False)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(lists), type=pa.list_(item))
