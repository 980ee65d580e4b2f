"""Filling: parts become codes independently, and ranges of lists become partitions."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from retro_db.config import IndexConfig
from retro_db.index.part_embeddings import PartEmbeddings
from retro_db.index.structure import (
    WITHOUT_TABLES,
    faiss,
    inverted_file,
    list_codes,
    list_ids,
    read_index,
    transform,
    widen,
)
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.tables import TableFile
from retro_db.store.writing import TableWriter
from retro_db.threads import use_faiss_threads

# Enough rows for one call of Faiss, few enough that small parts keep all threads busy.
_BLOCK_ROWS = 1024
# Entries are counted in at most this number of ranges of lists; partitions are planned from the counts.
_RANGES = 1024
# Any disk takes a file of this size, and any worker fetches it in a minute.
_MOST_PARTITION_BYTES = 4_000_000_000


def encode_part(
    part: PartEmbeddings,
    path: str,
    trained_index: faiss.Index,
    threads: int,
    folder: Folder,
    report: Callable[[int], None],
) -> tuple[TableEntry, list[int]]:
    """Writes the codes of one part's indexed chunks, as adding them to the trained index stores them.

    Args:
        part: The part's embeddings.
        path: Path of the codes file, relative to the folder.
        trained_index: The trained index.
        threads: Number of blocks encoded side by side; the result does not depend on it.
        folder: The database.
        report: Called with the number of chunks encoded since the last call.

    Returns:
        The codes file, and the number of its entries in each of the `range_bounds` of lists.
    """
    ivf = inverted_file(trained_index)
    lists = np.full(part.embeddings.rows, -1, np.int64)
    codes = np.empty((part.embeddings.rows, ivf.code_size), np.uint8)

    def encode(start: int) -> int:
        rows, embeddings = part.read(start, start + _BLOCK_ROWS)
        if len(rows):
            lists[rows], codes[rows] = encode_embeddings(trained_index, ivf, widen(embeddings))
        return len(rows)

    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(encode, range(0, part.embeddings.rows, _BLOCK_ROWS)):
            report(done)
    indexed = np.flatnonzero(lists >= 0)
    order = indexed[np.argsort(lists[indexed], kind="stable")]
    table = contract("codes")
    with folder.writing(path) as temporary:
        schema = table.schema(code_size=ivf.code_size)
        with TableWriter(temporary, schema, table.batch_rows) as writer:
            for start in range(0, len(order), table.batch_rows):
                rows = order[start : start + table.batch_rows]
                writer.append(
                    {
                        "list": lists[rows].astype(np.int32),
                        "id": rows + part.first_id,
                        "code": codes[rows],
                    }
                )
        entries, _ = np.histogram(lists[order], range_bounds(int(ivf.nlist)))
        return describe(temporary, path, writer.rows), entries.tolist()


def encode_embeddings(
    trained_index: faiss.Index, ivf: faiss.IndexIVF, embeddings: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the list and the code of each embedding.

    Args:
        trained_index: The trained index.
        ivf: The piece of it that has the inverted lists.
        embeddings: float32 [n, d].

    Returns:
        Lists int64 [n], and codes uint8 [n, code_size].
    """
    # One thread a call: with more threads a tie could be assigned to another list.
    use_faiss_threads(1)
    x = np.ascontiguousarray(transform(trained_index, embeddings))
    _, nearest = ivf.quantizer.search(x, 1)
    lists = np.ascontiguousarray(nearest[:, 0])
    codes = np.empty((len(x), ivf.code_size), np.uint8)
    ivf.encode_vectors(
        len(x), faiss.swig_ptr(x), faiss.swig_ptr(lists), faiss.swig_ptr(codes), False
    )
    return lists, codes


def quantization_error(trained_index: faiss.Index, embeddings: np.ndarray) -> float:
    """Computes the mean squared distance of embeddings from their decoded codes, after the transforms.

    Args:
        trained_index: The trained index.
        embeddings: float16 [n, d].

    Returns:
        The mean; 0 for an empty array.
    """
    if not len(embeddings):
        return 0.0
    use_faiss_threads(1)
    ivf = inverted_file(trained_index)
    x = np.ascontiguousarray(transform(trained_index, widen(embeddings)))
    decoded = ivf.sa_decode(ivf.sa_encode(x))
    return float(((x - decoded) ** 2).sum(axis=1).mean())


def range_bounds(lists: int) -> np.ndarray:
    """Divides lists into at most 1,024 non-empty ranges of about equal size: int64 [ranges + 1]."""
    count = min(_RANGES, lists)
    return lists * np.arange(count + 1) // count


def list_ranges(entries: np.ndarray, lists: int, partitions: int) -> list[tuple[int, int]]:
    """Cuts the lists into ranges with about equal numbers of entries.

    Args:
        entries: int64 [ranges], number of entries in each of the `range_bounds`.
        lists: Number of inverted lists.
        partitions: Number of ranges wanted; at most `len(entries)` are returned.

    Returns:
        First list and one after the last of each range, in order; every range has a list.
    """
    count = min(partitions, len(entries))
    bounds = range_bounds(lists)
    sums = np.concatenate([[0], np.cumsum(entries)])
    cuts = np.searchsorted(sums, sums[-1] * np.arange(count + 1) / count)
    cuts[0], cuts[-1] = 0, len(entries)
    # Each partition gets at least one range, however uneven the lists are.
    cuts = np.maximum.accumulate(cuts - np.arange(count + 1)) + np.arange(count + 1)
    cuts = np.minimum(cuts, len(entries) - count + np.arange(count + 1))
    return list(itertools.pairwise(bounds[cuts].tolist()))


def plan_partitions(
    entries: np.ndarray, lists: int, entry_bytes: int, memory: int
) -> list[tuple[int, int]]:
    """Cuts the lists into as few ranges as keep each file within 4 GB and a quarter of the memory.

    A quarter, so that a worker can hold a partition, FastScan's copy of it and its queries. A list is
    never cut.

    Args:
        entries: int64 [ranges], number of entries in each of the `range_bounds`.
        lists: Number of inverted lists.
        entry_bytes: Bytes of one code with its id.
        memory: Bytes of memory of a worker.

    Returns:
        First list and one after the last of each range, in order.
    """
    limit = max(min(_MOST_PARTITION_BYTES, memory // 4) // entry_bytes, int(entries.max()), 1)
    count = max(1, -(-int(entries.sum()) // limit))
    while True:
        ranges = list_ranges(entries, lists, count)
        starts = np.searchsorted(range_bounds(lists), [first for first, _ in ranges])
        if np.add.reduceat(entries, starts).max() <= limit or len(ranges) < count:
            return ranges
        count += 1


def cut_lists(
    config: IndexConfig, entries: np.ndarray, lists: int, entry_bytes: int
) -> list[tuple[int, int]]:
    """Cuts the lists into the configured number of ranges, or plans them from the memory.

    Args:
        config: Configuration of the index.
        entries: int64 [ranges], number of entries in each of the `range_bounds`.
        lists: Number of inverted lists.
        entry_bytes: Bytes of one code with its id.

    Returns:
        First list and one after the last of each range, in order.
    """
    if config.partitions == "auto":
        return plan_partitions(entries, lists, entry_bytes, int(config.memory))
    return list_ranges(entries, lists, config.partitions)


def partition_path(number: int) -> str:
    """Returns the path of a partition in the database folder."""
    return f"index/partition-{number:05d}.faissindex"


def assemble_partition(
    trained_index: faiss.Index,
    lists: range,
    codes: Sequence[TableFile],
    path: str,
    folder: Folder,
    report: Callable[[int], None],
    *,
    base: Path | None = None,
) -> tuple[TableEntry, np.ndarray]:
    """Writes a range of lists of all parts as one index that stock Faiss opens by itself.

    It holds the centroids of these lists alone, under a flat quantizer. Entries are in part order, as
    if the parts had been added one after another to a single index; the entries of `base` come first.

    Args:
        trained_index: The trained index.
        lists: Numbers of the partition's lists.
        codes: Codes files of all parts, in id order; each is sorted by list.
        path: Path of the partition, relative to the folder.
        folder: The database.
        report: Called with the number of entries added since the last call.
        base: File of a partition with the same lists, whose entries were added before.

    Returns:
        The partition's file, whose rows are the entries, and the entries of each list, int64 [lists].
    """
    index = _empty_partition(trained_index, lists)
    ivf = inverted_file(index)
    inverted_lists = faiss.ArrayInvertedLists(len(lists), ivf.code_size)
    ivf.replace_invlists(inverted_lists, True)
    inverted_lists.this.disown()
    pieces = [(part, _first_row(part, lists.start), _first_row(part, lists.stop)) for part in codes]
    # The index of the base owns the lists that are copied: it lives until they are.
    base_index = read_index(base, faiss.IO_FLAG_MMAP | WITHOUT_TABLES) if base else None
    base_lists = inverted_file(base_index).invlists if base_index is not None else None
    lengths = _list_lengths(base_lists, len(lists))
    # Sized before they are filled: lists that grow take up to twice their memory.
    for number, length in enumerate((lengths + _count_entries(pieces, lists)).tolist()):
        inverted_lists.resize(number, length)
    for number in np.flatnonzero(lengths).tolist():
        entries = list_ids(base_lists, number), list_codes(base_lists, number)
        _put_entries(inverted_lists, number, 0, *entries)
    for part, start, stop in pieces:
        for list_number, ids, part_codes in _runs(part, start, stop):
            number = list_number - lists.start
            _put_entries(inverted_lists, number, int(lengths[number]), ids, part_codes)
            lengths[number] += len(ids)
        report(stop - start)
    index.ntotal = ivf.ntotal = int(lengths.sum())
    with folder.writing(path) as temporary:
        faiss.write_index(index, str(temporary))
        return describe(temporary, path, ivf.ntotal), lengths


def _list_lengths(lists: faiss.InvertedLists | None, count: int) -> np.ndarray:
    """Entries of each of the first `count` lists: int64 [count]; zeros for None."""
    if lists is None:
        return np.zeros(count, np.int64)
    return np.array([lists.list_size(number) for number in range(count)], np.int64)


def _count_entries(pieces: Sequence[tuple[TableFile, int, int]], lists: range) -> np.ndarray:
    """Entries of each list among rows start to stop - 1 of each part: int64 [lists]."""
    counts = np.zeros(len(lists), np.int64)
    for part, start, stop in pieces:
        numbers = part.read("list", start, stop) - lists.start
        counts += np.bincount(numbers, minlength=len(lists))
    return counts


def _put_entries(
    lists: faiss.ArrayInvertedLists, number: int, offset: int, ids: np.ndarray, codes: np.ndarray
) -> None:
    """Writes entries into a list from an offset on; the list has its final length already."""
    lists.update_entries(number, offset, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))


def _runs(part: TableFile, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Ids and codes of each list among some rows of a part, which is sorted by list."""
    if start == stop:
        return
    numbers, ids, codes = (part.read(name, start, stop) for name in ("list", "id", "code"))
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    for begin, end in itertools.pairwise([*starts.tolist(), len(numbers)]):
        yield int(numbers[begin]), ids[begin:end], codes[begin:end]


def _first_row(part: TableFile, number: int) -> int:
    """The first row of a list; if it has no entries, the first row of the lists behind it."""
    rows = range(part.rows)
    return bisect.bisect_left(rows, number, key=lambda row: part.read("list", row, row + 1)[0])


def _empty_partition(trained_index: faiss.Index, lists: range) -> faiss.Index:
    """Copies the trained index without lists, its coarse quantizer holding their centroids alone."""
    index = faiss.clone_index(trained_index)
    ivf = inverted_file(index)
    centroids = inverted_file(trained_index).quantizer.reconstruct_n(lists.start, len(lists))
    quantizer = faiss.IndexFlatL2(ivf.d)
    quantizer.add(centroids)
    replaced = ivf.quantizer
    ivf.quantizer = quantizer
    quantizer.this.disown()
    replaced.this.own(True)
    ivf.nlist = len(lists)
    return index
