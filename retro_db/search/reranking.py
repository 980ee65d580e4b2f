"""Re-ranking: the exact distances of candidates, and the nearest of them."""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
import pyarrow as pa

from retro_db.index.structure import faiss, widen


class Embeddings(Protocol):
    """Embeddings by global chunk id, for exact distances."""

    def __getitem__(self, ids: np.ndarray, /) -> np.ndarray:
        """Reads the embeddings of chunks: int64 [n] to float16 or float32 [n, d]."""


# More embeddings at a time would leave the caches. Where queries share candidates, halves would read
# most of them twice; there memory is the limit.
_MOST_EMBEDDINGS = 4096
_MOST_SHARED_EMBEDDINGS = 65_536
_SCRATCH = threading.local()


def _scratch(dimension: int, embeddings: np.ndarray) -> faiss.IndexFlatL2:
    """Fills a flat index with embeddings [n, d]; each thread reuses its memory: new pages take longer."""
    flat, memory = getattr(_SCRATCH, "flat", (None, np.empty(0, np.float32)))
    if flat is None or flat.d != dimension or len(memory) < embeddings.size:
        flat = faiss.IndexFlatL2(dimension)
        flat.codes.resize(4 * embeddings.size)
        memory = faiss.rev_swig_ptr(flat.get_xb(), embeddings.size)
        _SCRATCH.flat = flat, memory
    flat.ntotal = len(embeddings)
    widen(embeddings, memory[: embeddings.size].reshape(embeddings.shape))
    return flat


class Candidates:
    """Candidates of some queries, whose distinct ids are read once.

    Args:
        ids: int64 [n, c], padded with -1, no id twice in a row.

    Attributes:
        ids: The same ids.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids
        flat = ids.reshape(-1)
        distinct, indices = flat, np.arange(len(flat))
        if len(ids) > 1:
            # Faster than sorting all ids.
            encoded = pa.array(flat).dictionary_encode()
            distinct, indices = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
        order = np.argsort(distinct)
        ranks = np.empty(len(distinct), np.int64)
        ranks[order] = np.arange(len(distinct))
        self._unique = distinct[order]
        self._ranks = ranks[indices].reshape(ids.shape)

    def distances(self, queries: np.ndarray, embeddings: Embeddings) -> np.ndarray:
        """Computes squared L2 distances to the stored embeddings.

        Args:
            queries: float32 [n, d].
            embeddings: Embeddings of all chunks.

        Returns:
            float32 [n, c], infinity in the padding.
        """
        shared = 2 * len(self._unique) < self.ids.size
        most = _MOST_SHARED_EMBEDDINGS if shared else _MOST_EMBEDDINGS
        step = max(1, most // self.ids.shape[1])
        if len(self._unique) > most and len(self.ids) > step:
            starts = range(0, len(self.ids), step)
            pieces = [slice(start, start + step) for start in starts]
            return np.concatenate(
                [Candidates(self.ids[rows]).distances(queries[rows], embeddings) for rows in pieces]
            )
        missing = int(np.searchsorted(self._unique, 0))
        distances = np.full(self.ids.shape, np.inf, np.float32)
        if len(self._unique) > missing:
            flat = _scratch(queries.shape[1], embeddings[self._unique[missing:]])
            x, labels = np.ascontiguousarray(queries), self._ranks - missing
            flat.compute_distance_subset(
                len(x),
                faiss.swig_ptr(x),
                labels.shape[1],
                faiss.swig_ptr(distances),
                faiss.swig_ptr(labels),
            )
            distances[self.ids < 0] = np.inf
        return distances

    def nearest(self, distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Selects the k nearest candidates.

        Args:
            distances: float32 [n, c], not negative; infinity for candidates that are passed over.
            k: Number of neighbors.

        Returns:
            ids int64 [n, k] by ascending (distance, id), padded with -1, and their distances float32
            [n, k], padded with infinity.
        """
        # Bits of a float that is not negative ascend with it: one integer orders by (distance, id).
        bits = np.ascontiguousarray(distances).view(np.uint32).astype(np.uint64)
        order = (bits << np.uint64(32)) | self._ranks.astype(np.uint64)
        if order.shape[1] > k:
            order = np.partition(order, k - 1, axis=1)[:, :k]
        order.sort(axis=1)
        ids = self._unique[(order & np.uint64(0xFFFFFFFF)).astype(np.int64)]
        nearest = (order >> np.uint64(32)).astype(np.uint32).view(np.float32)
        if order.shape[1] < k:
            padding = ((0, 0), (0, k - order.shape[1]))
            nearest = np.pad(nearest, padding, constant_values=np.inf)
            ids = np.pad(ids, padding, constant_values=-1)
        return np.where(np.isinf(nearest), -1, ids), nearest
