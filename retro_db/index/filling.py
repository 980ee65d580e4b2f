"""Filling: parts become codes independently, and ranges of lists become partitions."""

from __future__ import annotations

import base64
import bisect
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from retro_db.config import IndexConfig
from retro_db.index.part_keys import PartKeys
from retro_db.index.structure import (
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

# Enough for one call of Faiss, few enough that small parts keep all threads busy.
_BLOCK_ROWS = 1024
# Entries are counted for at most so many ranges of lists: what partitions are planned with.
_RANGES = 1024
# A file that any disk takes and any worker fetches in a minute.
_MOST_PARTITION_BYTES = 4_000_000_000


def encode_part(
    part: PartKeys,
    path: str,
    template: faiss.Index,
    threads: int,
    folder: Folder,
    report: Callable[[int], None],
) -> tuple[TableEntry, list[int]]:
    """Codes of one part's indexed chunks: what adding them to the template would store.

    Args:
        part: Its keys.
        path: Of the codes file, relative to the folder.
        template: The trained index.
        threads: Blocks of keys encoded side by side; the result does not depend on it.
        folder: The database.
        report: Told, now and again, how many more chunks are done.

    Returns:
        The codes file, and its entries in each of the `range_bounds` of lists.
    """
    ivf = inverted_file(template)
    lists = np.full(part.embeddings.rows, -1, np.int64)
    codes = np.empty((part.embeddings.rows, ivf.code_size), np.uint8)

    def encode(start: int) -> int:
        rows, keys = part.read(start, start + _BLOCK_ROWS)
        if len(rows):
            lists[rows], codes[rows] = encode_keys(template, ivf, widen(keys))
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
                piece = order[start : start + table.batch_rows]
                writer.append(
                    {
                        "list": lists[piece].astype(np.int32),
                        "id": piece + part.first_id,
                        "code": codes[piece],
                    }
                )
        entries, _ = np.histogram(lists[order], range_bounds(int(ivf.nlist)))
        return describe(temporary, path, writer.rows), entries.tolist()


def encode_keys(
    template: faiss.Index, ivf: faiss.IndexIVF, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The list and the code of each key: float32 [n, d] to int64 [n] and uint8 [n, code_size].

    Args:
        template: The trained index.
        ivf: Its part with the inverted lists.
        keys: float32 [n, d].

    Returns:
        Lists int64 [n], and codes uint8 [n, code_size].
    """
    # One thread a call: assignments to lists could differ in a tie with another number.
    use_faiss_threads(1)
    x = np.ascontiguousarray(transform(template, keys))
    _, nearest = ivf.quantizer.search(x, 1)
    lists = np.ascontiguousarray(nearest[:, 0])
    codes = np.empty((len(x), ivf.code_size), np.uint8)
    ivf.encode_vectors(
        len(x), faiss.swig_ptr(x), faiss.swig_ptr(lists), faiss.swig_ptr(codes), False
    )
    return lists, codes


def quantization_error(template: faiss.Index, keys: np.ndarray) -> float:
    """The mean squared distance of keys from what their codes stand for, after the transforms.

    Args:
        template: The trained index.
        keys: float16 [n, d].

    Returns:
        A number; 0 where there are no keys.
    """
    if not len(keys):
        return 0.0
    use_faiss_threads(1)
    ivf = inverted_file(template)
    x = np.ascontiguousarray(transform(template, widen(keys)))
    decoded = ivf.sa_decode(ivf.sa_encode(x))
    return float(((x - decoded) ** 2).sum(axis=1).mean())


def range_bounds(lists: int) -> np.ndarray:
    """Bounds of about equal ranges of lists, at most 1,024 and none empty: int64 [ranges + 1]."""
    count = min(_RANGES, lists)
    return lists * np.arange(count + 1) // count


def pack_entries(entries: Sequence[int]) -> str:
    """Numbers as text that JSON takes at little cost: zlib of little-endian int64, in base 85."""
    return base64.b85encode(zlib.compress(np.array(entries, "<i8").tobytes())).decode("ascii")


def unpack_entries(packed: str) -> np.ndarray:
    """What `pack_entries` packed: int64 [n]."""
    return np.frombuffer(zlib.decompress(base64.b85decode(packed)), "<i8")


def list_ranges(entries: np.ndarray, lists: int, partitions: int) -> list[tuple[int, int]]:
    """Cuts the lists into ranges of about equally many entries.

    Args:
        entries: int64 [ranges], in each of the `range_bounds`.
        lists: Inverted lists in all.
        partitions: Ranges wanted; never more than there are bounds for.

    Returns:
        First list and one after the last of each range, in order, none without a list.
    """
    count = min(partitions, len(entries))
    bounds = range_bounds(lists)
    whole = np.concatenate([[0], np.cumsum(entries)])
    cuts = np.searchsorted(whole, whole[-1] * np.arange(count + 1) / count)
    cuts[0], cuts[-1] = 0, len(entries)
    # Each has a range of its own, however uneven the lists are.
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
        entries: int64 [ranges], in each of the `range_bounds`.
        lists: Inverted lists in all.
        entry_bytes: Of one code with its id.
        memory: Of a worker.

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
    """Ranges of lists: as many as configured, or planned from the memory.

    Args:
        config: Of the index.
        entries: int64 [ranges], in each of the `range_bounds`.
        lists: Inverted lists in all.
        entry_bytes: Of one code with its id.

    Returns:
        First list and one after the last of each range, in order.
    """
    if config.partitions == "auto":
        return plan_partitions(entries, lists, entry_bytes, int(config.memory))
    return list_ranges(entries, lists, config.partitions)


def partition_path(number: int) -> str:
    """Where a partition lies in the database folder."""
    return f"index/partition-{number:05d}.faissindex"


def assemble_partition(
    template: faiss.Index,
    first: int,
    end: int,
    parts: Sequence[TableFile],
    path: str,
    folder: Folder,
    report: Callable[[int], None],
    base: Path | None = None,
) -> tuple[TableEntry, int]:
    """Writes lists first to end - 1 of all parts as one index that stock Faiss opens by itself.

    It holds those lists' centroids alone, under a flat quantizer. Entries stand in part order, as if
    the parts had been added one after another to a single index; those of `base` come first.

    Args:
        template: The trained index.
        first: First list.
        end: One after the last list.
        parts: Codes files of all parts, in id order; each is sorted by list.
        path: Of the partition, relative to the folder.
        folder: The database.
        report: Told, now and again, how many more entries are done.
        base: A partition with the same lists, whose entries were added before.

    Returns:
        The partition's file, whose rows are the entries, and the sum of its lists' squared lengths.
    """
    index = _empty_partition(template, first, end)
    ivf = inverted_file(index)
    lists = faiss.ArrayInvertedLists(end - first, ivf.code_size)
    ivf.replace_invlists(lists, True)
    lists.this.disown()
    held = [(part, _first_row(part, first), _first_row(part, end)) for part in parts]
    before = read_index(base, faiss.IO_FLAG_MMAP) if base else None
    filled = np.zeros(end - first, np.int64)
    if before is not None:
        filled[:] = [inverted_file(before).invlists.list_size(n) for n in range(end - first)]
    # Sized before they are filled: lists that grow take up to twice their memory.
    sizes = filled.copy()
    for part, start, stop in held:
        sizes += np.bincount(part.read("list", start, stop) - first, minlength=end - first)
    for number, size in enumerate(sizes.tolist()):
        lists.resize(number, size)
        if before is not None and filled[number]:
            held_lists = inverted_file(before).invlists
            ids, codes = list_ids(held_lists, number), list_codes(held_lists, number)
            lists.update_entries(number, 0, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
    for part, start, stop in held:
        for number, ids, codes in _runs(part, start, stop):
            own, pointers = number - first, (faiss.swig_ptr(ids), faiss.swig_ptr(codes))
            lists.update_entries(own, int(filled[own]), len(ids), *pointers)
            filled[own] += len(ids)
        report(stop - start)
    index.ntotal = ivf.ntotal = int(filled.sum())
    with folder.writing(path) as temporary:
        faiss.write_index(index, str(temporary))
        return describe(temporary, path, ivf.ntotal), int((filled**2).sum())


def _runs(codes: TableFile, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Ids and codes of each list among some rows of a part, which is sorted by list."""
    if start == stop:
        return
    numbers, ids, found = (codes.read(name, start, stop) for name in ("list", "id", "code"))
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    for begin, finish in itertools.pairwise([*starts.tolist(), len(numbers)]):
        yield int(numbers[begin]), ids[begin:finish], found[begin:finish]


def _first_row(codes: TableFile, number: int) -> int:
    """The first row of a list, or of those behind it."""
    rows = range(codes.rows)
    return bisect.bisect_left(rows, number, key=lambda row: codes.read("list", row, row + 1)[0])


def _empty_partition(template: faiss.Index, first: int, end: int) -> faiss.Index:
    """The template without lists, its coarse quantizer holding centroids first to end - 1."""
    index = faiss.clone_index(template)
    ivf = inverted_file(index)
    centroids = inverted_file(template).quantizer.reconstruct_n(first, end - first)
    quantizer = faiss.IndexFlatL2(ivf.d)
    quantizer.add(centroids)
    replaced = ivf.quantizer
    ivf.quantizer = quantizer
    quantizer.this.disown()
    replaced.this.own(True)
    ivf.nlist = end - first
    return index
