"""How many lists a query of the join visits: the fewest whose measured recall reaches the target.

The join is exact within the lists that it visits. So its recall needs no search: a true neighbor is found if
its list is among the nearest ones of the query, and one ranking of lists gives the recall of every breadth.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from retro_db.index.structure import widen
from retro_db.join.router import Router
from retro_db.manifest.model import JoinPoint

RECALL_AT = 10
# One-sided 99% bound of a normal mean.
_Z99 = 2.326
_FIRST_BREADTH = 256


@dataclass(frozen=True)
class JoinBreadth:
    """How many lists a query visits, and how that was measured.

    Attributes:
        nprobe: Number of lists.
        curve: Recall at powers of two, and at `nprobe`.
        lower_bound_met: Whether the lower bound of recall reaches the target.
    """

    nprobe: int
    curve: list[JoinPoint] = field(default_factory=list)
    lower_bound_met: bool = True

    @property
    def chosen(self) -> JoinPoint | None:
        """Recall at `nprobe`; None if it was not measured."""
        return self.curve[-1] if self.curve else None


@dataclass(frozen=True)
class SampledQueries:
    """Queries with their true nearest chunks of other documents.

    Attributes:
        vectors: float32 [q, d].
        neighbors: float16 [q, n, d], embeddings of the true nearest, by distance.
        distances: float32 [q, n], their squared distances; infinity where there are fewer.
        are_all_chunks: Whether the queries are all chunks, so that recall is not an estimate.
    """

    vectors: np.ndarray
    neighbors: np.ndarray
    distances: np.ndarray
    are_all_chunks: bool


def measure_breadth(
    router: Router, queries: SampledQueries, target: float, limit: int
) -> JoinBreadth:
    """Finds the fewest lists whose recall@10, as a one-sided 99% lower bound, reaches the target.

    Equal queries count once: copies find each other, and would speak for the rest.

    Args:
        router: Router of the trained index.
        queries: Sampled queries.
        target: Recall to reach, 0 to 1.
        limit: Most lists that a query may visit.

    Returns:
        The breadth; all lists that are allowed if fewer do not reach the target.
    """
    if not len(queries.vectors):
        return JoinBreadth(limit)
    distinct = first_of_equals(queries.vectors)
    breadth = min(_FIRST_BREADTH, limit)
    while True:
        recalls = recalls_by_breadth(router, queries, breadth)
        points = [
            _point(nprobe + 1, recalls[:, nprobe], distinct, queries) for nprobe in range(breadth)
        ]
        for point in points:
            everything = point.nprobe == router.lists and point.recall == 1.0
            if point.lower_bound >= target or everything:
                return JoinBreadth(point.nprobe, _curve(points, point.nprobe))
        if breadth == limit:
            return JoinBreadth(limit, _curve(points, limit), lower_bound_met=False)
        breadth = min(4 * breadth, limit)


def first_of_equals(vectors: np.ndarray) -> np.ndarray:
    """The first of each set of equal rows: int64, ascending."""
    return np.sort(np.unique(vectors, axis=0, return_index=True)[1])


def recalls_by_breadth(router: Router, queries: SampledQueries, breadth: int) -> np.ndarray:
    """Recall of every query at 1, 2, ... lists: float64 [q, breadth]."""
    count, near, dimension = queries.neighbors.shape
    true = np.sort(queries.distances, axis=1)[:, :RECALL_AT]
    sizes = np.isfinite(true).sum(axis=1)
    farthest = np.take_along_axis(true, np.maximum(sizes - 1, 0)[:, None], axis=1)
    # A neighbor at the distance of the last true one counts as true.
    counts_as_true = (queries.distances <= farthest) & np.isfinite(queries.distances)
    lists = router.nearest(queries.vectors, breadth)
    flat = queries.neighbors.reshape(-1, dimension)
    homes = router.nearest(widen(flat), 1).reshape(count, near)
    hits = np.zeros((count, breadth), np.int64)
    for column in range(near):
        visited = (lists == homes[:, column, None]) & counts_as_true[:, column, None]
        hits += np.cumsum(visited, axis=1)
    shares = np.minimum(hits, sizes[:, None]) / np.maximum(sizes, 1)[:, None]
    return np.where(sizes[:, None] == 0, 1.0, shares)


def lower_bound(recalls: np.ndarray, *, are_all: bool) -> float:
    """A one-sided 99% lower bound of the mean recall; the mean itself if the queries are all there are.

    Args:
        recalls: float64 [q], recall of each query.
        are_all: Whether the queries are all chunks.
    """
    if are_all:
        return float(recalls.mean())
    # One imagined failure: else a sample without failures would seem certain.
    doubted = np.append(recalls, 0.0)
    return float(doubted.mean() - _Z99 * doubted.std() / np.sqrt(len(doubted)))


def _point(
    nprobe: int, recalls: np.ndarray, distinct: np.ndarray, queries: SampledQueries
) -> JoinPoint:
    bound = lower_bound(recalls[distinct], are_all=queries.are_all_chunks)
    recall, distinct_recall = float(recalls.mean()), float(recalls[distinct].mean())
    return JoinPoint(nprobe, round(recall, 6), round(distinct_recall, 6), round(bound, 6))


def _curve(points: list[JoinPoint], nprobe: int) -> list[JoinPoint]:
    """Points of powers of two below the one of a number of lists, and that one."""
    powers = [points[(1 << power) - 1] for power in range((nprobe - 1).bit_length())]
    return [*powers, points[nprobe - 1]]
