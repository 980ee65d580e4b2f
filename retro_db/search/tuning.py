"""Tuning: the narrowest search whose measured recall reaches the target."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from retro_db.hashing import fractions_of
from retro_db.index.part_keys import PartKeys
from retro_db.index.structure import faiss, keyed, widen
from retro_db.index.training import HNSW_EF_SEARCH
from retro_db.manifest.model import RecallPoint
from retro_db.search.finder import Finder
from retro_db.search.part_documents import Documents
from retro_db.search.reranking import Candidates
from retro_db.search.searching import QueryBlock, SearchSettings
from retro_db.store.gathering import Table
from retro_db.store.tables import TableFile
from retro_db.threads import use_faiss_threads

RECALL_AT = 10
# Expected by hashing; some less would still be the thousand that a bound of 0.3% needs.
QUERIES = 1200
_BLOCK_QUERIES = 256
# nprobe doubles from 1 up to a sixteenth of the lists, then grows by these shares.
_SHARES_OF_LISTS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
_USUAL_SHARE = 1 / 4
# Candidates to re-rank: up to the configured number, and beyond it in what is advised.
_DEPTHS = (50, 100, 200, 400, 800, 1600, 3200)
_EF_SEARCHES = (16, 32, 64, 128, 256, 512, 1024)
# One-sided 99% bound of a normal mean.
_Z99 = 2.326


@dataclass(frozen=True)
class Speed:
    """How fast one way of searching was, re-ranking included, on the machine that tried it.

    Attributes:
        nprobe: Lists visited.
        rerank: Candidates re-ranked.
        ef_search: Breadth among centroids; None where no graph joins them.
        recall: Recall@10 that was reached.
        queries_per_second: With `threads` queries searched side by side.
        threads: How many.
    """

    nprobe: int
    rerank: int
    ef_search: int | None
    recall: float
    queries_per_second: float
    threads: int


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        settings: How the index is searched.
        queries: Sampled queries that it was measured with.
        curve: Every measured point; the last one is that of `settings`.
        remedy: What would meet the target, as a setting; None where it is met.
        speeds: Of each way of searching that was tried; the last one is that of `settings`.
    """

    settings: SearchSettings
    queries: int
    curve: list[RecallPoint]
    remedy: str | None = None
    speeds: list[Speed] = field(default_factory=list)


def sample_rows(first_id: int, rows: int, chunks: int, seed: int) -> np.ndarray:
    """Rows of a part that are queries: at least 1,000 of all chunks, all where there are fewer.

    Args:
        first_id: Global id of the part's first chunk.
        rows: Of the part.
        chunks: Of all parts.
        seed: Decides which, by hashing ids.

    Returns:
        int64 [q].
    """
    share = min(1.0, QUERIES / max(chunks, 1))
    every = np.arange(rows)
    return every[fractions_of(every + first_id, seed + 1) < share]


def read_queries(
    rows: np.ndarray, embeddings: TableFile, documents: Documents
) -> tuple[np.ndarray, np.ndarray]:
    """The keys of some rows of a part that have one, and where their documents are.

    Args:
        rows: int64 [q].
        embeddings: The part's keys.
        documents: The part's documents.

    Returns:
        Keys float32 [q, d], and int64 [q, 2] the ids, first and end, of each one's own document.
    """
    keys = Table([embeddings]).column("vector")[rows]
    there = keyed(keys)
    held = np.searchsorted(documents.starts, rows[there], side="right") - 1
    own = np.array([documents.exclude[document][0] for document in held], np.int64)
    return widen(keys[there]), own.reshape(-1, 2)


def query_blocks(keys: np.ndarray, own: np.ndarray) -> list[QueryBlock]:
    """A block for each sampled query, which excludes its document."""
    return [
        QueryBlock(keys[[row]], ((first, end),)) for row, (first, end) in enumerate(own.tolist())
    ]


def exact_neighbors(
    keys: np.ndarray,
    own: np.ndarray,
    part: PartKeys,
    k: int,
    threads: int,
    report: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest indexed chunks of other documents in one part, streamed over its embeddings.

    Args:
        keys: Queries, float32 [q, d].
        own: int64 [q, 2], ids of each one's own document.
        part: Where to look.
        k: Neighbors wanted.
        threads: Blocks of queries compared side by side; the result does not depend on it.
        report: Told, now and again, how many more keys are done.

    Returns:
        Distances float32 [q, k], as exact as float32 matrix products are, ascending, and ids int64
        [q, k]; infinity and -1 where there are fewer.
    """
    distances = np.full((len(keys), k), np.inf, np.float32)
    ids = np.full((len(keys), k), -1, np.int64)

    def compare(first: int) -> None:
        use_faiss_threads(1)
        chosen = slice(first, first + _BLOCK_QUERIES)
        away = _distances_to(keys[chosen], own[chosen], vectors, numbers)
        here = np.broadcast_to(numbers, away.shape)
        best = merge_neighbors((distances[chosen], ids[chosen]), (away, here), k)
        distances[chosen], ids[chosen] = best

    with ThreadPoolExecutor(threads) as pool:
        step = part.embeddings.batch_rows
        for start in range(0, part.embeddings.rows, step):
            rows, found = part.read(start, start + step)
            numbers, vectors = rows + part.first_id, widen(found)
            list(pool.map(compare, range(0, len(keys), _BLOCK_QUERIES)))
            report(len(rows))
    return distances, ids


def _distances_to(
    keys: np.ndarray, own: np.ndarray, vectors: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """float32 [q, n], infinity where an id is of the query's own document; ids ascend."""
    distances = faiss.pairwise_distances(keys, vectors)
    for row, bounds in enumerate(own):
        first, end = np.searchsorted(ids, bounds)
        distances[row, first:end] = np.inf
    return distances


def merge_neighbors(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of two sets of distances and ids [q, n], ascending."""
    distances = np.concatenate([one[0], other[0]], axis=1)
    ids = np.concatenate([one[1], other[1]], axis=1)
    nearest = np.argpartition(distances, k - 1, axis=1)[:, :k]
    kept = np.take_along_axis(distances, nearest, axis=1)
    kept_ids = np.where(np.isinf(kept), -1, np.take_along_axis(ids, nearest, axis=1))
    order = np.argsort(kept, axis=1, kind="stable")
    return np.take_along_axis(kept, order, axis=1), np.take_along_axis(kept_ids, order, axis=1)


def depths_for(rerank: int, k: int) -> tuple[int, ...]:
    """Numbers of candidates that tuning chooses from, ascending.

    Args:
        rerank: The most.
        k: Neighbors of a chunk. Recall is measured at 10: with few more candidates than k, the last of
            the k would be worse.

    Returns:
        What is usual below `rerank`, and `rerank`.
    """
    return (*(depth for depth in _DEPTHS if 5 * k <= depth < rerank), rerank)


def tune(
    finder: Finder,
    blocks: Sequence[QueryBlock],
    near: np.ndarray,
    everything: bool,
    target: float,
    depths: Sequence[int],
    threads: int,
) -> Tuned:
    """Chooses nprobe, the candidates to re-rank, and the breadth among centroids.

    The least nprobe whose recall@10, as a one-sided 99% lower bound, reaches the target, and the fewest
    candidates that it does so with; then the narrowest search among centroids. Where nothing reaches
    it, what comes nearest within a quarter of the lists.

    Args:
        finder: The index and the keys; its settings are what tuning replaces.
        blocks: Queries, one each.
        near: int64 [q, at least RECALL_AT], their exact nearest, -1 where there are fewer.
        everything: Whether the queries are all there are, so that nothing is estimated.
        target: Recall@10 to reach, 0 to 1.
        depths: Candidates to choose from, ascending.
        threads: Queries searched side by side; the result does not depend on it.

    Returns:
        The settings, the measured curve and, where the target is out of reach, what would meet it.
    """
    searcher = finder.searcher
    if not blocks:
        return Tuned(SearchSettings(searcher.lists, depths[-1]), 0, [])
    with ThreadPoolExecutor(threads) as pool:
        if not searcher.streams:
            # The first search reads the index in: it must not count as slow. Else every one does.
            searcher.search(blocks[:1], SearchSettings(1, depths[-1]), pool)
        tuner = _Tuner(finder, blocks, near, everything, target, pool, threads)
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
        blocks: Sequence[QueryBlock],
        near: np.ndarray,
        everything: bool,
        target: float,
        pool: Executor,
        threads: int,
    ) -> None:
        self.curve: list[RecallPoint] = []
        self.speeds: list[Speed] = []
        self._finder = finder
        self._searcher = finder.searcher
        self._blocks = blocks
        self._everything = everything
        self._target = target
        self._pool = pool
        self._threads = threads
        self._limit = min(finder.max_nprobe or self._searcher.lists, self._searcher.lists)
        self._usual = min(max(1, round(self._searcher.lists * _USUAL_SHARE)), self._limit)
        # As the search computes them, so that equal distances are equal.
        true = [self._exact(block, ids) for block, ids in zip(blocks, near, strict=True)]
        self._truth = np.sort(np.stack(true), axis=1)[:, :RECALL_AT]
        self._wanted = np.isfinite(self._truth).sum(axis=1)

    def choose(self, depths: Sequence[int]) -> SearchSettings | None:
        """The settings that meet the target; None where none do."""
        for nprobe in self._ladder():
            if met := self._met(self._measure(nprobe, depths)):
                return met
        return None

    def narrowed(self, chosen: SearchSettings) -> SearchSettings:
        """The same with the least breadth among centroids that still meets the target."""
        for ef_search in _EF_SEARCHES:
            if chosen.nprobe <= ef_search < (chosen.ef_search or 0):
                points = self._measure(chosen.nprobe, [chosen.rerank], ef_search)
                if met := self._met(points):
                    return met
        return chosen

    def best(self) -> SearchSettings:
        """What reaches most within the usual share of the lists."""
        usual = [point for point in self.curve if point.nprobe <= self._usual]
        return _settings(max(usual, key=lambda point: point.lower_bound))

    def remedy(self, depths: Sequence[int]) -> str:
        """A setting that would meet the target, measured where it can be."""
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
        """Measures the settings once more, as neighbors are found with them."""
        finder = replace(self._finder, settings=settings)
        start = time.perf_counter()
        found = finder.find(self._blocks, min(RECALL_AT, settings.rerank), self._pool)
        seconds = time.perf_counter() - start
        distances = np.concatenate([distances for _, distances in found])
        self.curve.append(self._point(settings, self._hits(distances)))
        self._keep_speed(seconds)

    def _ladder(self) -> list[int]:
        """Numbers of lists to try, ascending."""
        lists = self._searcher.lists
        shares = [max(1, round(lists * share)) for share in _SHARES_OF_LISTS]
        doubling = [1 << power for power in range(shares[0].bit_length())]
        return sorted({min(nprobe, self._limit) for nprobe in (*doubling, *shares)})

    def _measure(
        self, nprobe: int, depths: Sequence[int], ef_search: int | None = None
    ) -> list[RecallPoint]:
        """One point for each depth, from one search of the greatest."""
        if self._searcher.has_graph and ef_search is None:
            ef_search = max(HNSW_EF_SEARCH, 2 * nprobe)
        settings = SearchSettings(nprobe, depths[-1], ef_search)
        start = time.perf_counter()
        found = self._searcher.search(self._blocks, settings, self._pool)
        candidates = [ids[0] for _, ids in found]
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
        """Of the last point: that of the most candidates, which is what was searched."""
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
        return Candidates(ids[None]).distances(block.vectors, self._finder.keys)[0]

    def _hits(self, distances: np.ndarray) -> np.ndarray:
        """Share of each query's true neighbors among distances [q, n]: float64 [q].

        A neighbor at the distance of the last true one counts as true: equal chunks are equally
        near. 1 where there is no true neighbor.
        """
        last = np.maximum(self._wanted - 1, 0)
        farthest = np.take_along_axis(self._truth, last[:, None], axis=1)
        found = ((distances <= farthest) & np.isfinite(distances)).sum(axis=1)
        shares = np.minimum(found, self._wanted) / np.maximum(self._wanted, 1)
        return np.where(self._wanted == 0, 1.0, shares)

    def _point(self, settings: SearchSettings, hits: np.ndarray) -> RecallPoint:
        recall = bound = float(hits.mean())
        if not self._everything:
            # One imagined failure: else a sample without any would leave nothing uncertain.
            hits = np.append(hits, 0.0)
            bound = float(hits.mean() - _Z99 * hits.std() / np.sqrt(len(hits)))
        return RecallPoint(
            nprobe=settings.nprobe,
            recall=round(recall, 6),
            lower_bound=round(bound, 6),
            rerank=settings.rerank,
            ef_search=settings.ef_search,
        )

    def _met(self, points: Sequence[RecallPoint]) -> SearchSettings | None:
        """The first that meets the target, or finds all in all lists: no sample shows more."""
        met = (
            _settings(point)
            for point in points
            if point.lower_bound >= self._target
            or (point.nprobe == self._searcher.lists and point.recall == 1.0)
        )
        return next(met, None)


def _settings(point: RecallPoint) -> SearchSettings:
    return SearchSettings(point.nprobe, point.rerank, point.ef_search)
