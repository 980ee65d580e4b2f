"""The nearest keys of a block of queries in the lists of one partition that they visit, exactly.

Every list is multiplied once with all queries of the block that visit it (`products.py`): the sign of a
product says whether a key can be among the query's nearest. What survives is bracketed, the exact distance
computed of what may be among the k nearest, and the rest decided by (distance, id).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from retro_db.index.structure import widen
from retro_db.join.keys import Keys, Labels
from retro_db.join.multiplying import ROW_STEP, multiply, padded_columns, padded_rows
from retro_db.join.nearest import exact_distances, nearest, nearest_of_pairs
from retro_db.join.products import QueryMatrix
from retro_db.join.scratch import scratch
from retro_db.join.selecting import smallest_first
from retro_db.threads import use_torch_threads

# A first bound comes from this number of a query's lists; from four times as many where they hold too few.
_FIRST_LISTS, _MORE = 2, 4
# Keys are gathered into about so many groups for every neighbor to find a bound.
_GROUPS = 3
# Queries and keys of one product: it stays in the caches.
_TILE_KEYS, _TILE_ROWS, _TILE_PRODUCTS = 1024, 2048, 1 << 20
# Survivors of a block's queries, on average, before they are decided and the bounds tightened.
_MOST_SURVIVORS = 128
# Survivors that are decided at a time: their distances stay in the caches.
_DECIDED = 1 << 17
# Survivors are sorted as one integer: row, closeness, key.
_ROW_SHIFT, _CLOSE_SHIFT, _CLOSE = np.uint64(47), np.uint64(32), np.uint64(0x7FFF)
MOST_QUERIES = 1 << 17
# Distances computed in float32 err by this share, times the dimension, at most.
_ROUNDING = 2.0**-22


@dataclass(frozen=True)
class Visitors:
    """A block of queries, and the lists of one partition that each visits.

    Attributes:
        vectors: float16 [n, d], at most `MOST_QUERIES`.
        labels: Labels of the queries.
        bounds: float32 [n], squared distance beyond which no key is wanted; infinity if there is none.
        rows: int64 [v], the query of each visit, ascending.
        lists: int64 [v], the list of each visit, counted from the partition's first; a query's nearest first.
    """

    vectors: np.ndarray
    labels: Labels
    bounds: np.ndarray
    rows: np.ndarray
    lists: np.ndarray


def nearest_keys(keys: Keys, visitors: Visitors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest keys of every query in the lists that it visits.

    Args:
        keys: The keys of a partition.
        visitors: Queries and their visits.
        k: Number of neighbors.

    Returns:
        ids int64 [n, k] by ascending (distance, id), padded with -1, and squared L2 distances float32
        [n, k], padded with infinity; none beyond the bounds.
    """
    use_torch_threads(1)
    queries = widen(visitors.vectors)
    bounds = _first_bounds(keys, queries, visitors, k)
    scan = _Scan(keys, queries, replace(visitors, bounds=bounds), k)
    for number, rows in _by_list(visitors.rows, visitors.lists, keys.lists):
        scan.list(number, rows)
    scan.decide()
    return scan.ids, scan.distances


def _by_list(rows: np.ndarray, lists: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields every list that is visited: its number, and the queries that visit it."""
    # NumPy sorts 16 bits by counting.
    order = np.argsort(lists.astype(np.uint16) if count <= 1 << 16 else lists, kind="stable")
    sizes = np.bincount(lists, minlength=count)
    starts = np.cumsum(sizes) - sizes
    by_list = rows[order]
    for number in np.flatnonzero(sizes).tolist():
        yield number, by_list[starts[number] : starts[number] + sizes[number]]


def _tile_rows(columns: int) -> int:
    """Queries of a tile with so many columns."""
    return min(_TILE_ROWS, _TILE_PRODUCTS // columns // ROW_STEP * ROW_STEP)


def _first_bounds(keys: Keys, queries: np.ndarray, visitors: Visitors, k: int) -> np.ndarray:
    """Bounds float32 [n] of the k-th distance, from the nearest lists of queries that have none yet."""
    bounds = visitors.bounds.copy()
    visits = np.bincount(visitors.rows, minlength=len(queries))
    starts = np.cumsum(visits) - visits
    ranks = np.arange(len(visitors.rows)) - np.repeat(starts, visits)
    first = _FIRST_LISTS
    without = np.isinf(bounds) & (visits > 0)
    while without.any():
        near = np.flatnonzero((ranks < first) & without[visitors.rows])
        kth = _kth_distances(keys, queries, visitors, near, k)
        bounds[without] = kth[without]
        without &= np.isinf(bounds) & (visits > first)
        first *= _MORE
    return bounds


def _kth_distances(
    keys: Keys,
    queries: np.ndarray,
    visitors: Visitors,
    near: np.ndarray,
    k: int,
) -> np.ndarray:
    """Upper bounds of the k-th distance among the visits `near`, float32 [n]; infinity for fewer than k."""
    concerned = np.unique(visitors.rows[near])
    places = np.empty(len(queries), np.int64)
    places[concerned] = np.arange(len(concerned))
    best = np.full((len(concerned), k), np.inf, np.float32)
    share = 2 * queries.shape[1] * _ROUNDING
    visits = visitors.rows[near], visitors.lists[near]
    for number, rows in _by_list(*visits, keys.lists):
        start, stop = (int(offset) for offset in keys.offsets[number : number + 2])
        for first in range(start, stop, _TILE_KEYS):
            end = min(first + _TILE_KEYS, stop)
            shape = padded_columns(end - first), queries.shape[1]
            wide = torch.from_numpy(scratch("keys", shape, np.float32))
            wide[end - first :] = 0
            widen(keys.vectors(first, end), wide.numpy()[: end - first])
            squares = wide.square().sum(1) * (1 + share)
            wide *= -2
            step = _tile_rows(len(wide))
            for begin in range(0, len(rows), step):
                tile = rows[begin : begin + step]
                shape = padded_rows(len(tile)), queries.shape[1]
                block = torch.from_numpy(scratch("queries", shape, np.float32))
                torch.index_select(
                    torch.from_numpy(queries), 0, torch.from_numpy(tile), out=block[: len(tile)]
                )
                products = multiply(block, wide, squares)
                distances = products.numpy()[: len(tile), : end - first]
                labels = keys.labels[first:end]
                distances[~visitors.labels[tile].column().differ(labels)] = np.inf
                both = np.concatenate([best[places[tile]], _group_minima(distances, k)], axis=1)
                smallest_first(both, k)
                best[places[tile]] = both[:, :k]
    kth = np.full(len(queries), np.inf, np.float32)
    squares = torch.from_numpy(queries).square().sum(1)[torch.from_numpy(concerned)] * (1 + share)
    kth[concerned] = np.maximum(best.max(axis=1) + squares.numpy(), 0)
    return kth


def _group_minima(distances: np.ndarray, k: int) -> np.ndarray:
    """The nearest of every group of keys: the k-th of them bounds the k-th of all, and takes less time.

    Args:
        distances: float32 [n, m].
        k: Number of neighbors.

    Returns:
        float32 [n, groups], about three groups for every neighbor, or [n, m] if there are fewer keys.
    """
    size = max(1, distances.shape[1] // (_GROUPS * k))
    groups = distances.shape[1] // size
    minima = distances[:, :groups]
    for start in range(groups, size * groups, groups):
        minima = np.minimum(minima, distances[:, start : start + groups])
    return minima


class _Scan:
    """Multiplies lists with queries, and keeps the nearest keys."""

    def __init__(self, keys: Keys, queries: np.ndarray, visitors: Visitors, k: int) -> None:
        self._keys = keys
        self._queries = queries
        self._labels = visitors.labels
        self._bounds = visitors.bounds
        self._k = k
        self._matrix = QueryMatrix(queries, keys.matrix)
        self._set_bounds(np.arange(len(queries)), self._bounds)
        self._survivors: list[np.ndarray] = []
        self._count = 0
        # New memory takes longer than the work.
        factors = self._matrix.factors
        self._block = factors.new_empty(_TILE_ROWS, factors.shape[1])
        count = len(queries)
        self.ids = np.full((count, k), -1, np.int64)
        self.distances = np.full((count, k), np.inf, np.float32)

    def _set_bounds(self, rows: np.ndarray, bounds: np.ndarray) -> None:
        # Exact distances are rounded sums themselves.
        share = 2 * self._queries.shape[1] * _ROUNDING
        self._matrix.bound(rows, bounds * np.float32(1 + share))

    def list(self, number: int, rows: np.ndarray) -> None:
        """Multiplies one list with the queries that visit it."""
        start, stop = (int(offset) for offset in self._keys.offsets[number : number + 2])
        for first in range(start, stop, _TILE_KEYS):
            end = min(first + _TILE_KEYS, stop)
            factors = self._keys.matrix.rows(first, end)
            step = _tile_rows(len(factors))
            for begin in range(0, len(rows), step):
                self._tile(factors, first, end, rows[begin : begin + step])
            if self._count > _MOST_SURVIVORS * max(len(self._queries), 1024):
                self.decide()

    def _tile(self, factors: torch.Tensor, first: int, end: int, rows: np.ndarray) -> None:
        block = self._block[: padded_rows(len(rows))]
        index = torch.from_numpy(rows).to(factors.device)
        torch.index_select(self._matrix.factors, 0, index, out=block[: len(rows)])
        products = multiply(block, factors)
        places, closeness = _positive(products[: len(rows)])
        row, column = np.divmod(places, len(factors))
        within = column < end - first
        if not within.all():
            row, column, closeness = row[within], column[within], closeness[within]
        row, column = rows[row], column + first
        apart = self._labels[row].differ(self._keys.labels[column])
        row, column, closeness = row[apart], column[apart], closeness[apart]
        packed = row.astype(np.uint64) << _ROW_SHIFT
        packed |= (_CLOSE - closeness.astype(np.uint64)) << _CLOSE_SHIFT
        packed |= column.astype(np.uint64)
        self._survivors.append(packed)
        self._count += len(packed)

    def decide(self) -> None:
        """Decides which survivors are among the nearest so far, and tightens the bounds by them."""
        packed = np.concatenate([np.empty(0, np.uint64), *self._survivors])
        self._survivors, self._count = [], 0
        packed.sort()
        starts = np.searchsorted(
            packed, np.arange(len(self._queries) + 1, dtype=np.uint64) << _ROW_SHIFT
        )
        first = 0
        while first < len(self._queries):
            limit = starts[first] + _DECIDED
            end = max(first + 1, int(np.searchsorted(starts, limit, side="right")) - 1)
            if starts[end] > starts[first]:
                self._decide(first, end, packed[starts[first] : starts[end]])
            first = end

    def _decide(self, first: int, end: int, packed: np.ndarray) -> None:
        """Decides the survivors of queries first to end - 1, sorted by query and closeness."""
        rows = (packed >> _ROW_SHIFT).astype(np.int64)
        keys = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
        closeness = (_CLOSE - (packed >> _CLOSE_SHIFT & _CLOSE)).astype(np.uint32)
        products = (closeness << np.uint32(16)).view(np.float32)
        wanted = self._may_be_near(first, end, rows, keys, products)
        rows, keys = rows[wanted], keys[wanted]
        distances = exact_distances(self._queries, rows, self._keys.store, self._keys.places[keys])
        wanted = distances <= self._bounds[rows]
        rows, keys, distances = rows[wanted], keys[wanted], distances[wanted]
        best = nearest_of_pairs(rows - first, self._keys.ids[keys], distances, end - first, self._k)
        before = self.ids[first:end], self.distances[first:end]
        if (before[0][:, 0] >= 0).any():
            ids = np.concatenate([before[0], best[0]], axis=1)
            distances = np.concatenate([before[1], best[1]], axis=1)
            best = nearest(ids, distances, self._k)
        self.ids[first:end], self.distances[first:end] = best
        nearer = np.flatnonzero(best[1][:, -1] < self._bounds[first:end])
        self._bounds[first + nearer] = best[1][nearer, -1]
        self._set_bounds(first + nearer, self._bounds[first + nearer])

    def _may_be_near(
        self, first: int, end: int, rows: np.ndarray, keys: np.ndarray, products: np.ndarray
    ) -> np.ndarray:
        """Says which survivors of queries first to end - 1 may be among the k nearest: bool [p].

        They are sorted by query and closeness. The farthest that any k of a query's can be is a bound of
        its k-th distance.
        """
        near, far = self._matrix.distances(rows, keys, products)
        sizes = np.bincount(rows - first, minlength=end - first)
        starts = np.cumsum(sizes) - sizes
        limits = np.full(len(sizes), np.inf, np.float32)
        full = np.flatnonzero(sizes >= self._k)
        limits[full] = far[starts[full, None] + np.arange(self._k)].max(axis=1)
        return near <= limits[rows - first]


def _positive(products: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Places of positive products in the flat tile, int64 [p], and the first 16 bits of each, int32 [p]."""
    if products.device.type != "cpu":
        flat = products.reshape(-1)
        positive = torch.nonzero(flat > 0).reshape(-1)
        kept = flat[positive].float().cpu().view(torch.int32).numpy() >> 16
        return positive.cpu().numpy(), kept
    # NumPy finds them several times as fast as torch.
    wide = products.dtype == torch.float32
    bits = products.view(torch.int32 if wide else torch.int16).numpy().reshape(-1)
    places = np.flatnonzero(bits > 0)
    values = bits[places].astype(np.int32)
    return places, values >> 16 if wide else values
