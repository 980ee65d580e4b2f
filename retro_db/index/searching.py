"""Searching: all partitions as one index under the template, then exact distances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retro_db.index.keys import parse_key
from retro_db.index.structure import faiss, inverted_file, read_index
from retro_db.store.tables import ColumnReader
from retro_db.threads import use_faiss_threads

# Tables for residual codes are the template's business: partitions would each compute their own.
_MAPPED = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE


class Searcher:
    """The partitions of an index, memory-mapped and searched as one.

    4-bit codes of a FastScan key are repacked in memory. Safe to call from several threads.

    Args:
        template: The trained index's file.
        partitions: Files of all lists, in order.
        key: The index key.
        nprobe: Lists visited for a query.
        max_nprobe: Lists visited for a query that has too few candidates; all by default.

    Raises:
        DamagedFileError: A file cannot be read.
    """

    def __init__(
        self,
        template: Path,
        partitions: Sequence[Path],
        key: str,
        nprobe: int,
        max_nprobe: int | None = None,
    ) -> None:
        self._index = read_index(template)
        ivf = inverted_file(self._index)
        self.lists = int(ivf.nlist)
        self.nprobe = nprobe
        self.max_nprobe = min(max_nprobe or self.lists, self.lists)
        # Faiss keeps pointers into the mapped partitions: they live as long as this object.
        self._partitions = [read_index(path, _MAPPED) for path in partitions]
        self._join(ivf)
        if parse_key(key, self._index.d).fast_scan:
            self._become_fast_scan(ivf)
        self._wrapped = isinstance(self._index, faiss.IndexPreTransform)

    def _join(self, ivf: faiss.IndexIVF) -> None:
        pointers = faiss.InvertedListsPtrVector()
        for partition in self._partitions:
            pointers.push_back(inverted_file(partition).invlists)
        self._joined = faiss.VStackInvertedLists(pointers.size(), pointers.data())
        # Faiss crashes in turning an index into FastScan that does not own its lists.
        ivf.replace_invlists(self._joined, True)
        self._joined.this.disown()
        ivf.ntotal = sum(inverted_file(partition).ntotal for partition in self._partitions)
        self._index.ntotal = ivf.ntotal

    def _become_fast_scan(self, ivf: faiss.IndexIVFPQ) -> None:
        """Replaces plain 4-bit codes by FastScan's layout."""
        self._plain, self._fast = self._index, faiss.IndexIVFPQFastScan(ivf)
        if isinstance(self._index, faiss.IndexPreTransform):
            # The wrapper frees what it holds; the plain index, whose quantizer is shared, stays.
            self._index.index = self._fast
            self._fast.this.disown()
        else:
            self._index = self._fast

    @property
    def entries(self) -> int:
        """Chunks in the index."""
        return int(self._index.ntotal)

    def search(
        self,
        queries: np.ndarray,
        count: int,
        exclude: tuple[int, int] | None = None,
        nprobe: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest entries by their codes, as one index that holds all of them finds them.

        Args:
            queries: float32 [n, d].
            count: Candidates of a query.
            exclude: Ids first to end - 1 are passed over, exactly: no over-fetching.
            nprobe: Instead of the searcher's own.

        Returns:
            Approximate distances float32 [n, count] and ids int64 [n, count]; -1 where the visited
            lists hold fewer.
        """
        # One thread a call: FastScan breaks ties otherwise with another number of threads.
        use_faiss_threads(1)
        parameters = faiss.SearchParametersIVF(nprobe=min(nprobe or self.nprobe, self.lists))
        if exclude is not None:
            within = faiss.IDSelectorRange(*exclude)
            selector = faiss.IDSelectorNot(within)
            parameters.sel = selector
        if self._wrapped:
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        return self._index.search(queries, count, params=parameters)


def nearest(
    queries: np.ndarray, candidates: np.ndarray, keys: ColumnReader, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Re-ranks candidates by exact distance to the stored keys.

    Args:
        queries: float32 [n, d].
        candidates: int64 [n, c], -1 where there is none, no id twice in a row.
        keys: The embeddings of all chunks.
        k: Neighbors wanted.

    Returns:
        ids int64 [n, k] by ascending (distance, id), padded with -1, and squared L2 distances
        float32 [n, k], padded with infinity.
    """
    count = candidates.shape[1]
    unique, local = np.unique(candidates, return_inverse=True)
    local = local.reshape(candidates.shape)
    missing = int(unique.size > 0 and unique[0] == -1)
    labels = np.ascontiguousarray(local - missing, dtype=np.int64)
    distances = np.full(candidates.shape, np.inf, np.float32)
    if unique.size > missing:
        flat = faiss.IndexFlatL2(queries.shape[1])
        flat.add(keys[unique[missing:]].astype(np.float32))
        x = np.ascontiguousarray(queries)
        flat.compute_distance_subset(
            len(x), faiss.swig_ptr(x), count, faiss.swig_ptr(distances), faiss.swig_ptr(labels)
        )
    distances[candidates < 0] = np.inf
    order = np.lexsort((candidates, distances), axis=1)[:, :k]
    ids = np.take_along_axis(candidates, order, axis=1)
    distances = np.take_along_axis(distances, order, axis=1)
    return _padded(ids, k, -1), _padded(distances, k, np.inf)


def _padded(array: np.ndarray, k: int, value: float) -> np.ndarray:
    """Rows of at least k entries: [n, c] to [n, k]."""
    short = k - array.shape[1]
    return np.pad(array, ((0, 0), (0, max(short, 0))), constant_values=value)
