"""Finds nearest chunks: candidates by their codes, then exact distances."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from retro_db.search.reranking import Candidates, Embeddings
from retro_db.search.searching import QueryBlock, Searcher, SearchSettings, map_blocks
from retro_db.store.gathering import ColumnReader
from retro_db.threads import use_faiss_threads

# A search for chunks behind a query's copies takes at most this multiple of the usual candidates.
_DEEPEST = 16
# Equal chunks have equal embeddings but for the last bits, which their batch mates decide: the squared
# distance below which two may be equal, as a share of the embedding's squared length.
_EQUAL_EMBEDDINGS = 1e-3


@dataclass(frozen=True)
class ChunkTokens:
    """Tokens and lengths of chunks by id, which show duplicates."""

    tokens: ColumnReader
    lengths: ColumnReader

    def __getitem__(self, ids: np.ndarray | slice) -> np.ndarray:
        """Reads uint [n, m + 1]: m tokens and the length of each chunk."""
        return np.concatenate([self.tokens[ids], self.lengths[ids][:, None]], axis=1)


@dataclass(frozen=True)
class Finder:
    """Finds the nearest chunks: candidates by their codes, then exact distances.

    Attributes:
        searcher: Searcher of the index.
        embeddings: Embeddings of all chunks.
        settings: How widely the index is searched.
        max_nprobe: Most lists visited for a query that finds fewer than k; None for all lists.
        tokens: Tokens of all chunks, for blocks whose duplicates are passed over.
    """

    searcher: Searcher
    embeddings: Embeddings
    settings: SearchSettings
    max_nprobe: int | None = None
    tokens: ChunkTokens | None = None

    def find(
        self, blocks: Sequence[QueryBlock], k: int, pool: Executor
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Finds the k nearest chunks of every query, outside its block's excluded ranges.

        A row that stays short of k is searched again with twice the lists, up to `max_nprobe`; a row
        whose copies took most candidates' places, with twice the candidates.

        Args:
            blocks: Queries.
            k: Number of neighbors, at most `settings.rerank`.
            pool: Threads; the result does not depend on them.

        Returns:
            For each block, ids int64 [n, k] by ascending (distance, id), padded with -1, and squared
            L2 distances float32 [n, k], padded with infinity.
        """
        settings = self.settings
        answers = self._search(blocks, k, settings, pool)
        while True:
            short = [np.flatnonzero(answer.short | answer.lacking) for answer in answers]
            is_complete = not any(len(rows) for rows in short)
            wider = None if is_complete else self._widened(settings, answers)
            if wider is None:
                return [(answer.ids, answer.distances) for answer in answers]
            settings = wider
            again = [number for number, rows in enumerate(short) if len(rows)]
            more = self._search([blocks[i].take(short[i]) for i in again], k, settings, pool)
            for number, better in zip(again, more, strict=True):
                answers[number].replace(short[number], better)

    def _widened(
        self, settings: SearchSettings, answers: Sequence[_Answer]
    ) -> SearchSettings | None:
        """Widens the settings for the lacking rows; None if a wider search would not help."""
        limit = min(self.max_nprobe or self.searcher.lists, self.searcher.lists)
        nprobe, rerank = settings.nprobe, settings.rerank
        if any((answer.short & answer.exhausted).any() for answer in answers):
            nprobe = max(nprobe, min(2 * nprobe, limit))
        if any((answer.lacking & ~answer.exhausted).any() for answer in answers):
            rerank = max(rerank, min(2 * rerank, _DEEPEST * self.settings.rerank))
        wider = dataclasses.replace(settings, nprobe=nprobe, rerank=rerank)
        return None if wider == settings else wider

    def _search(
        self, blocks: Sequence[QueryBlock], k: int, settings: SearchSettings, pool: Executor
    ) -> list[_Answer]:
        enough = max(k, self.settings.rerank // 2)

        def rerank(block: QueryBlock, ids: np.ndarray) -> _Answer:
            use_faiss_threads(1)
            candidates = Candidates(ids)
            distances = candidates.distances(block.vectors, self.embeddings)
            lacking = np.zeros(len(ids), bool)
            if block.tokens is not None and self.tokens is not None:
                _pass_over_duplicates(block, ids, distances, self.tokens)
                lacking = np.isfinite(distances).sum(axis=1) < enough
            return _Answer(*candidates.nearest(distances, k), (ids < 0).any(axis=1), lacking)

        candidate_ids = [ids for _, ids in self.searcher.search(blocks, settings, pool)]
        return list(map_blocks(pool, rerank, blocks, candidate_ids))


@dataclass(frozen=True)
class _Answer:
    """A block's neighbors, and which queries may have better ones.

    Attributes:
        ids: int64 [n, k], padded with -1.
        distances: float32 [n, k], padded with infinity.
        exhausted: bool [n], whether the visited lists held fewer candidates than were wanted.
        lacking: bool [n], whether copies of the query took the places of more than half of the
            candidates.
    """

    ids: np.ndarray
    distances: np.ndarray
    exhausted: np.ndarray
    lacking: np.ndarray

    @property
    def short(self) -> np.ndarray:
        """Which queries have fewer than k neighbors: bool [n]."""
        return self.ids[:, -1] < 0

    def replace(self, rows: np.ndarray, better: _Answer) -> None:
        """Replaces some rows by the answer of a wider search."""
        self.ids[rows] = better.ids
        self.distances[rows] = better.distances
        self.exhausted[rows] = better.exhausted
        self.lacking[rows] = better.lacking


def _pass_over_duplicates(
    block: QueryBlock, candidates: np.ndarray, distances: np.ndarray, tokens: ChunkTokens
) -> None:
    """Sets the distance of candidates with the query's own tokens to infinity."""
    bounds = _EQUAL_EMBEDDINGS * (block.vectors**2).sum(axis=1)
    rows, columns = np.nonzero(distances <= bounds[:, None])
    if len(rows) and block.tokens is not None:
        same = (tokens[candidates[rows, columns]] == block.tokens[rows]).all(axis=1)
        distances[rows[same], columns[same]] = np.inf
