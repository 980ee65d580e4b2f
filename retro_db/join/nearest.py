"""Exact distances, and the nearest by them: the one way in which the join decides."""

from __future__ import annotations

import numpy as np

from retro_db.index.structure import faiss, widen
from retro_db.join.keys import take_halves
from retro_db.join.scratch import scratch
from retro_db.threads import use_faiss_threads

# Pairs at a time: their keys, widened, stay in the caches.
_PAIRS = 4096


def exact_distances(
    queries: np.ndarray, rows: np.ndarray, vectors: np.ndarray, keys: np.ndarray
) -> np.ndarray:
    """Computes squared L2 distances of pairs, each by itself: Faiss's sum of float32 squares.

    Args:
        queries: float32 [n, d].
        rows: int64 [p], the query of each pair.
        vectors: float16 [m, d], the keys.
        keys: int64 [p], the key of each pair.

    Returns:
        float32 [p].
    """
    use_faiss_threads(1)
    distances = np.empty(len(rows), np.float32)
    dimension = queries.shape[1]
    places = scratch("places", (len(vectors),), np.int32)
    wide = scratch("wide", (min(_PAIRS, len(rows)), dimension), np.float32)
    pointer = faiss.swig_ptr
    for start in range(0, len(rows), _PAIRS):
        pairs = slice(start, start + _PAIRS)
        wanted = keys[pairs]
        # Queries side by side share keys: each is widened once.
        places[wanted] = np.arange(len(wanted), dtype=np.int32)
        distinct = wanted[places[wanted] == np.arange(len(wanted), dtype=np.int32)]
        places[distinct] = np.arange(len(distinct), dtype=np.int32)
        widen(take_halves(vectors, distinct), wide[: len(distinct)])
        sources, targets = np.ascontiguousarray(rows[pairs]), places[wanted].astype(np.int64)
        faiss.pairwise_indexed_L2sqr(
            dimension,
            len(wanted),
            pointer(queries),
            pointer(sources),
            pointer(wide),
            pointer(targets),
            pointer(distances[pairs]),
        )
    return distances


def nearest(ids: np.ndarray, distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Selects the nearest of every row by ascending (distance, id).

    Args:
        ids: int64 [n, c], no id twice in a row.
        distances: float32 [n, c], none negative; infinity for what does not count.
        k: Number of neighbors.

    Returns:
        ids int64 [n, k], padded with -1, and distances float32 [n, k], padded with infinity.
    """
    if ids.shape[1] < k:
        missing = ((0, 0), (0, k - ids.shape[1]))
        ids = np.pad(ids, missing, constant_values=-1)
        distances = np.pad(distances, missing, constant_values=np.inf)
    by_id = np.argsort(ids, axis=1)
    bits = np.take_along_axis(distances, by_id, axis=1).view(np.uint32).astype(np.uint64)
    # Bits of a float that is not negative ascend with it.
    order = bits << np.uint64(32) | np.arange(ids.shape[1], dtype=np.uint64)
    order.sort(axis=1)
    order = order[:, :k]
    near = (order >> np.uint64(32)).astype(np.uint32).view(np.float32)
    chosen = np.take_along_axis(by_id, (order & np.uint64(0xFFFFFFFF)).astype(np.int64), axis=1)
    return np.where(np.isinf(near), -1, np.take_along_axis(ids, chosen, axis=1)), near


def nearest_of_pairs(
    rows: np.ndarray, ids: np.ndarray, distances: np.ndarray, count: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Selects the nearest of every query among pairs that are sorted by query.

    Args:
        rows: int64 [p], queries, ascending.
        ids: int64 [p], chunks.
        distances: float32 [p].
        count: Number of queries, n.
        k: Number of neighbors.

    Returns:
        As `nearest`: ids int64 [n, k] and distances float32 [n, k].
    """
    best = np.full((count, k), -1, np.int64), np.full((count, k), np.inf, np.float32)
    sizes = np.bincount(rows, minlength=count)
    starts = np.cumsum(sizes) - sizes
    width, narrower = max(32, k), 0
    # Rows of about equal numbers of pairs together: few have many.
    while narrower < sizes.max(initial=0):
        some = np.flatnonzero((sizes > narrower) & (sizes <= width))
        if len(some):
            places = starts[some, None] + np.arange(width)
            within = np.arange(width) < sizes[some, None]
            places[~within] = 0
            some_ids, near = ids[places], distances[places]
            near[~within] = np.inf
            # What does not count sorts behind by its distance, whatever its id.
            best[0][some], best[1][some] = nearest(some_ids, near, k)
        width, narrower = 3 * width, width
    return best
