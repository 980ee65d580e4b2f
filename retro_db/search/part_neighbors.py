"""Every chunk's neighbors, none of its own document: else the answer leaks into training.

The paper filters neighbors from the same document (section 2.3). A document's chunk ids are
contiguous, so its range is excluded inside the search: exactly, and with no row left short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from retro_db.index.structure import keyed, widen
from retro_db.search.finder import ChunkTokens, Finder
from retro_db.search.part_documents import Documents
from retro_db.search.searching import IdRanges, QueryBlock, windows
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.tables import TableFile
from retro_db.store.writing import TableWriter


def neighbors_part(
    embeddings: TableFile,
    documents: Documents,
    tokens: ChunkTokens | None,
    path: str,
    finder: Finder,
    k: int,
    threads: int,
    folder: Folder,
    report: Callable[[int], None],
) -> tuple[TableEntry, int]:
    """Writes the neighbors of one part's chunks, row for row.

    Args:
        embeddings: The part's keys; chunks without one get no neighbors.
        documents: The part's documents.
        tokens: The part's own chunks, where their duplicates are passed over.
        path: Of the neighbors file, relative to the folder.
        finder: Finds them.
        k: Neighbors of a chunk.
        threads: Blocks of queries searched side by side; the result does not depend on it.
        folder: Where the file is written.
        report: Told, now and again, how many more chunks are done.

    Returns:
        The file, and how many chunks with a key have fewer than k neighbors.
    """
    table = contract("neighbors")
    short = 0
    size = finder.searcher.window(finder.settings)
    with folder.writing(path) as temporary, ThreadPoolExecutor(threads) as pool:
        with TableWriter(temporary, table.schema(k=k), table.batch_rows) as writer:
            for window in windows(documents.blocks(), size, lambda block: block[1] - block[0]):
                start, stop = window[0][0], window[-1][1]
                vectors = embeddings.read("vector", start, stop)
                there = keyed(vectors)
                ids = np.full((len(vectors), k), -1, np.int64)
                distances = np.full((len(vectors), k), np.inf, np.float32)
                every = (
                    _block(vectors, there, tokens, start, rows, exclude)
                    for *rows, exclude in window
                )
                blocks = [block for block in every if len(block.vectors)]
                if found := finder.find(blocks, k, pool):
                    ids[there] = np.concatenate([one for one, _ in found])
                    distances[there] = np.concatenate([one for _, one in found])
                short += int((ids[there, -1] < 0).sum())
                writer.append({"ids": ids, "distances": distances})
                report(len(ids))
        return describe(temporary, path, writer.rows), short


def _block(
    vectors: np.ndarray,
    there: np.ndarray,
    tokens: ChunkTokens | None,
    base: int,
    rows: Sequence[int],
    exclude: IdRanges,
) -> QueryBlock:
    """The queries of rows start to stop that have a key; vectors and there begin at row `base`."""
    start, stop = rows[0] - base, rows[1] - base
    chosen = np.flatnonzero(there[start:stop]) + start
    own = None if tokens is None else tokens[chosen + base]
    return QueryBlock(widen(vectors[chosen]), exclude, own)
