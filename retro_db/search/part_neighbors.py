"""Every chunk's neighbors in other documents: its own document would leak the answer into training.

The paper filters neighbors from the same document (section 2.3). A document's chunk ids are
contiguous, so its range is excluded inside the search: exactly, and without leaving a row short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from retro_db.index.structure import is_embedded, widen
from retro_db.search.finder import ChunkTokens, Finder
from retro_db.search.part_documents import Documents
from retro_db.search.searching import IdRanges, QueryBlock, windows
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.tables import TableFile
from retro_db.store.writing import TableWriter

_Window = Sequence[tuple[int, int, IdRanges]]


@dataclass(frozen=True)
class PartQueries:
    """The chunks of one part as queries.

    Attributes:
        embeddings: The part's embeddings; chunks without one get no neighbors.
        documents: The part's documents.
        tokens: The part's chunks if their duplicates are passed over, else None.
    """

    embeddings: TableFile
    documents: Documents
    tokens: ChunkTokens | None = None

    def blocks(self, window: _Window) -> tuple[list[QueryBlock], np.ndarray]:
        """Reads a window of documents' chunks.

        Args:
            window: Consecutive rows, start and stop, and the ranges of ids that they must not find.

        Returns:
            Blocks of the chunks that have an embedding, and which rows of the window these are, as
            bool [rows].
        """
        first = window[0][0]
        vectors = self.embeddings.read("vector", first, window[-1][1])
        embedded = is_embedded(vectors)
        blocks = []
        for start, stop, exclude in window:
            rows = np.flatnonzero(embedded[start - first : stop - first]) + start - first
            if len(rows):
                tokens = None if self.tokens is None else self.tokens[rows + first]
                blocks.append(QueryBlock(widen(vectors[rows]), exclude, tokens))
        return blocks, embedded


def neighbors_part(
    queries: PartQueries,
    finder: Finder,
    k: int,
    path: str,
    folder: Folder,
    *,
    threads: int,
    report: Callable[[int], None],
) -> tuple[TableEntry, int]:
    """Writes the neighbors of one part's chunks, row for row.

    Args:
        queries: The part's chunks.
        finder: Finder of the database.
        k: Number of neighbors of a chunk.
        path: Path of the neighbors file, relative to the folder.
        folder: Folder that the file is written to.
        threads: Number of blocks of queries searched side by side; the result does not depend on it.
        report: Called with the number of chunks searched since the last call.

    Returns:
        The file, and the number of chunks with an embedding that have fewer than k neighbors.
    """
    table = contract("neighbors")
    short = 0
    size = finder.searcher.window(finder.settings)
    with folder.writing(path) as temporary, ThreadPoolExecutor(threads) as pool:
        with TableWriter(temporary, table.schema(k=k), table.batch_rows) as writer:
            documents = queries.documents.blocks()
            for window in windows(documents, size, lambda block: block[1] - block[0]):
                blocks, embedded = queries.blocks(window)
                ids, distances = _neighbors(finder, blocks, embedded, k, pool)
                short += int((ids[embedded, -1] < 0).sum())
                writer.append({"ids": ids, "distances": distances})
                report(len(ids))
        return describe(temporary, path, writer.rows), short


def _neighbors(
    finder: Finder, blocks: list[QueryBlock], embedded: np.ndarray, k: int, pool: Executor
) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 [rows, k] and distances float32 [rows, k] of a window, padded as in the table."""
    ids = np.full((len(embedded), k), -1, np.int64)
    distances = np.full((len(embedded), k), np.inf, np.float32)
    if blocks:
        neighbors = finder.find(blocks, k, pool)
        ids[embedded] = np.concatenate([block_ids for block_ids, _ in neighbors])
        distances[embedded] = np.concatenate([block_distances for _, block_distances in neighbors])
    return ids, distances
