"""k-means whose centroids depend on the points alone: neither on the number of threads nor on the cores."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from retro_db.index.structure import faiss
from retro_db.threads import use_faiss_threads

_ITERATIONS = 10
# Points that place the clusters of the upper of two levels, which their own points refine anyway.
_POINTS_PER_CLUSTER = 256
# Points that a thread compares with all centroids at a time; centroids whose points it sums, so many points
# at a time.
_BLOCK_POINTS = 8192
_BLOCK_CENTROIDS, _SUMMED_POINTS = 256, 4096
# Share of the points that threads may copy to refine the clusters that they lie in.
_COPIED = 1 / 8
# Two halves of a cluster are moved apart by this share of each coordinate, as in Faiss.
_SPLIT = 1 / 1024


def cluster(points: np.ndarray, clusters: int, seed: int, threads: int) -> np.ndarray:
    """Places the centroids of k-means.

    Lloyd's iterations from a random choice of points; a centroid without points takes half of the
    largest cluster. Each block of points is compared by one thread, and each centroid summed by one, in
    the order of the points.

    Args:
        points: float32 [n, d], n at least `clusters`.
        clusters: Number of clusters.
        seed: Seed of the choices.
        threads: Number of threads.

    Returns:
        float32 [clusters, d].
    """
    random = np.random.default_rng(seed)
    centroids = points[np.sort(random.choice(len(points), clusters, replace=False))]
    for _ in range(_ITERATIONS):
        nearest = assign(points, centroids, threads)
        sizes = np.bincount(nearest, minlength=clusters)
        centroids = _means(points, nearest, sizes, threads)
        _split_clusters(centroids, sizes)
    return centroids


def cluster_in_levels(points: np.ndarray, clusters: int, seed: int, threads: int) -> np.ndarray:
    """Places centroids by k-means within the clusters of another k-means.

    That takes n sqrt(clusters) comparisons an iteration instead of n clusters. An upper cluster gets
    as many centroids as its share of the points; threads work on different ones.

    Args:
        points: float32 [n, d], n at least `clusters`.
        clusters: Number of clusters.
        seed: Seed of the choices.
        threads: Number of threads.

    Returns:
        float32 [clusters, d].
    """
    upper = math.isqrt(clusters)
    count = min(len(points), upper * _POINTS_PER_CLUSTER)
    # Evenly spread rows: the points come in the order of the corpus.
    some = points[np.arange(count) * len(points) // count]
    nearest = assign(points, cluster(some, upper, seed, threads), threads)
    ends = np.cumsum(np.bincount(nearest, minlength=upper))
    order = np.argsort(nearest, kind="stable")
    shares = np.diff(ends * clusters // len(points), prepend=0)
    centroids = np.empty((clusters, points.shape[1]), np.float32)
    firsts = np.cumsum(shares) - shares

    def refine(number: int) -> None:
        start = ends[number - 1] if number else 0
        members = points[order[start : ends[number]]]
        first, share = firsts[number], int(shares[number])
        if share:
            centroids[first : first + share] = cluster(members, share, seed, 1)

    largest = int(np.diff(ends, prepend=0).max())
    _in_threads(refine, upper, min(threads, max(1, int(_COPIED * len(points) / largest))))
    return centroids


def assign(points: np.ndarray, centroids: np.ndarray, threads: int) -> np.ndarray:
    """Finds the nearest centroid of every point: int32 [n].

    Args:
        points: float32 [n, d].
        centroids: float32 [m, d].
        threads: Number of threads.
    """
    nearest = np.empty(len(points), np.int32)

    def compare(block: int) -> None:
        use_faiss_threads(1)
        rows = slice(block * _BLOCK_POINTS, (block + 1) * _BLOCK_POINTS)
        nearest[rows] = faiss.knn(points[rows], centroids, 1)[1][:, 0]

    _in_threads(compare, -(-len(points) // _BLOCK_POINTS), threads)
    return nearest


def _means(points: np.ndarray, nearest: np.ndarray, sizes: np.ndarray, threads: int) -> np.ndarray:
    """The mean of each cluster's points, float32 [clusters, d]; zeros for a cluster without any."""
    order = np.argsort(nearest, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    means = np.zeros((len(sizes), points.shape[1]), np.float32)

    def add(block: int) -> None:
        first = block * _BLOCK_CENTROIDS
        stop = int(starts[min(first + _BLOCK_CENTROIDS, len(sizes))])
        for start in range(int(starts[first]), stop, _SUMMED_POINTS):
            rows = order[start : min(start + _SUMMED_POINTS, stop)]
            numbers, offsets = np.unique(nearest[rows], return_index=True)
            means[numbers] += np.add.reduceat(points[rows], offsets, axis=0)

    _in_threads(add, -(-len(sizes) // _BLOCK_CENTROIDS), threads)
    means /= np.maximum(sizes, 1)[:, None]
    return means


def _split_clusters(centroids: np.ndarray, sizes: np.ndarray) -> None:
    """Gives every centroid without points half of the largest cluster, in place."""
    signs = np.where(np.arange(centroids.shape[1]) % 2, -1, 1).astype(np.float32)
    largest = [(-int(size), number) for number, size in enumerate(sizes)]
    heapq.heapify(largest)
    for empty in np.flatnonzero(sizes == 0):
        size, number = largest[0]
        centroids[empty] = centroids[number] * (1 + _SPLIT * signs)
        centroids[number] *= 1 - _SPLIT * signs
        heapq.heapreplace(largest, (size + -size // 2, number))
        heapq.heappush(largest, (-(-size // 2), int(empty)))


def _in_threads(work: Callable[[int], None], count: int, threads: int) -> None:
    """Does numbered pieces of work, several side by side."""
    with ExitStack() as stack:
        run = stack.enter_context(ThreadPoolExecutor(threads)).map if threads > 1 else map
        for _ in run(work, range(count)):
            pass
