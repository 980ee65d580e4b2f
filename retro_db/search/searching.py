"""Searching: all partitions as one index under the trained index."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retro_db.index.keys import IndexKey, parse_key
from retro_db.index.structure import WITHOUT_TABLES, faiss, inverted_file, read_index, transform
from retro_db.store.folder import FileEntry, Folder
from retro_db.threads import use_faiss_threads

# The trained index computes the tables for residual codes: every partition would compute them again.
_MAPPED = faiss.IO_FLAG_MMAP | WITHOUT_TABLES
# Queries that are searched together: enough to keep all threads busy, and small beside an index.
_WINDOW_QUERIES = 16_384
# Visits to lists of one call of Faiss, at 12 bytes each.
_MOST_VISITS = 8_000_000
# Faiss compares every code's id with each range; more ranges than this become a set.
_FEW_RANGES = 8

Block = TypeVar("Block")
Result = TypeVar("Result")
IdRanges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SearchSettings:
    """How widely the index is searched; tuning decides it.

    Attributes:
        nprobe: Number of lists visited for a query.
        rerank: Number of a query's candidates whose exact distances are computed.
        ef_search: Breadth of the search among centroids; None if no graph joins them.
    """

    nprobe: int
    rerank: int
    ef_search: int | None = None


@dataclass(frozen=True)
class QueryBlock:
    """Queries that must not find the same ids: the chunks of one document.

    Attributes:
        vectors: float32 [n, d].
        exclude: Ranges of ids, first to end - 1, that are passed over.
        tokens: uint [n, m + 1], tokens and length of the queries' chunks; None if their
            duplicates may be found.
    """

    vectors: np.ndarray
    exclude: IdRanges = ()
    tokens: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> QueryBlock:
        """Returns a block of some rows of the queries."""
        tokens = None if self.tokens is None else self.tokens[rows]
        return QueryBlock(self.vectors[rows], self.exclude, tokens)


@dataclass(frozen=True)
class _Routed:
    """A block whose queries are assigned to lists.

    Attributes:
        vectors: float32 [n, d'], the queries after the transforms.
        lists: int64 [n, nprobe], lists that each query visits.
        distances: float32 [n, nprobe], distances to the centroids of these lists.
        exclude: Ranges of ids that are passed over.
        removed: Ids that no block may find, or None.
    """

    vectors: np.ndarray
    lists: np.ndarray
    distances: np.ndarray
    exclude: IdRanges
    removed: faiss.IDSelectorBatch | None


class Searcher:
    """The partitions of an index, memory-mapped and searched as one.

    4-bit codes of a FastScan key are repacked in memory. Partitions that do not fit the memory
    together are opened group after group, for many queries at a time: the candidates are the same, but
    for ties at the last place. Safe to call from several threads.

    Args:
        trained_index: File of the trained index.
        partitions: Files of all partitions, in the order of their lists.
        key: The index key.
        memory: Bytes that opened partitions and waiting queries may take; None for no limit.
        removed: Ids int64 [n] that no query may find.

    Raises:
        DamagedFileError: A file cannot be read.
    """

    def __init__(
        self,
        trained_index: Path,
        partitions: Sequence[Path],
        key: str,
        memory: int | None = None,
        removed: np.ndarray | None = None,
    ) -> None:
        self._index = read_index(trained_index, flags=0)
        self._ivf = inverted_file(self._index)
        self._quantizer = faiss.downcast_index(self._ivf.quantizer)
        parsed = parse_key(key, self._index.d)
        self._fast_scan = parsed.fast_scan
        self._memory = memory
        has_removed = removed is not None and len(removed) > 0
        self._removed = faiss.IDSelectorBatch(removed) if has_removed else None
        self._lock = threading.Lock()
        sizes = [resident_bytes(path.stat().st_size, parsed) for path in partitions]
        self._groups = group_partitions(sizes, memory)
        self._paths = partitions
        # A group needs the number of lists before it and behind it.
        counts = [count_lists(path) for path in partitions] if self.streams else []
        self._starts = [0, *itertools.accumulate(counts)]
        self._whole = None if self.streams else self._open(partitions, 0, 0)

    @property
    def lists(self) -> int:
        """Number of inverted lists."""
        return int(self._ivf.nlist)

    @property
    def streams(self) -> bool:
        """Whether partitions are opened one group after another."""
        return len(self._groups) > 1

    @property
    def has_graph(self) -> bool:
        """Whether a graph joins the centroids, so that `ef_search` matters."""
        return isinstance(self._quantizer, faiss.IndexHNSW)

    def window(self, settings: SearchSettings) -> int:
        """Counts the queries that are worth searching together: while streaming, what the memory holds.

        Args:
            settings: Lists that each query visits, and candidates that it keeps.

        Returns:
            A number of queries, 1 or more.
        """
        if self._memory is None or not self.streams:
            return _WINDOW_QUERIES
        # A query, its lists, and its candidates from the groups so far and from the next group.
        each = 4 * self._index.d + 12 * settings.nprobe + 2 * 12 * settings.rerank
        return max(1, self._memory // 4 // each)

    def search(
        self, blocks: Sequence[QueryBlock], settings: SearchSettings, pool: Executor
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Finds the nearest entries by their codes, as one index that holds all entries finds them.

        Args:
            blocks: Queries; each block is one call of Faiss on one thread, so that the result does
                not depend on the pool. A block that would visit very many lists is divided.
            settings: How widely the index is searched.
            pool: Threads.

        Returns:
            For each block, approximate distances float32 [n, rerank] and ids int64 [n, rerank], padded
            with -1 if the visited lists hold fewer.
        """
        most_queries = max(1, _MOST_VISITS // settings.nprobe)
        pieces = [list(_divide(block, most_queries)) for block in blocks]
        results = iter(self._search(list(itertools.chain(*pieces)), settings, pool))
        return [_joined([next(results) for _ in block_pieces]) for block_pieces in pieces]

    def _search(
        self, blocks: Sequence[QueryBlock], settings: SearchSettings, pool: Executor
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self._whole is not None:
            index = self._whole.index
            yield from map_blocks(
                pool,
                lambda block: _scan(index, self._route(block, settings), settings.rerank),
                blocks,
            )
            return
        for window in windows(blocks, self.window(settings), lambda block: len(block.vectors)):
            yield from self._stream(window, settings, pool)

    def _stream(
        self, blocks: Sequence[QueryBlock], settings: SearchSettings, pool: Executor
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Searches group after group, and keeps the nearest so far."""
        routed = list(pool.map(lambda block: self._route(block, settings), blocks))
        best: list[tuple[np.ndarray, np.ndarray]] = []
        with self._lock:
            for first, end in self._groups:
                with self._opened(first, end) as index:
                    scan = functools.partial(_scan, index, count=settings.rerank)
                    results = list(pool.map(scan, routed))
                best = list(pool.map(_nearer, best, results)) if best else results
        return best

    def _route(self, block: QueryBlock, settings: SearchSettings) -> _Routed:
        # One thread a call: the number of threads decides how FastScan breaks ties.
        use_faiss_threads(1)
        x = np.ascontiguousarray(transform(self._index, block.vectors))
        breadth = None
        if self.has_graph and settings.ef_search:
            breadth = faiss.SearchParametersHNSW(efSearch=settings.ef_search)
        nprobe = min(settings.nprobe, self.lists)
        distances, lists = self._quantizer.search(x, nprobe, params=breadth)
        return _Routed(x, lists, distances, block.exclude, self._removed)

    @contextmanager
    def _opened(self, first: int, end: int) -> Iterator[faiss.Index]:
        before, after = self._starts[first], self.lists - self._starts[end]
        group = self._open(self._paths[first:end], before, after)
        try:
            yield group.index
        finally:
            group.close()

    def _open(self, paths: Sequence[Path], before: int, after: int) -> _Group:
        return _Group(self._ivf, paths, before, after, fast_scan=self._fast_scan)


class _Group:
    """Some partitions opened under the trained index, whose other lists are empty.

    Attributes:
        index: The index that is searched.
    """

    def __init__(
        self,
        ivf: faiss.IndexIVF,
        paths: Sequence[Path],
        before: int,
        after: int,
        *,
        fast_scan: bool,
    ) -> None:
        self._ivf = ivf
        # Faiss keeps pointers into the mapped partitions: they live as long as the joined lists.
        self._partitions = [read_index(path, _MAPPED) for path in paths]
        opened = [inverted_file(partition).invlists for partition in self._partitions]
        self._lists = [_no_lists(ivf, before), *opened, _no_lists(ivf, after)]
        pieces = faiss.InvertedListsPtrVector()
        for lists in self._lists:
            if lists.nlist:
                pieces.push_back(lists)
        joined = faiss.VStackInvertedLists(pieces.size(), pieces.data())
        # Turning an index into FastScan crashes Faiss unless the index owns its lists.
        ivf.replace_invlists(joined, True)
        joined.this.disown()
        ivf.ntotal = sum(inverted_file(partition).ntotal for partition in self._partitions)
        self.index = ivf
        if fast_scan:
            self.index = faiss.IndexIVFPQFastScan(ivf)
            self._let_go()

    def close(self) -> None:
        """Frees FastScan's copy of the codes, and unmaps the partitions."""
        del self.index
        self._let_go()

    def _let_go(self) -> None:
        """Unmaps the partitions: the trained index gets empty lists instead."""
        empty = _no_lists(self._ivf, self._ivf.nlist)
        self._ivf.replace_invlists(empty, True)
        empty.this.disown()
        self._lists.clear()
        self._partitions.clear()


def _no_lists(ivf: faiss.IndexIVF, count: int) -> faiss.ArrayInvertedLists:
    return faiss.ArrayInvertedLists(count, ivf.code_size)


def open_searcher(
    folder: Folder,
    key: str,
    trained_index: FileEntry,
    partitions: Sequence[FileEntry],
    memory: int | None,
    removed: np.ndarray | None = None,
) -> Searcher:
    """Opens the index of a database.

    Args:
        folder: The database.
        key: The index key.
        trained_index: File of the trained index.
        partitions: Files of all partitions, in the order of their lists.
        memory: Bytes that the searcher may take; None for no limit.
        removed: Ids int64 [n] that no query may find.

    Raises:
        DamagedFileError: A file is missing, or cannot be read.
    """
    paths = [folder.verified(partition) for partition in partitions]
    return Searcher(folder.verified(trained_index), paths, key, memory, removed)


def group_partitions(sizes: Sequence[int], memory: int | None) -> list[tuple[int, int]]:
    """Groups consecutive partitions that are opened together.

    Args:
        sizes: Bytes that each partition takes when opened.
        memory: Bytes for opened partitions and for the queries that wait meanwhile; None for no limit.

    Returns:
        First partition and one after the last of each group: one group if all partitions fit, else
        groups of at most half the memory, or of a single partition that is larger.
    """
    if memory is None or sum(sizes) <= memory:
        return [(0, len(sizes))]
    groups: list[tuple[int, int]] = []
    first, taken = 0, 0
    for number, size in enumerate(sizes):
        if number > first and taken + size > memory // 2:
            groups.append((first, number))
            first, taken = number, 0
        taken += size
    return [*groups, (first, len(sizes))]


def resident_bytes(size: int, key: IndexKey) -> int:
    """Bytes of memory that opened lists take: FastScan copies the codes beside the mapped ones."""
    return 2 * size if key.fast_scan else size


def count_lists(path: Path) -> int:
    """Counts the inverted lists of a partition.

    Args:
        path: File of the partition.

    Raises:
        DamagedFileError: Faiss cannot read it.
    """
    partition = read_index(path, _MAPPED)
    return int(inverted_file(partition).nlist)


def list_lengths(path: Path) -> np.ndarray:
    """Counts the entries of every inverted list of a partition: int64 [lists].

    Args:
        path: File of the partition.

    Raises:
        DamagedFileError: Faiss cannot read it.
    """
    partition = read_index(path, _MAPPED)
    ivf = inverted_file(partition)
    return np.array([ivf.invlists.list_size(n) for n in range(ivf.nlist)], np.int64)


def _divide(block: QueryBlock, most: int) -> Iterator[QueryBlock]:
    """Divides a block into pieces of at most `most` queries."""
    rows = np.arange(len(block.vectors))
    if len(rows) <= most:
        yield block
        return
    for start in range(0, len(rows), most):
        yield block.take(rows[start : start + most])


def windows(
    blocks: Iterable[Block], size: int, queries: Callable[[Block], int]
) -> Iterator[list[Block]]:
    """Gathers blocks up to a number of queries; a larger block comes alone.

    Args:
        blocks: Blocks in order.
        size: Most queries of a window.
        queries: Counts the queries of a block.

    Yields:
        The blocks of one window.
    """
    window: list[Block] = []
    count = 0
    for block in blocks:
        if window and count + queries(block) > size:
            yield window
            window, count = [], 0
        window.append(block)
        count += queries(block)
    if window:
        yield window


def map_blocks(
    pool: Executor, function: Callable[..., Result], *columns: Sequence[Any]
) -> Iterable[Result]:
    """Applies a function to blocks, in a pool if there are several: to hand one over takes half a query."""
    return pool.map(function, *columns) if len(columns[0]) > 1 else map(function, *columns)


def _joined(pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Joins the results of a block's pieces."""
    if len(pieces) == 1:
        return pieces[0]
    distances, ids = zip(*pieces, strict=True)
    return np.concatenate(distances), np.concatenate(ids)


def _scan(index: faiss.Index, routed: _Routed, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds a block's nearest entries: distances float32 [n, count] and ids int64 [n, count]."""
    use_faiss_threads(1)
    rows, nprobe = routed.lists.shape
    selector = _selector(routed.exclude, routed.removed)
    parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
    distances = np.empty((rows, count), np.float32)
    ids = np.empty((rows, count), np.int64)
    pointer = faiss.swig_ptr
    index.search_preassigned_c(
        rows,
        pointer(routed.vectors),
        count,
        pointer(routed.lists),
        pointer(routed.distances),
        pointer(distances),
        pointer(ids),
        False,
        parameters,
    )
    return distances, ids


def _selector(exclude: IdRanges, removed: faiss.IDSelectorBatch | None) -> faiss.IDSelector | None:
    """Selects all ids but some ranges and the removed ones: exact, without over-fetching."""
    if len(exclude) > _FEW_RANGES:
        excluded_ids = np.concatenate([np.arange(*bounds) for bounds in exclude])
        passed_over = [faiss.IDSelectorBatch(excluded_ids)]
    else:
        passed_over = [faiss.IDSelectorRange(int(first), int(end)) for first, end in exclude]
    if removed is not None:
        passed_over.append(removed)
    if not passed_over:
        return None
    # Each of these selectors keeps a reference to the selectors that it joins.
    return faiss.IDSelectorNot(functools.reduce(faiss.IDSelectorOr, passed_over))


def _nearer(
    best: tuple[np.ndarray, np.ndarray], results: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Selects the nearest of two groups' candidates: distances and ids [n, count], each."""
    distances = np.concatenate([best[0], results[0]], axis=1)
    ids = np.concatenate([best[1], results[1]], axis=1)
    # Faiss pads with -1 at the largest distance: the padding sorts behind.
    order = np.lexsort((ids, distances), axis=1)[:, : best[0].shape[1]]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(ids, order, axis=1)
