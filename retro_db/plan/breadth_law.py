"""How many lists a chunk visits in a database that nobody has built: measured in samples, and extrapolated.

From a sample of N chunks nested ones of N/64, N/16 and N/4 are taken, in whole documents. In each, lists are
trained, and the true neighbors say how many of them must be visited for a recall. Two laws are fitted:

    nprobe = A (lists / sqrt(n))^c          to the whole sample,
    nprobe = A (lists / sqrt(n))^c n^b      to all samples.

The first is the prediction: what small samples add to it, growing or shrinking, did not go on where more keys
were measured (docs/scale.md). But nobody can say what holds at thousands of times the sample: so the range is
as wide, to both sides, as the laws lie apart, and as the second errs. Samples so small that a quarter of
their lists must be visited are left out: there the whole sample bounds what is visited.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.errors import SampleError
from retro_db.hashing import fractions_of
from retro_db.index.keys import MAX_POINTS_PER_LIST, POINTS_PER_LIST, parse_key
from retro_db.index.structure import faiss, widen
from retro_db.index.training import train_index
from retro_db.join.breadth import RECALL_AT, SampledQueries, recalls_by_breadth
from retro_db.join.nearest import nearest
from retro_db.join.router import Router
from retro_db.threads import available_cores, use_faiss_threads

_LOG = logging.getLogger(__name__)
# A smaller sample says nothing of large ones; a larger one takes long to compare.
LEAST_CHUNKS, MOST_CHUNKS = 16_384, 400_000
_NESTED = (64, 16, 4, 1)
# Lists as multiples of the square root of the chunks.
_RATIOS = (1, 2, 4, 8)
_QUERIES = 4000
_BLOCK_KEYS = 16_384
# Samples are left out where more of their lists must be visited.
_MOST_SHARE = 0.25
# 90% of a normal deviation lies within so many standard deviations.
_Z90 = 1.645
_SEED = 0


@dataclass(frozen=True)
class MeasuredBreadth:
    """The lists that a recall takes in one sample.

    Attributes:
        chunks: Chunks of the sample.
        lists: Lists that they were divided into.
        nprobe: Lists to visit, between whole numbers where the recall lies between theirs.
    """

    chunks: int
    lists: int
    nprobe: float


@dataclass(frozen=True)
class PredictedBreadth:
    """The lists that a recall takes at full size, and between which numbers that is uncertain.

    Attributes:
        recall: Recall@10 among other documents.
        nprobe: Lists to visit.
        least: Lower end of its range.
        most: Upper end of its range.
    """

    recall: float
    nprobe: int
    least: int
    most: int


class BreadthLaw:
    """The lists that one recall takes, by the number of chunks and of lists.

    Args:
        recall: The recall.
        measured: What it takes in nested samples.

    Raises:
        SampleError: They are too small to say anything of larger ones.
    """

    def __init__(self, recall: float, measured: Sequence[MeasuredBreadth]) -> None:
        self._recall = recall
        largest = max(point.chunks for point in measured)
        points = [point for point in measured if point.nprobe <= _MOST_SHARE * point.lists]
        whole = [point for point in points if point.chunks == largest]
        if len(whole) < 2 or len(points) < len(whole) + 2:
            raise SampleError(
                f"recall {recall} takes more than a quarter of the lists of {largest:,} chunks, too many to "
                "say what it takes in more; give a database of more chunks"
            )
        self._at_whole = _Fit.of(whole, by_chunks=False)
        self._over_all = _Fit.of(points, by_chunks=True)

    def predict(self, chunks: int, lists: int) -> PredictedBreadth:
        """Predicts the lists to visit.

        Args:
            chunks: Number of chunks, N.
            lists: Number of lists.
        """
        power, _ = self._at_whole.at(chunks, lists)
        growing, error = self._over_all.at(chunks, lists)
        aside = abs(power - growing) + _Z90 * error
        nprobe, least, most = (
            min(lists, max(1, math.ceil(math.exp(end))))
            for end in (power, power - aside, power + aside)
        )
        return PredictedBreadth(self._recall, nprobe, least, most)


@dataclass(frozen=True)
class _Fit:
    """A law in logarithms, fitted by least squares.

    Attributes:
        coefficients: float64 [2 or 3], of 1, log(lists / sqrt(n)) and, if it grows with them, log n.
        covariance: Inverse of the product of the points with themselves.
        deviation: Standard deviation of what the law leaves.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    deviation: float

    @classmethod
    def of(cls, points: Sequence[MeasuredBreadth], *, by_chunks: bool) -> _Fit:
        terms = 3 if by_chunks else 2
        x = np.stack([_terms(point.chunks, point.lists)[:terms] for point in points])
        y = np.log([point.nprobe for point in points])
        coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
        left = y - x @ coefficients
        deviation = math.sqrt((left**2).sum() / max(len(points) - terms, 1))
        return cls(coefficients, np.linalg.pinv(x.T @ x), deviation)

    def at(self, chunks: int, lists: int) -> tuple[float, float]:
        """Logarithm of the lists to visit, and its standard error."""
        x = _terms(chunks, lists)[: len(self.coefficients)]
        error = self.deviation * math.sqrt(1 + x @ self.covariance @ x)
        return float(x @ self.coefficients), error


def _terms(chunks: int, lists: int) -> np.ndarray:
    return np.array([1.0, math.log(lists) - math.log(chunks) / 2, math.log(chunks)])


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
