"""Routing: which lists a chunk visits, decided for each chunk by itself."""

from __future__ import annotations

import numpy as np
import torch

from retro_db.index.structure import faiss, inverted_file, transform
from retro_db.join.multiplying import multiply
from retro_db.join.selecting import smallest_first
from retro_db.threads import use_faiss_threads, use_torch_threads

# Queries of one product: of always the same shape, as other shapes add in another order.
_BLOCK = 512
# A float32 is rounded by at most this share of it.
_ROUNDING = 2.0**-24
# Least breadth of the search among a graph's centroids, and that for the nearest list alone.
_BREADTH = 128


class Router:
    """Finds the nearest lists of embeddings under a trained index.

    Where a flat quantizer's products leave open which of two lists is nearer, float64 decides: so the lists
    of a chunk do not depend on the other chunks of its block. A graph of centroids is searched for each
    chunk by itself.

    Args:
        trained_index: The trained index.
    """

    def __init__(self, trained_index: faiss.Index) -> None:
        self._index = trained_index
        self._ivf = inverted_file(trained_index)
        self._quantizer = faiss.downcast_index(self._ivf.quantizer)
        self._graph = isinstance(self._quantizer, faiss.IndexHNSW)
        if not self._graph:
            self._centroids = self._quantizer.reconstruct_n(0, self.lists)
            wide = self._centroids.astype(np.float64)
            self._squares = np.einsum("ij,ij->i", wide, wide).astype(np.float32)
            self._factors = torch.from_numpy(-2 * self._centroids)

    @property
    def lists(self) -> int:
        """Number of lists."""
        return int(self._ivf.nlist)

    def nearest(self, vectors: np.ndarray, nprobe: int) -> np.ndarray:
        """Finds the nearest lists of every vector.

        Args:
            vectors: float32 [n, d].
            nprobe: Number of lists, at most all.

        Returns:
            int64 [n, nprobe], nearest first; the first, and which they are, do not depend on the block.
        """
        use_faiss_threads(1)
        use_torch_threads(1)
        lists = np.empty((len(vectors), nprobe), np.int64)
        block = np.zeros((_BLOCK, vectors.shape[1]), np.float32)
        packed = np.empty((_BLOCK, 0 if self._graph else self.lists), np.uint64)
        for start in range(0, len(vectors), _BLOCK):
            count = min(_BLOCK, len(vectors) - start)
            block[:count] = vectors[start : start + count]
            x = np.ascontiguousarray(transform(self._index, block))
            rows = slice(start, start + count)
            if self._graph:
                lists[rows] = self._by_graph(x[:count], nprobe)
            else:
                lists[rows] = self._by_products(x, nprobe, packed)[:count]
        return lists

    def _by_graph(self, x: np.ndarray, nprobe: int) -> np.ndarray:
        """The nearest lists by the graph. The first is the same for every number of lists."""
        homes = self._search_graph(x, 1, _BREADTH)
        if nprobe == 1:
            return homes
        lists = self._search_graph(x, nprobe, max(_BREADTH, 2 * nprobe))
        # The home in front; where a wider search lacks it, in place of the last.
        rank = np.where(lists == homes, -1, np.arange(nprobe))
        rank[(rank >= 0).all(axis=1), -1] = -1
        lists = np.take_along_axis(lists, np.argsort(rank, axis=1, kind="stable"), axis=1)
        lists[:, 0] = homes[:, 0]
        return lists

    def _search_graph(self, x: np.ndarray, count: int, breadth: int) -> np.ndarray:
        parameters = faiss.SearchParametersHNSW(efSearch=breadth)
        lists = self._quantizer.search(x, count, params=parameters)[1]
        lacking = np.flatnonzero((lists < 0).any(axis=1))
        if len(lacking):
            # A graph may end early; its centroids are compared one by one then.
            centroids = faiss.downcast_index(self._quantizer.storage)
            lists[lacking] = centroids.search(x[lacking], count)[1]
        return lists

    def _by_products(self, x: np.ndarray, nprobe: int, packed: np.ndarray) -> np.ndarray:
        squares = np.einsum("ij,ij->i", x, x)
        # 2 x.c is a sum of d terms, whose absolute values add up to at most |x|^2 + |c|^2 = M: so d roundings
        # err by at most that share of M. |c|^2 is rounded once, and what is added to the products thrice,
        # each time to a number below 2 M. |x|^2 is the same for all lists: its error decides nothing.
        margin = (x.shape[1] + 8) * _ROUNDING * (squares + self._squares.max())
        bias = torch.from_numpy(self._squares)
        distances = multiply(torch.from_numpy(x), self._factors, bias).numpy()
        # None is negative, so that the bits ascend with the distance.
        distances += (squares + margin)[:, None]
        smallest, lists = _smallest(distances, nprobe, packed)
        lists = lists[:, :nprobe]
        is_open = _is_open(smallest, nprobe, 2 * margin)
        for row in np.flatnonzero(is_open).tolist():
            limits = smallest[row, [0, nprobe - 1]]
            lists[row] = self._decided(x[row], distances[row], limits, 2 * margin[row], nprobe)
        return lists

    def _decided(
        self, x: np.ndarray, distances: np.ndarray, limits: np.ndarray, margin: float, nprobe: int
    ) -> np.ndarray:
        """The nearest lists of one vector, of which float64 decides: int64 [nprobe].

        Args:
            x: float32 [d'].
            distances: float32 [lists], as products give them.
            limits: float32 [2], the smallest distance, and that of rank nprobe.
            margin: By how much two distances may be exchanged.
            nprobe: Number of lists.
        """
        first, last = limits
        is_sure = distances < last - margin
        sure = np.flatnonzero(is_sure)
        sure = sure[np.argsort(distances[sure], kind="stable")]
        doubtful = self._by_distance(x, np.flatnonzero(~is_sure & (distances <= last + margin)))
        lists = np.concatenate([sure, doubtful])[:nprobe]
        nearest = self._by_distance(x, np.flatnonzero(distances <= first + margin))[0]
        return np.concatenate([[nearest], lists[lists != nearest]])[:nprobe]

    def _by_distance(self, x: np.ndarray, lists: np.ndarray) -> np.ndarray:
        """Lists by exact (distance, number)."""
        apart = self._centroids[lists].astype(np.float64) - x
        return lists[np.argsort((apart**2).sum(axis=1), kind="stable")]


def _smallest(
    distances: np.ndarray, count: int, packed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest of every row, ascending, and one more to compare with: values and columns.

    `packed`, uint64 in the shape of the distances, is overwritten: new memory takes longer than the work.
    """
    packed[...] = distances.view(np.uint32)
    packed <<= np.uint64(32)
    packed |= np.arange(distances.shape[1], dtype=np.uint64)
    smallest_first(packed, min(count + 1, distances.shape[1]))
    smallest = np.sort(packed[:, : count + 1], axis=1)
    columns = (smallest & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return (smallest >> np.uint64(32)).astype(np.uint32).view(np.float32), columns


def _is_open(distances: np.ndarray, nprobe: int, margin: np.ndarray) -> np.ndarray:
    """Whether rounding may decide which list is the first, or the last: bool [n]."""
    is_open = np.zeros(len(distances), bool)
    for last in {0, nprobe - 1}:
        if last + 1 < distances.shape[1]:
            is_open |= distances[:, last + 1] - distances[:, last] <= margin
    return is_open
