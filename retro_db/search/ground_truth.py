"""Exact search: the true neighbors of sampled queries in other documents, which tuning measures by."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from retro_db.index.part_embeddings import PartEmbeddings
from retro_db.index.structure import faiss, widen
from retro_db.search.searching import QueryBlock
from retro_db.threads import use_faiss_threads

_BLOCK_QUERIES = 256


def query_blocks(queries: np.ndarray, own_ranges: np.ndarray) -> list[QueryBlock]:
    """Makes a block of each query, which excludes its document.

    Args:
        queries: float32 [q, d].
        own_ranges: int64 [q, 2], ids of each query's own document, first and end.
    """
    return [
        QueryBlock(queries[[row]], ((first, end),))
        for row, (first, end) in enumerate(own_ranges.tolist())
    ]


def exact_neighbors(
    queries: np.ndarray,
    own_ranges: np.ndarray,
    part: PartEmbeddings,
    k: int,
    threads: int,
    report: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest indexed chunks of other documents in one part, streaming its embeddings.

    Args:
        queries: float32 [q, d].
        own_ranges: int64 [q, 2], ids of each query's own document, first and end.
        part: The embeddings that are searched.
        k: Number of neighbors.
        threads: Number of blocks of queries compared side by side; the result does not depend on it.
        report: Called with the number of embeddings compared since the last call.

    Returns:
        Distances float32 [q, k], as exact as float32 matrix products are, ascending, and ids int64
        [q, k]; rows with fewer neighbors are padded with infinity and -1.
    """
    distances = np.full((len(queries), k), np.inf, np.float32)
    ids = np.full((len(queries), k), -1, np.int64)

    def compare(first: int) -> None:
        use_faiss_threads(1)
        block = slice(first, first + _BLOCK_QUERIES)
        batch_distances = _distances_to(queries[block], own_ranges[block], vectors, vector_ids)
        batch_ids = np.broadcast_to(vector_ids, batch_distances.shape)
        best = merge_neighbors((distances[block], ids[block]), (batch_distances, batch_ids), k)
        distances[block], ids[block] = best

    with ThreadPoolExecutor(threads) as pool:
        step = part.embeddings.batch_rows
        for start in range(0, part.embeddings.rows, step):
            rows, embeddings = part.read(start, start + step)
            vector_ids, vectors = rows + part.first_id, widen(embeddings)
            list(pool.map(compare, range(0, len(queries), _BLOCK_QUERIES)))
            report(len(rows))
    return distances, ids


def _distances_to(
    queries: np.ndarray, own_ranges: np.ndarray, vectors: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """float32 [q, n], infinity for ids of the query's own document; ids ascend."""
    distances = faiss.pairwise_distances(queries, vectors)
    for row, bounds in enumerate(own_ranges):
        first, end = np.searchsorted(ids, bounds)
        distances[row, first:end] = np.inf
    return distances


def merge_neighbors(
    best: tuple[np.ndarray, np.ndarray], more: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Selects the k nearest of two sets of distances and ids [q, n], ascending."""
    distances = np.concatenate([best[0], more[0]], axis=1)
    ids = np.concatenate([best[1], more[1]], axis=1)
    nearest = np.argpartition(distances, k - 1, axis=1)[:, :k]
    kept = np.take_along_axis(distances, nearest, axis=1)
    kept_ids = np.where(np.isinf(kept), -1, np.take_along_axis(ids, nearest, axis=1))
    order = np.argsort(kept, axis=1, kind="stable")
    return np.take_along_axis(kept, order, axis=1), np.take_along_axis(kept_ids, order, axis=1)
