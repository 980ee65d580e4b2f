"""The nearest chunks in the lists that a query visits, found by comparing it with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.index.structure import faiss, widen
from retro_db.join.nearest import exact_distances, nearest
from retro_db.join.router import Router
from retro_db.search.finder import ChunkTokens
from retro_db.search.ground_truth import merge_neighbors
from retro_db.search.searching import IdRanges, QueryBlock
from retro_db.store.gathering import ColumnReader
from retro_db.threads import use_faiss_threads
from retro_db.verify.index_lists import Partitions

# Products sort candidates by float32 sums; twice as many as are wanted are compared exactly.
_SPARE = 2
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class VisitedLists:
    """The lists of an index, compared exactly with queries that visit them.

    Attributes:
        partitions: Partitions of the index.
        router: Router of the trained index.
        embeddings: Embeddings of all chunks.
        k: Number of neighbors.
        nprobe: Lists that a query visits.
        limit: Most lists that a query visits that has found fewer than k.
        removed: int64 [r], ascending ids of chunks that are no neighbors.
        tokens: Tokens of all chunks, if copies are passed over.
    """

    partitions: Partitions
    router: Router
    embeddings: ColumnReader
    k: int
    nprobe: int
    limit: int
    removed: np.ndarray
    tokens: ChunkTokens | None = None

    def agree(
        self, blocks: Sequence[QueryBlock], ids: np.ndarray, distances: np.ndarray
    ) -> np.ndarray:
        """Says which stored neighbors are the nearest chunks in the lists that their query visits.

        Args:
            blocks: Queries.
            ids: int64 [n, k], stored neighbors of all queries in order.
            distances: float32 [n, k], their stored distances.

        Returns:
            bool [n].
        """
        use_faiss_threads(1)
        queries = _Queries.of(blocks)
        near, nprobe = self._nearest(queries, self.nprobe)
        _, fresh = self._exact(queries, near)
        for row in np.flatnonzero(~_same(distances, fresh)):
            # A chunk may lie in another of two lists that are as near: the router decides.
            visited = self.router.nearest(queries.vectors[[row]], int(nprobe[row]))[0]
            candidates = np.unique(np.concatenate([ids[row], near[row]]))
            candidates = candidates[(candidates >= 0) & ~np.isin(candidates, self.removed)]
            candidates = candidates[
                self._may_be_near(queries, row, candidates, self._tokens_of(candidates))
            ]
            homes = self.router.nearest(widen(self.embeddings[candidates]), 1)[:, 0]
            query = _Queries.of([queries.block(row)])
            fresh[row] = self._exact(query, candidates[None, np.isin(homes, visited)])[1][0]
        return _same(distances, fresh)

    def _nearest(self, queries: _Queries, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """Candidates int64 [n, 2 k] padded with -1, and the lists that each query visited, int64 [n]."""
        count = len(queries.vectors)
        best = (
            np.full((count, _SPARE * self.k), np.inf, np.float32),
            np.full((count, _SPARE * self.k), -1, np.int64),
        )
        visited = np.full(count, nprobe)
        rows = np.arange(count)
        while len(rows):
            lists = self.router.nearest(queries.vectors[rows], nprobe)
            best[0][rows], best[1][rows] = np.inf, -1
            for number in np.unique(lists).tolist():
                visitors = rows[(lists == number).any(axis=1)]
                self._visit(queries, visitors, number, best)
            visited[rows] = nprobe
            rows = rows[best[1][rows, self.k - 1] < 0]
            if nprobe >= self.limit:
                break
            nprobe = min(2 * nprobe, self.limit)
        return best[1], visited

    def _visit(
        self, queries: _Queries, rows: np.ndarray, number: int, best: tuple[np.ndarray, np.ndarray]
    ) -> None:
        """Compares queries with one list."""
        ids = self.partitions.ids(number)
        ids = ids[ids < len(self.embeddings)]
        ids = ids[~np.isin(ids, self.removed)]
        if not len(ids):
            return
        distances = faiss.pairwise_distances(queries.vectors[rows], widen(self.embeddings[ids]))
        tokens = self._tokens_of(ids)
        for row, query in enumerate(rows.tolist()):
            distances[row, ~self._may_be_near(queries, query, ids, tokens)] = np.inf
        repeated = np.broadcast_to(ids, distances.shape)
        merged = merge_neighbors(
            (best[0][rows], best[1][rows]), (distances, repeated), _SPARE * self.k
        )
        best[0][rows], best[1][rows] = merged

    def _tokens_of(self, ids: np.ndarray) -> np.ndarray | None:
        """Tokens of chunks, if copies are passed over."""
        return None if self.tokens is None else self.tokens[ids]

    def _may_be_near(
        self, queries: _Queries, row: int, ids: np.ndarray, tokens: np.ndarray | None
    ) -> np.ndarray:
        """Which chunks, with their tokens, may be a query's neighbors: bool [n]."""
        allowed = np.ones(len(ids), bool)
        for first, end in queries.exclude[row]:
            allowed &= (ids < first) | (ids >= end)
        if tokens is not None and queries.tokens is not None:
            allowed &= (tokens != queries.tokens[row]).any(axis=1)
        return allowed

    def _exact(self, queries: _Queries, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of candidates by exact distance, as `nearest` returns them."""
        rows, columns = np.nonzero(ids >= 0)
        distinct, keys = np.unique(ids[rows, columns], return_inverse=True)
        distances = np.full(ids.shape, np.inf, np.float32)
        if len(distinct):
            distances[rows, columns] = exact_distances(
                queries.vectors, rows, self.embeddings[distinct], keys
            )
        return nearest(ids, distances, self.k)


@dataclass(frozen=True)
class _Queries:
    """The queries of all blocks, row by row."""

    vectors: np.ndarray
    exclude: list[IdRanges]
    tokens: np.ndarray | None

    @classmethod
    def of(cls, blocks: Sequence[QueryBlock]) -> _Queries:
        tokens = [block.tokens for block in blocks if block.tokens is not None]
        return cls(
            np.concatenate([block.vectors for block in blocks]),
            [block.exclude for block in blocks for _ in block.vectors],
            np.concatenate(tokens) if tokens else None,
        )

    def block(self, row: int) -> QueryBlock:
        tokens = None if self.tokens is None else self.tokens[[row]]
        return QueryBlock(self.vectors[[row]], self.exclude[row], tokens)


def _same(stored: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """Which rows of distances agree; equally near ids may be exchanged."""
    return np.isclose(stored, fresh, rtol=_TOLERANCE, atol=0).all(axis=1)
