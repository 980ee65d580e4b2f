"""Re-ranking: the exact distances of candidates, and the nearest of them."""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
import pyarrow as pa

from retro_db.index.structure import faiss, widen


class Keys(Protocol):
    """Keys by global chunk id, for exact distances."""

    def __getitem__(self, ids: np.ndarray, /) -> np.ndarray:
        """Float16 or float32 [n, d], for int64 [n]."""


# More keys at a time would leave the caches. Where queries share candidates, halves would read most
# of them twice; there memory is the limit.
_MOST_KEYS = 4096
_MOST_SHARED_KEYS = 65_536
_SCRATCH = threading.local()


def _scratch(dimension: int, keys: np.ndarray) -> faiss.IndexFlatL2:
    """A flat index of keys [n, d], whose memory each thread uses again: new pages take longer."""
    flat = getattr(_SCRATCH, "flat", None)
    if flat is None or flat.d != dimension:
        flat = _SCRATCH.flat = faiss.IndexFlatL2(dimension)
    flat.reset()
    flat.codes.resize(4 * keys.size)
    flat.ntotal = len(keys)
    widen(keys, faiss.rev_swig_ptr(flat.get_xb(), keys.size).reshape(keys.shape))
    return flat


class Candidates:
    """Candidates of some queries, each different id known once.

    Args:
        ids: int64 [n, c], -1 where there is none, no id twice in a row.

    Attributes:
        ids: The same.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids
        # Faster than sorting all of them.
        encoded = pa.array(ids.reshape(-1)).dictionary_encode()
        found = encoded.dictionary.to_numpy()
        order = np.argsort(found)
        ranks = np.empty(len(found), np.int64)
        ranks[order] = np.arange(len(found))
        self._unique = found[order]
        self._ranks = ranks[encoded.indices.to_numpy()].reshape(ids.shape)

    def distances(self, queries: np.ndarray, keys: Keys) -> np.ndarray:
        """Squared L2 distances to the stored keys.

        Args:
            queries: float32 [n, d].
            keys: Of all chunks.

        Returns:
            float32 [n, c], infinity where there is no candidate.
        """
        shared = 2 * len(self._unique) < self.ids.size
        most = _MOST_SHARED_KEYS if shared else _MOST_KEYS
        if len(self._unique) > most and len(self.ids) > 1:
            half = len(self.ids) // 2
            parts = slice(None, half), slice(half, None)
            pieces = [Candidates(self.ids[p]).distances(queries[p], keys) for p in parts]
            return np.concatenate(pieces)
        missing = int(np.searchsorted(self._unique, 0))
        distances = np.full(self.ids.shape, np.inf, np.float32)
        if len(self._unique) > missing:
            flat = _scratch(queries.shape[1], keys[self._unique[missing:]])
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
        """The k nearest.

        Args:
            distances: float32 [n, c], not negative; infinity marks what is not wanted.
            k: How many.

        Returns:
            ids int64 [n, k] by ascending (distance, id), padded with -1, and their distances float32
            [n, k], padded with infinity.
        """
        # Bits of a float that is not negative ascend with it: one integer holds what decides.
        bits = np.ascontiguousarray(distances).view(np.uint32).astype(np.uint64)
        order = (bits << np.uint64(32)) | self._ranks.astype(np.uint64)
        if order.shape[1] > k:
            order = np.partition(order, k - 1, axis=1)[:, :k]
        order.sort(axis=1)
        ids = self._unique[(order & np.uint64(0xFFFFFFFF)).astype(np.int64)]
        nearest = (order >> np.uint64(32)).astype(np.uint32).view(np.float32)
        short = k - order.shape[1]
        padding = ((0, 0), (0, max(short, 0)))
        nearest = np.pad(nearest, padding, constant_values=np.inf)
        ids = np.pad(ids, padding, constant_values=-1)
        return np.where(np.isinf(nearest), -1, ids), nearest
