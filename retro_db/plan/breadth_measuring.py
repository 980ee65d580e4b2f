"""How many lists a chunk visits in samples of a database.

From a sample of N chunks nested ones of N/64, N/16 and N/4 are taken, in whole documents. In each, lists are
trained, and the true neighbors say how many of them must be visited for a recall.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from retro_db.hashing import fractions_of
from retro_db.index.keys import MAX_POINTS_PER_LIST, POINTS_PER_LIST, parse_key
from retro_db.index.structure import faiss, widen
from retro_db.index.training import train_index
from retro_db.join.breadth import RECALL_AT, SampledQueries, recalls_by_breadth
from retro_db.join.nearest import nearest
from retro_db.join.router import Router
from retro_db.plan.breadth_law import MeasuredBreadth
from retro_db.threads import available_cores, use_faiss_threads

_LOG = logging.getLogger(__name__)
# A smaller sample says nothing of large ones; a larger one takes long to compare.
LEAST_CHUNKS, MOST_CHUNKS = 16_384, 400_000
_NESTED = (64, 16, 4, 1)
# Lists as multiples of the square root of the chunks.
_RATIOS = (1, 2, 4, 8)
_QUERIES = 4000
_BLOCK_KEYS = 16_384
_SEED = 0


def measure_breadths(
    vectors: np.ndarray,
    documents: np.ndarray,
    recalls: Sequence[float],
) -> dict[float, list[MeasuredBreadth]]:
    """Measures how many lists recalls take in nested samples.

    Args:
        vectors: float16 [n, d], embeddings of a sample.
        documents: int64 [n], the document of each; a document's chunks lie side by side.
        recalls: Recalls@10 among other documents.

    Returns:
        What each recall takes.
    """
    starts = np.flatnonzero(np.diff(documents, prepend=-1))
    sizes = np.diff([*starts, len(documents)])
    by_hash = np.argsort(fractions_of(starts, _SEED), kind="stable")
    ends = np.cumsum(sizes[by_hash])
    measured: dict[float, list[MeasuredBreadth]] = {recall: [] for recall in recalls}
    for share in _NESTED:
        chosen = by_hash[: int(np.searchsorted(ends, len(documents) // share)) + 1]
        rows = np.concatenate([np.arange(starts[d], starts[d] + sizes[d]) for d in np.sort(chosen)])
        sample = vectors[rows]
        queries = _sampled_queries(sample, documents[rows])
        for lists in _trainable(len(rows)):
            breadths = _breadths(sample, lists, queries, recalls)
            for recall, nprobe in zip(recalls, breadths, strict=True):
                measured[recall].append(MeasuredBreadth(len(rows), lists, nprobe))
        _LOG.info("measured how many lists %s chunks take", f"{len(rows):,}")
    return measured


def measure_breadth_at(
    vectors: np.ndarray, documents: np.ndarray, lists: int, recalls: Sequence[float]
) -> list[float]:
    """Measures how many lists recalls take in all chunks, as `measure_breadths` does in nested samples.

    Args:
        vectors: float16 [n, d], embeddings.
        documents: int64 [n], the document of each.
        lists: Number of lists.
        recalls: Recalls@10 among other documents.
    """
    return _breadths(vectors, lists, _sampled_queries(vectors, documents), recalls)


def _trainable(chunks: int) -> list[int]:
    lists = [round(ratio * math.sqrt(chunks)) for ratio in _RATIOS]
    return [count for count in lists if count * POINTS_PER_LIST <= chunks]


def _sampled_queries(vectors: np.ndarray, documents: np.ndarray) -> SampledQueries:
    """Some of the chunks, with their true neighbors in other documents."""
    use_faiss_threads(available_cores())
    count = len(vectors)
    rows = np.argsort(fractions_of(np.arange(count), _SEED), kind="stable")[:_QUERIES]
    queries = widen(vectors[rows])
    ids = np.full((len(rows), RECALL_AT), -1, np.int64)
    distances = np.full((len(rows), RECALL_AT), np.inf, np.float32)
    for start in range(0, count, _BLOCK_KEYS):
        block = slice(start, min(start + _BLOCK_KEYS, count))
        apart = np.maximum(faiss.pairwise_distances(queries, widen(vectors[block])), 0)
        apart[documents[rows, None] == documents[block]] = np.inf
        block_ids = np.broadcast_to(np.arange(block.start, block.stop), apart.shape)
        ids, distances = nearest(
            np.concatenate([ids, block_ids], axis=1),
            np.concatenate([distances, apart], axis=1),
            RECALL_AT,
        )
    return SampledQueries(queries, vectors[ids], distances, are_all_chunks=count <= _QUERIES)


def _breadths(
    vectors: np.ndarray, lists: int, queries: SampledQueries, recalls: Sequence[float]
) -> list[float]:
    """Lists to visit for each recall, between whole numbers where the recall lies between theirs."""
    points = np.random.default_rng(_SEED).permutation(len(vectors))[: MAX_POINTS_PER_LIST * lists]
    key = parse_key(f"IVF{lists},Flat", vectors.shape[1])
    index = train_index(key, widen(vectors[np.sort(points)]))
    mean = recalls_by_breadth(Router(index), queries, lists).mean(axis=0)
    curve = np.concatenate([[0.0], mean])
    return np.maximum(np.interp(recalls, curve, np.arange(lists + 1)), 1.0).tolist()
