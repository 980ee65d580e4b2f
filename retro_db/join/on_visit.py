"""On a visit: queries of other partitions stream past the keys of one, which stay in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from retro_db.join.keys import Keys, Labels
from retro_db.join.near_files import NearWriter, Neighbors
from retro_db.join.scan import Visitors, nearest_keys
from retro_db.join.setting import JoinSetting
from retro_db.store.folder import Folder
from retro_db.store.slices import Slice, SlicedFile, column, read_slice


def join_visits(
    keys: Keys,
    visits: Sequence[Slice],
    partition: int,
    first_list: int,
    starts: np.ndarray,
    setting: JoinSetting,
    folder: Folder,
    *,
    threads: int,
    report: Callable[[int], None],
) -> list[SlicedFile]:
    """Joins queries of other partitions with the keys of one.

    Args:
        keys: Keys of the partition.
        visits: Slices of queries that visit it.
        partition: Number of the partition.
        first_list: Place of its first list.
        starts: int64 [spans], first id of each span of queries.
        setting: What the join agrees on.
        folder: Folder of the join.
        threads: Number of blocks of queries side by side; the result does not depend on it.
        report: Called with the number of visits joined since the last call.

    Returns:
        Files of the neighbors that lie within the queries' bounds, a slice for each span.
    """
    near = NearWriter(folder, "visit", partition, starts, setting)

    def join(batches: Sequence[pa.RecordBatch]) -> Neighbors:
        ids = np.concatenate([column(batch, "id") for batch in batches])
        visitors = _visitors(batches, first_list, setting)
        return Neighbors.of(ids, *nearest_keys(keys, visitors, setting.k))

    schema = setting.schema("visits")
    batches = (batch for piece in visits for batch in read_slice(folder, piece, schema))
    _ = keys.matrix  # made once, before all threads ask for it
    with ThreadPoolExecutor(threads) as pool:
        about = sum(piece.bytes for piece in visits) // setting.visit_bytes
        blocks = _blocks(batches, setting.block_rows(threads, about))
        for count, neighbors in _mapped(pool, join, blocks, threads):
            near.append(neighbors)
            report(count)
    near.flush()
    return near.files


def _blocks(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[list[pa.RecordBatch]]:
    """Gathers batches up to a number of rows."""
    block: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            piece = batch.slice(start, rows)
            if block and count + piece.num_rows > rows:
                yield block
                block, count = [], 0
            block.append(piece)
            count += piece.num_rows
    if block:
        yield block


def _mapped(
    pool: Executor,
    join: Callable[[list[pa.RecordBatch]], Neighbors],
    blocks: Iterator[list[pa.RecordBatch]],
    ahead: int,
) -> Iterator[tuple[int, Neighbors]]:
    """Yields the neighbors of every block in order; only `ahead` blocks are in memory."""
    begun: deque[tuple[int, Future[Neighbors]]] = deque()
    for block in blocks:
        begun.append((sum(batch.num_rows for batch in block), pool.submit(join, block)))
        if len(begun) > ahead:
            count, future = begun.popleft()
            yield count, future.result()
    for count, future in begun:
        yield count, future.result()


def _visitors(batches: Sequence[pa.RecordBatch], first_list: int, setting: JoinSetting) -> Visitors:
    """Queries of a block with their bounds."""
    lists = [batch.column("lists") for batch in batches]
    counts = np.concatenate([np.diff(array.offsets.to_numpy()) for array in lists])
    values = np.concatenate([array.flatten().to_numpy() for array in lists])
    vectors = np.concatenate([column(batch, "vector").view(np.uint16) for batch in batches])
    tokens = np.concatenate([column(batch, "tokens") for batch in batches])
    labels = np.concatenate([column(batch, "label") for batch in batches])
    return Visitors(
        vectors=vectors.view(np.float16),
        labels=Labels(labels, tokens if setting.passes_over_copies else None),
        bounds=np.concatenate([column(batch, "bound") for batch in batches]),
        rows=np.repeat(np.arange(len(counts)), counts),
        lists=values.astype(np.int64) - first_list,
    )
