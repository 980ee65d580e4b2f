"""What the stored neighbors say of the sources and of single chunks: who retrieves whom, hubs, copies."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retro_db.errors import DamagedFileError
from retro_db.join.labels import token_hashes
from retro_db.manifest.model import TRAIN
from retro_db.reader.database import Database
from retro_db.reader.rows import ids_in
from retro_db.search.passages import Passage, Passages

# Up to so many chunks all are read: some tens of megabytes, and seconds. Of more a sample is.
EXACT = 1_000_000
_BLOCK = 1 << 16
_WORST = 5


@dataclass(frozen=True)
class Hubs:
    """How often chunks are neighbors, N_k (Radovanovic et al. 2010).

    Attributes:
        sizes: N_k of each chunk, int64 [n]: of all that can be a neighbor if all lists of neighbors were
            read, otherwise of those that are in some list of the sample.
        worst: The chunks that are neighbors most often, from the most often.
        worst_sizes: Their N_k.
    """

    sizes: np.ndarray
    worst: list[Passage]
    worst_sizes: list[int]

    @property
    def skewness(self) -> float:
        """Third standardized moment of N_k; 0 if all are equal."""
        centered = self.sizes - self.sizes.mean() if len(self.sizes) else np.zeros(1)
        variance = float((centered**2).mean())
        return float((centered**3).mean()) / variance**1.5 if variance else 0.0


@dataclass(frozen=True)
class Retrieval:
    """The stored neighbors of some chunks, counted.

    Attributes:
        is_whole: Whether these are all chunks but the removed ones; otherwise they are a sample.
        sources: Names of the S sources.
        chunks: Chunks of each source, int64 [S].
        matrix: Neighbors of the chunks of each source that come from each source, int64 [S, S].
        at_zero: Chunks of each source whose nearest neighbor is at distance 0, int64 [S].
        copies: Chunks of each source with the tokens of a chunk with a smaller id, int64 [S]; None in a
            sample, which does not say.
        hubs: How often chunks are neighbors of these chunks.
    """

    is_whole: bool
    sources: list[str]
    chunks: np.ndarray
    matrix: np.ndarray
    at_zero: np.ndarray
    copies: np.ndarray | None
    hubs: Hubs


def measure_retrieval(database: Database, sample: np.ndarray) -> Retrieval:
    """Counts the neighbors of all chunks, or of a sample if there are more than `EXACT`.

    Args:
        database: The database.
        sample: Ids of the sample, int64 [n], ascending.

    Raises:
        DamagedFileError: A file is missing, or disagrees with the manifest.
    """
    is_whole = len(database) <= EXACT
    ids = np.arange(len(database)) if is_whole else sample
    ids = ids[~database.removals.has_chunks(ids)]
    owners = _Owners(database, is_whole=is_whole)
    count = len(owners.names)
    matrix = np.zeros(count * count, np.int64)
    at_zero = np.zeros(count, np.int64)
    sizes = np.zeros(len(database) if is_whole else 0, np.int64)
    listed, hashes = [], []
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        near, own = database.neighbors[block], owners.of(block)
        filled = near >= 0
        pairs = own[:, None] * count
        matrix += np.bincount(
            (pairs + np.zeros_like(near))[filled] + owners.of(near[filled]), minlength=count**2
        )
        nearest = database.neighbors.distances(block)[:, 0]
        at_zero += np.bincount(own[nearest == 0], minlength=count)
        if is_whole:
            sizes += np.bincount(near[filled], minlength=len(sizes))
            hashes.append(token_hashes(database.chunks[block], database.chunks.lengths(block)))
        else:
            listed.append(near[filled])
    return Retrieval(
        is_whole=is_whole,
        sources=owners.names,
        chunks=np.bincount(owners.of(ids), minlength=count),
        matrix=matrix.reshape(count, count),
        at_zero=at_zero,
        copies=_copies(hashes, owners.of(ids), count) if is_whole else None,
        hubs=_all_hubs(database, sizes) if is_whole else _sampled_hubs(database, listed),
    )


class _Owners:
    """The sources of chunks, as places in the list of sources.

    Args:
        database: The database.
        is_whole: Whether the sources of all documents are kept.
    """

    def __init__(self, database: Database, *, is_whole: bool) -> None:
        self._database = database
        self._is_whole = is_whole
        self.names = [source.name for source in database.manifest.sources]

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Sources of chunks: int64 [n]."""
        documents = self._database.chunks.documents(ids)
        if self._is_whole:
            return self._of_all[documents]
        rows, places = np.unique(documents, return_inverse=True)
        return self._encoded(self._database.documents_at(rows)["source"])[places]

    @functools.cached_property
    def _of_all(self) -> np.ndarray:
        parts = [self._encoded(table["source"]) for table in self._database.document_parts()]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _encoded(self, names: pa.ChunkedArray) -> np.ndarray:
        places = pc.index_in(names.cast(pa.string()), pa.array(self.names, pa.string()))
        if places.null_count:
            raise DamagedFileError(
                f"{self._database.folder.url}: documents: a source is not in the manifest; run verify"
            )
        return places.to_numpy().astype(np.int64)


def _copies(hashes: list[np.ndarray], owners: np.ndarray, count: int) -> np.ndarray:
    """Counts the chunks of each source whose hash an earlier chunk has."""
    together = np.concatenate([np.empty(0, np.uint64), *hashes])
    is_copy = np.ones(len(together), bool)
    is_copy[np.unique(together, return_index=True)[1]] = False
    return np.bincount(owners[is_copy], minlength=count)


def _all_hubs(database: Database, sizes: np.ndarray) -> Hubs:
    """Hubs among all chunks that can be neighbors.

    Args:
        database: The database.
        sizes: N_k of every chunk.
    """
    ids = np.flatnonzero(sizes)
    never = max(_possible_neighbors(database) - len(ids), 0)
    return _hubs(database, ids, sizes[ids], never)


def _sampled_hubs(database: Database, listed: list[np.ndarray]) -> Hubs:
    ids, sizes = np.unique(np.concatenate([np.empty(0, np.int64), *listed]), return_counts=True)
    return _hubs(database, ids, sizes, 0)


def _hubs(database: Database, ids: np.ndarray, sizes: np.ndarray, never: int) -> Hubs:
    worst = np.argsort(-sizes, kind="stable")[:_WORST]
    return Hubs(
        np.concatenate([sizes, np.zeros(never, np.int64)]),
        Passages(database).of(ids[worst]) if len(worst) else [],
        sizes[worst].tolist(),
    )


def _possible_neighbors(database: Database) -> int:
    """Counts the chunks of the index that were not removed since."""
    documents = database.documents_at(database.removed)
    training = documents.filter(pc.equal(documents["split"], TRAIN))
    ids = ids_in(training["first_chunk"].to_numpy(), training["chunk_count"].to_numpy())
    # Chunks without an embedding are not indexed; none of them has neighbors.
    has_neighbors = database.column("neighbors", "ids")[ids][:, 0] >= 0
    return database.manifest.counts.indexed_chunks - int(has_neighbors.sum())
