"""Finds nearest chunks: candidates by their codes, then exact distances."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from retro_db.search.reranking import Candidates, Keys
from retro_db.search.searching import QueryBlock, Searcher, SearchSettings
from retro_db.store.gathering import ColumnReader
from retro_db.threads import use_faiss_threads

# Chunks repeated more often than this many times the usual candidates are not looked behind.
_DEEPEST = 16
# Equal chunks have equal keys but for the last bits, which their batch mates decide: squared, as a
# share of the key's own length.
_EQUAL_KEYS = 1e-3


@dataclass(frozen=True)
class ChunkTokens:
    """Tokens and lengths of chunks by id, by which duplicates are known."""

    tokens: ColumnReader
    lengths: ColumnReader

    def __getitem__(self, ids: np.ndarray | slice) -> np.ndarray:
        """Uint [n, m + 1]: m tokens and the length."""
        return np.concatenate([self.tokens[ids], self.lengths[ids][:, None]], axis=1)


@dataclass(frozen=True)
class Finder:
    """Finds the nearest chunks: candidates by their codes, then exact distances.

    Attributes:
        searcher: The index.
        keys: Of all chunks.
        settings: How widely the index is searched.
        max_nprobe: Lists visited for a query that finds fewer than k; None for all.
        tokens: Of all chunks, for blocks whose duplicates are passed over.
    """

    searcher: Searcher
    keys: Keys
    settings: SearchSettings
    max_nprobe: int | None = None
    tokens: ChunkTokens | None = None

    def find(
        self, blocks: Sequence[QueryBlock], k: int, pool: Executor
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k nearest chunks of every query, outside its block's excluded ranges.

        A row that stays short of k is searched again with twice the lists, up to `max_nprobe`; where
        copies of it took most candidates' places, with twice the candidates.

        Args:
            blocks: Queries.
            k: Neighbors wanted, at most `settings.rerank`.
            pool: Threads; the result does not depend on them.

        Returns:
            For each block, ids int64 [n, k] by ascending (distance, id), padded with -1, and squared
            L2 distances float32 [n, k], padded with infinity.
        """
        settings = self.settings
        found = self._search(blocks, k, settings, pool)
        while True:
            short = [np.flatnonzero(one.short | one.lacking) for one in found]
            wider = self._widened(settings, found)
            if wider is None:
                return [(one.ids, one.distances) for one in found]
            settings = wider
            again = [number for number, rows in enumerate(short) if len(rows)]
            more = self._search([blocks[i].take(short[i]) for i in again], k, settings, pool)
            for number, better in zip(again, more, strict=True):
                found[number].replace(short[number], better)

    def _widened(self, settings: SearchSettings, found: Sequence[_Found]) -> SearchSettings | None:
        """The settings to search the lacking rows with, or None where that would not help."""
        limit = min(self.max_nprobe or self.searcher.lists, self.searcher.lists)
        nprobe, rerank = settings.nprobe, settings.rerank
        if any((one.short & one.exhausted).any() for one in found):
            nprobe = max(nprobe, min(2 * nprobe, limit))
        if any((one.lacking & ~one.exhausted).any() for one in found):
            rerank = max(rerank, min(2 * rerank, _DEEPEST * self.settings.rerank))
        wider = dataclasses.replace(settings, nprobe=nprobe, rerank=rerank)
        return None if wider == settings else wider

    def _search(
        self, blocks: Sequence[QueryBlock], k: int, settings: SearchSettings, pool: Executor
    ) -> list[_Found]:
        enough = max(k, self.settings.rerank // 2)

        def rerank(block: QueryBlock, ids: np.ndarray) -> _Found:
            use_faiss_threads(1)
            candidates = Candidates(ids)
            distances = candidates.distances(block.vectors, self.keys)
            lacking = np.zeros(len(ids), bool)
            if block.tokens is not None and self.tokens is not None:
                _pass_over_duplicates(block, ids, distances, self.tokens)
                lacking = np.isfinite(distances).sum(axis=1) < enough
            return _Found(*candidates.nearest(distances, k), (ids < 0).any(axis=1), lacking)

        found = self.searcher.search(blocks, settings, pool)
        return list(pool.map(rerank, blocks, [ids for _, ids in found]))


@dataclass(frozen=True)
class _Found:
    """A block's neighbors, and which queries may have better ones: bool [n] each.

    `exhausted`: the visited lists held no more candidates. `lacking`: copies of the query took the
    places of more than half of them.
    """

    ids: np.ndarray
    distances: np.ndarray
    exhausted: np.ndarray
    lacking: np.ndarray

    @property
    def short(self) -> np.ndarray:
        """Whether a query has fewer than k neighbors."""
        return self.ids[:, -1] < 0

    def replace(self, rows: np.ndarray, better: _Found) -> None:
        """Takes some rows from another search."""
        self.ids[rows] = better.ids
        self.distances[rows] = better.distances
        self.exhausted[rows] = better.exhausted
        self.lacking[rows] = better.lacking


def _pass_over_duplicates(
    block: QueryBlock, candidates: np.ndarray, distances: np.ndarray, tokens: ChunkTokens
) -> None:
    """Sets the distance of candidates with the query's own tokens to infinity."""
    near = _EQUAL_KEYS * (block.vectors**2).sum(axis=1)
    rows, columns = np.nonzero(distances <= near[:, None])
    if len(rows) and block.tokens is not None:
        same = (tokens[candidates[rows, columns]] == block.tokens[rows]).all(axis=1)
        distances[rows[same], columns[same]] = np.inf
