"""Tuning: the least nprobe whose measured recall reaches the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from retro_db.hashing import fractions_of
from retro_db.index.searching import Searcher, nearest
from retro_db.index.structure import faiss
from retro_db.index.training import PartKeys
from retro_db.manifest import RecallPoint
from retro_db.neighbors import Documents, find_neighbors
from retro_db.store.tables import ColumnReader
from retro_db.threads import use_faiss_threads

RECALL_AT = 10
# Expected by hashing; some less would still be the thousand that a bound of 0.3% needs.
_QUERIES = 1200
_BLOCK_QUERIES = 256
_SHARES_OF_LISTS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
# One-sided 99% bound of a normal mean.
_Z99 = 2.326


def sample_queries(
    parts: Sequence[PartKeys], documents: Sequence[Documents], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At least 1,000 chunks with a key, all where there are fewer, chosen by hashing ids.

    Args:
        parts: All keys.
        documents: The documents of each part.
        seed: Decides which chunks.

    Returns:
        Keys float32 [q, d], and the id range of each one's own document: int64 [q] and int64 [q].
    """
    total = sum(part.embeddings.rows for part in parts)
    share = min(1.0, _QUERIES / max(total, 1))
    keys, firsts, ends = [], [], []
    for part, held in zip(parts, documents, strict=True):
        rows = np.arange(part.embeddings.rows)
        rows = rows[fractions_of(rows + part.first_id, seed + 1) < share]
        for row in rows:
            vector = part.embeddings.read("vector", int(row), int(row) + 1)[0]
            if vector.any():
                own = int(np.searchsorted(held.starts, row, side="right")) - 1
                first = held.first_id + int(held.starts[own])
                keys.append(vector.astype(np.float32))
                firsts.append(first)
                ends.append(first + int(held.counts[own]))
    return np.array(keys), np.array(firsts, np.int64), np.array(ends, np.int64)


def exact_neighbors(
    queries: np.ndarray,
    firsts: np.ndarray,
    ends: np.ndarray,
    parts: Sequence[PartKeys],
    k: int,
    report: Callable[[int], None],
) -> np.ndarray:
    """The nearest indexed chunks of other documents, streamed over all embeddings.

    Args:
        queries: float32 [q, d].
        firsts: int64 [q], first id of each query's own document.
        ends: int64 [q], one after its last.
        parts: All keys.
        k: Neighbors wanted.
        report: Told, now and again, how many more keys are done.

    Returns:
        int64 [q, k] by ascending distance, as exact as float32 matrix products are; -1 where there
        are fewer.
    """
    use_faiss_threads(1)
    best_ids = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), np.inf, np.float32)
    for part in parts:
        step = part.embeddings.batch_rows
        for start in range(0, part.embeddings.rows, step):
            rows = start + np.flatnonzero(part.indexed[start : start + step])
            vectors = part.embeddings.read("vector", start, start + step)[rows - start]
            ids = rows + part.first_id
            for block in range(0, len(queries), _BLOCK_QUERIES):
                chosen = slice(block, block + _BLOCK_QUERIES)
                distances = faiss.pairwise_distances(queries[chosen], vectors.astype(np.float32))
                own = (ids >= firsts[chosen, None]) & (ids < ends[chosen, None])
                distances[own] = np.inf
                best[chosen], best_ids[chosen] = _merge(
                    best[chosen], best_ids[chosen], distances, ids, k
                )
            report(len(vectors))
    return best_ids


def _merge(
    best: np.ndarray, best_ids: np.ndarray, distances: np.ndarray, ids: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    every = np.concatenate([best, distances], axis=1)
    every_id = np.concatenate([best_ids, np.broadcast_to(ids, distances.shape)], axis=1)
    nearest = np.argpartition(every, k - 1, axis=1)[:, :k]
    kept = np.take_along_axis(every, nearest, axis=1)
    kept_ids = np.where(np.isinf(kept), -1, np.take_along_axis(every_id, nearest, axis=1))
    order = np.argsort(kept, axis=1, kind="stable")
    return np.take_along_axis(kept, order, axis=1), np.take_along_axis(kept_ids, order, axis=1)


def measure_recall(
    searcher: Searcher,
    queries: np.ndarray,
    firsts: np.ndarray,
    ends: np.ndarray,
    truth: np.ndarray,
    keys: ColumnReader,
    rerank: int,
) -> np.ndarray:
    """Share of each query's true neighbors that the search finds, float64 [q].

    A neighbor at the distance of the last true one counts as true: equal chunks are equally near.

    Args:
        searcher: What is measured.
        queries: float32 [q, d].
        firsts: int64 [q], first id of each query's own document.
        ends: int64 [q], one after its last.
        truth: Exact squared distances, float32 [q, k] ascending, infinity where there are fewer.
        keys: Embeddings of all chunks.
        rerank: Candidates that are re-ranked.

    Returns:
        float64 [q], 0 to 1; 1 where a query has no true neighbor.
    """
    k = truth.shape[1]
    recall = np.ones(len(queries))
    for row, query in enumerate(queries):
        own = (int(firsts[row]), int(ends[row]))
        _, distances = find_neighbors(query[None], own, searcher, keys, k, max(rerank, k))
        wanted = int(np.isfinite(truth[row]).sum())
        if wanted:
            recall[row] = (distances[0, :wanted] <= truth[row, wanted - 1]).mean()
    return recall


def tune_nprobe(
    searcher: Searcher,
    parts: Sequence[PartKeys],
    documents: Sequence[Documents],
    keys: ColumnReader,
    rerank: int,
    target: float,
    seed: int,
    report: Callable[[int], None],
) -> tuple[int, int, list[RecallPoint]]:
    """The least nprobe whose recall@10, as a one-sided 99% lower bound, reaches the target.

    nprobe grows to a quarter of the lists, and beyond only where the target cannot be met otherwise.

    Args:
        searcher: The index; its nprobe is set.
        parts: All keys.
        documents: The documents of each part.
        keys: The same keys by global id.
        rerank: Candidates that are re-ranked.
        target: Recall@10 to reach, 0 to 1.
        seed: Decides the queries.
        report: Told, now and again, how many more keys were searched exactly.

    Returns:
        nprobe, the number of queries, and the measured curve.
    """
    queries, firsts, ends = sample_queries(parts, documents, seed)
    if not len(queries):
        return searcher.lists, 0, []
    near = exact_neighbors(queries, firsts, ends, parts, 2 * RECALL_AT, report)
    _, truth = nearest(queries, near, keys, RECALL_AT)
    everything = sum(part.embeddings.rows for part in parts)
    curve: list[RecallPoint] = []
    for share in _SHARES_OF_LISTS:
        searcher.nprobe = max(1, round(searcher.lists * share))
        if curve and searcher.nprobe == curve[-1].nprobe:
            continue
        found = measure_recall(searcher, queries, firsts, ends, truth, keys, rerank)
        error = found.std() / np.sqrt(len(found)) if len(found) < everything else 0.0
        bound = float(found.mean() - _Z99 * error)
        curve.append(RecallPoint(searcher.nprobe, round(float(found.mean()), 6), round(bound, 6)))
        if bound >= target:
            break
    return searcher.nprobe, len(queries), curve
