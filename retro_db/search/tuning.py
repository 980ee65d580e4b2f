"""Tuning: the narrowest search whose measured recall reaches the target."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from retro_db.index.training import HNSW_EF_SEARCH
from retro_db.join.breadth import RECALL_AT, first_of_equals, lower_bound
from retro_db.manifest.model import RecallPoint
from retro_db.search.finder import Finder
from retro_db.search.reranking import Candidates
from retro_db.search.searching import QueryBlock, SearchSettings

# nprobe doubles from 1 up to a sixteenth of the lists, then grows by these shares.
_SHARES_OF_LISTS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
_USUAL_SHARE = 1 / 4
# Candidates to re-rank: up to the configured number; a remedy may advise more.
_DEPTHS = (50, 100, 200, 400, 800, 1600, 3200)
_EF_SEARCHES = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Speed:
    """How fast one way of searching was, re-ranking included, on the machine that tried it.

    Attributes:
        nprobe: Number of lists visited.
        rerank: Number of candidates re-ranked.
        ef_search: Breadth among centroids; None if no graph joins them.
        recall: Recall@10 that was reached.
        queries_per_second: Rate with `threads` queries searched side by side.
        threads: Number of threads.
    """

    nprobe: int
    rerank: int
    ef_search: int | None
    recall: float
    queries_per_second: float
    threads: int


@dataclass(frozen=True)
class Tuned:
    """The result of tuning.

    Attributes:
        settings: How the index is searched.
        queries: Number of sampled queries that recall was measured with.
        curve: Every measured point; the last one measures `settings`.
        remedy: A setting that would meet the target; None if it is met.
        speeds: Speed of each way of searching that was tried; the last one measures `settings`.
    """

    settings: SearchSettings
    queries: int
    curve: list[RecallPoint]
    remedy: str | None = None
    speeds: list[Speed] = field(default_factory=list)


@dataclass(frozen=True)
class MeasuredQueries:
    """Queries that recall is measured with.

    Attributes:
        blocks: Blocks of one query each, which exclude its document.
        neighbors: int64 [q, at least RECALL_AT], exact nearest ids, padded with -1.
        are_all_chunks: Whether the queries are all chunks, so that recall is not an estimate.
    """

    blocks: Sequence[QueryBlock]
    neighbors: np.ndarray
    are_all_chunks: bool = field(kw_only=True)


def depths_for(rerank: int, k: int) -> tuple[int, ...]:
    """Lists the numbers of candidates that tuning chooses from, ascending.

    Args:
        rerank: The largest number.
        k: Number of neighbors of a chunk. Recall is measured at 10: with few more candidates than k, the
            last of the k would be worse.

    Returns:
        The usual numbers below `rerank`, and `rerank`.
    """
    return (*(depth for depth in _DEPTHS if 5 * k <= depth < rerank), rerank)


def tune(
    finder: Finder, queries: MeasuredQueries, target: float, depths: Sequence[int], threads: int
) -> Tuned:
    """Chooses nprobe, the candidates to re-rank, and the breadth among centroids.

    It takes the least nprobe whose recall@10, as a one-sided 99% lower bound, reaches the target, and
    the fewest candidates that reach it with this nprobe; then the narrowest search among centroids. If
    no search reaches the target, it takes the best one within a quarter of the lists.

    Args:
        finder: The index and the embeddings; tuning replaces its settings.
        queries: Queries with their exact neighbors.
        target: Recall@10 to reach, 0 to 1.
        depths: Numbers of candidates to choose from, ascending.
        threads: Number of queries searched side by side; the result does not depend on it.

    Returns:
        The settings, the measured curve and, if the target is out of reach, a setting that would meet
        it.
    """
    searcher, blocks = finder.searcher, queries.blocks
    if not blocks:
        return Tuned(SearchSettings(searcher.lists, depths[-1]), 0, [])
    with ThreadPoolExecutor(threads) as pool:
        if not searcher.streams:
            # The first search reads the index in, and must not count as slow. In a streaming searcher
            # every search reads it.
            searcher.search(blocks[:1], SearchSettings(1, depths[-1]), pool)
        tuner = _Tuner(finder, queries, target, pool, threads)
        chosen = tuner.choose(depths)
        settings = tuner.narrowed(chosen) if chosen else tuner.best()
        remedy = None if chosen else tuner.remedy(depths)
        tuner.confirm(settings)
    return Tuned(settings, len(blocks), tuner.curve, remedy, tuner.speeds)


class _Tuner:
    """Measures settings on sampled queries, and keeps every point."""

    def __init__(
        self,
        finder: Finder,
        queries: MeasuredQueries,
        target: float,
        pool: Executor,
        threads: int,
    ) -> None:
        self.curve: list[RecallPoint] = []
        self.speeds: list[Speed] = []
        self._finder = finder
        self._searcher = finder.searcher
        self._blocks = queries.blocks
        self._are_all_chunks = queries.are_all_chunks
        self._target = target
        self._pool = pool
        self._threads = threads
        self._limit = min(finder.max_nprobe or self._searcher.lists, self._searcher.lists)
        self._usual = min(max(1, round(self._searcher.lists * _USUAL_SHARE)), self._limit)
        # The distances are computed as the search computes them, so that equal distances are equal.
        pairs = zip(queries.blocks, queries.neighbors, strict=True)
        distances = np.stack([self._exact(block, ids) for block, ids in pairs])
        vectors = np.concatenate([block.vectors for block in queries.blocks])
        self._distinct = first_of_equals(vectors)
        self._true_distances = np.sort(distances, axis=1)[:, :RECALL_AT]
        self._true_counts = np.isfinite(self._true_distances).sum(axis=1)

    def choose(self, depths: Sequence[int]) -> SearchSettings | None:
        """Chooses the settings that meet the target; None if the ladder has none."""
        for nprobe in self._ladder():
            if met := self._met(self._measure(nprobe, depths)):
                return met
        return None

    def narrowed(self, chosen: SearchSettings) -> SearchSettings:
        """Narrows the breadth among centroids to the least that still meets the target."""
        for ef_search in _EF_SEARCHES:
            if chosen.nprobe <= ef_search < (chosen.ef_search or 0):
                points = self._measure(chosen.nprobe, [chosen.rerank], ef_search)
                if met := self._met(points):
                    return met
        return chosen

    def best(self) -> SearchSettings:
        """Chooses the settings with the highest recall within the usual share of the lists."""
        usual = [point for point in self.curve if point.nprobe <= self._usual]
        return _settings(max(usual, key=lambda point: point.lower_bound))

    def remedy(self, depths: Sequence[int]) -> str:
        """Names a setting that would meet the target, measured if it can be."""
        lists = self._searcher.lists
        more_lists = "neighbors.max_nprobe: null" if self._limit < lists else ""
        if more_lists and self._met(self._measure(lists, depths)):
            return more_lists
        deeper = [depth for depth in _DEPTHS if depth > depths[-1]] or [2 * depths[-1]]
        if met := self._met(self._measure(lists, deeper)):
            more_candidates = f"neighbors.rerank: {met.rerank}"
            return f"{more_lists} with {more_candidates}" if more_lists else more_candidates
        return "an index.key with finer codes, such as SQ8"

    def confirm(self, settings: SearchSettings) -> None:
        """Measures the settings once more, in the way that neighbors are found."""
        finder = replace(self._finder, settings=settings)
        start = time.perf_counter()
        neighbors = finder.find(self._blocks, min(RECALL_AT, settings.rerank), self._pool)
        seconds = time.perf_counter() - start
        distances = np.concatenate([block_distances for _, block_distances in neighbors])
        self.curve.append(self._point(settings, self._hits(distances)))
        self._keep_speed(seconds)

    def _ladder(self) -> list[int]:
        """Lists the values of nprobe to try, ascending."""
        lists = self._searcher.lists
        shares = [max(1, round(lists * share)) for share in _SHARES_OF_LISTS]
        doubling = [1 << power for power in range(shares[0].bit_length())]
        return sorted({min(nprobe, self._limit) for nprobe in (*doubling, *shares)})

    def _measure(
        self, nprobe: int, depths: Sequence[int], ef_search: int | None = None
    ) -> list[RecallPoint]:
        """Measures one point for each depth, from one search with the greatest depth."""
        if self._searcher.has_graph and ef_search is None:
            ef_search = max(HNSW_EF_SEARCH, 2 * nprobe)
        settings = SearchSettings(nprobe, depths[-1], ef_search)
        start = time.perf_counter()
        results = self._searcher.search(self._blocks, settings, self._pool)
        candidates = [ids[0] for _, ids in results]
        distances = np.stack(list(self._pool.map(self._exact, self._blocks, candidates)))
        seconds = time.perf_counter() - start
        points = [
            self._point(replace(settings, rerank=depth), self._hits(distances[:, :depth]))
            for depth in depths
        ]
        self.curve += points
        self._keep_speed(seconds)
        return points

    def _keep_speed(self, seconds: float) -> None:
        """Adds the speed of the last point, whose candidates are the ones that were searched."""
        point, rate = self.curve[-1], len(self._blocks) / seconds
        self.speeds.append(
            Speed(
                point.nprobe,
                point.rerank,
                point.ef_search,
                point.recall,
                round(rate, 1),
                self._threads,
            )
        )

    def _exact(self, block: QueryBlock, ids: np.ndarray) -> np.ndarray:
        return Candidates(ids[None]).distances(block.vectors, self._finder.embeddings)[0]

    def _hits(self, distances: np.ndarray) -> np.ndarray:
        """Computes the share of each query's true neighbors among distances [q, n]: float64 [q].

        A neighbor at the distance of the last true one counts as true: equal chunks are equally
        near. The share is 1 for a query without true neighbors.
        """
        counts = self._true_counts
        last = np.maximum(counts - 1, 0)
        farthest = np.take_along_axis(self._true_distances, last[:, None], axis=1)
        hits = ((distances <= farthest) & np.isfinite(distances)).sum(axis=1)
        shares = np.minimum(hits, counts) / np.maximum(counts, 1)
        return np.where(counts == 0, 1.0, shares)

    def _point(self, settings: SearchSettings, hits: np.ndarray) -> RecallPoint:
        distinct_hits = hits[self._distinct]
        bound = lower_bound(distinct_hits, are_all=self._are_all_chunks)
        return RecallPoint(
            nprobe=settings.nprobe,
            recall=round(float(hits.mean()), 6),
            lower_bound=round(bound, 6),
            rerank=settings.rerank,
            ef_search=settings.ef_search,
            distinct_recall=round(float(distinct_hits.mean()), 6),
        )

    def _met(self, points: Sequence[RecallPoint]) -> SearchSettings | None:
        """Settings of the first point that meets the target, or has recall 1 in all lists.

        No sample can show more than a recall of 1.
        """
        settings = (
            _settings(point)
            for point in points
            if point.lower_bound >= self._target
            or (point.nprobe == self._searcher.lists and point.recall == 1.0)
        )
        return next(settings, None)


def _settings(point: RecallPoint) -> SearchSettings:
    return SearchSettings(point.nprobe, point.rerank, point.ef_search)
