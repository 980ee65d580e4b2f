"""Every chunk's neighbors, none of its own document: else the answer leaks into training.

The paper filters neighbors from the same document (section 2.3). A document's chunk ids are
contiguous, so its range is excluded inside the search: exactly, and with no row left short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from retro_db.index.searching import Searcher, nearest
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.store.tables import ColumnReader, IpcFile, TableWriter

_BLOCK_QUERIES = 1024


@dataclass(frozen=True)
class Documents:
    """Documents of one part: those with chunks, in order.

    Attributes:
        first_id: Global id of the part's first chunk.
        starts: int64 [D], first chunk of each, counted from the part's first.
        counts: int64 [D], chunks of each.
    """

    first_id: int
    starts: np.ndarray
    counts: np.ndarray

    def blocks(self) -> Iterator[tuple[int, int, tuple[int, int]]]:
        """Query rows start to stop, and the document's global id range that they must not find."""
        for first, count in zip(self.starts.tolist(), self.counts.tolist(), strict=True):
            exclude = (self.first_id + first, self.first_id + first + count)
            for start in range(first, first + count, _BLOCK_QUERIES):
                yield start, min(start + _BLOCK_QUERIES, first + count), exclude


def find_neighbors(
    queries: np.ndarray,
    exclude: tuple[int, int] | None,
    searcher: Searcher,
    keys: ColumnReader,
    k: int,
    rerank: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest chunks outside an id range.

    A row that stays short of k is searched again with twice the lists, up to `max_nprobe`.

    Args:
        queries: float32 [n, d].
        exclude: Ids first to end - 1, of the queries' own document.
        searcher: The index.
        keys: Embeddings of all chunks, for exact distances.
        k: Neighbors wanted.
        rerank: Candidates whose exact distances are computed.

    Returns:
        ids int64 [n, k] by ascending (distance, id), padded with -1, and squared L2 distances
        float32 [n, k], padded with infinity.
    """
    _, candidates = searcher.search(queries, rerank, exclude)
    nprobe = searcher.nprobe
    while nprobe < searcher.max_nprobe:
        short = np.flatnonzero((candidates[:, :k] < 0).any(axis=1))
        if not len(short):
            break
        nprobe = min(2 * nprobe, searcher.max_nprobe)
        _, candidates[short] = searcher.search(queries[short], rerank, exclude, nprobe)
    return nearest(queries, candidates, keys, k)


def neighbors_part(
    embeddings: IpcFile,
    documents: Documents,
    path: str,
    searcher: Searcher,
    keys: ColumnReader,
    k: int,
    rerank: int,
    threads: int,
    folder: Folder,
    report: Callable[[int], None],
) -> tuple[FileEntry, int]:
    """Writes the neighbors of one part's chunks, row for row.

    Args:
        embeddings: The part's keys; chunks without one get no neighbors.
        documents: The part's documents.
        path: Of the neighbors file, relative to the folder.
        searcher: The index.
        keys: Embeddings of all chunks.
        k: Neighbors of a chunk.
        rerank: Candidates of other documents that are re-ranked.
        threads: Blocks of queries searched side by side; the result does not depend on it.
        folder: The database.
        report: Told, now and again, how many more chunks are done.

    Returns:
        The file, and how many chunks with a key have fewer than k neighbors.
    """

    def search(block: tuple[int, int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, int]:
        start, stop, exclude = block
        vectors = embeddings.read("vector", start, stop)
        keyed = vectors.any(axis=1)
        ids = np.full((len(vectors), k), -1, np.int64)
        distances = np.full((len(vectors), k), np.inf, np.float32)
        if keyed.any():
            ids[keyed], distances[keyed] = find_neighbors(
                vectors[keyed].astype(np.float32), exclude, searcher, keys, k, rerank
            )
        return ids, distances, int((ids[keyed] < 0).any(axis=1).sum())

    table = contract("neighbors")
    short = 0
    with folder.writing(path) as temporary, ThreadPoolExecutor(threads) as pool:
        with TableWriter(temporary, table.schema(k=k), table.batch_rows) as writer:
            for ids, distances, short_here in pool.map(search, documents.blocks()):
                short += short_here
                writer.append({"ids": ids, "distances": distances})
                report(len(ids))
        return describe(temporary, path, writer.rows), short
