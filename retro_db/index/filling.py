"""Filling: parts become codes independently, and ranges of lists become partitions."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from retro_db.index.structure import faiss, inverted_file, transform
from retro_db.index.training import PartKeys
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.store.tables import IpcFile, TableWriter
from retro_db.threads import use_faiss_threads

_BLOCK_ROWS = 8192


def encode_part(
    part: PartKeys,
    path: str,
    template: faiss.Index,
    threads: int,
    folder: Folder,
    report: Callable[[int], None],
) -> FileEntry:
    """Codes of one part's indexed chunks: what adding them to the template would store.

    Args:
        part: Its keys.
        path: Of the codes file, relative to the folder.
        template: The trained index.
        threads: Blocks of keys encoded side by side; the result does not depend on it.
        folder: The database.
        report: Told, now and again, how many more chunks are done.

    Returns:
        The codes file.
    """
    ivf = inverted_file(template)
    rows = np.flatnonzero(part.indexed)
    lists = np.empty(len(rows), np.int64)
    codes = np.empty((len(rows), ivf.code_size), np.uint8)

    def encode(start: int) -> int:
        stop = min(start + _BLOCK_ROWS, len(rows))
        chosen = rows[start:stop]
        vectors = part.embeddings.read("vector", chosen[0], chosen[-1] + 1)[chosen - chosen[0]]
        lists[start:stop], codes[start:stop] = encode_keys(
            template, ivf, vectors.astype(np.float32)
        )
        return stop - start

    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(encode, range(0, len(rows), _BLOCK_ROWS)):
            report(done)
    order = np.argsort(lists, kind="stable")
    table = contract("codes")
    with folder.writing(path) as temporary:
        schema = table.schema(code_size=ivf.code_size)
        with TableWriter(temporary, schema, table.batch_rows) as writer:
            for start in range(0, len(order), table.batch_rows):
                piece = order[start : start + table.batch_rows]
                writer.append(
                    {
                        "list": lists[piece].astype(np.int32),
                        "id": rows[piece] + part.first_id,
                        "code": codes[piece],
                    }
                )
        return describe(temporary, path, writer.rows)


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


def list_ranges(lists: int, partitions: int) -> list[tuple[int, int]]:
    """Cuts the lists into about equal ranges: `partitions` of them, or one for each list.

    Args:
        lists: Inverted lists in all.
        partitions: Ranges wanted.

    Returns:
        First list and one after the last of each range, in order, none empty.
    """
    count = min(partitions, lists)
    bounds = [lists * position // count for position in range(count + 1)]
    return list(itertools.pairwise(bounds))


def partition_path(number: int) -> str:
    """Where a partition lies in the database folder."""
    return f"index/partition-{number:05d}.faissindex"


def assemble_partition(
    template: faiss.Index,
    first: int,
    end: int,
    parts: Sequence[IpcFile],
    path: str,
    folder: Folder,
    report: Callable[[int], None],
) -> FileEntry:
    """Writes lists first to end - 1 of all parts as one index that stock Faiss opens by itself.

    It holds those lists' centroids alone, under a flat quantizer. Entries stand in part order, as if
    the parts had been added one after another to a single index.

    Args:
        template: The trained index.
        first: First list.
        end: One after the last list.
        parts: Codes files of all parts, in id order; each is sorted by list.
        path: Of the partition, relative to the folder.
        folder: The database.
        report: Told, now and again, how many more entries are done.

    Returns:
        The partition's file; its rows are the entries.
    """
    index = _empty_partition(template, first, end)
    ivf = inverted_file(index)
    lists = faiss.ArrayInvertedLists(end - first, ivf.code_size)
    ivf.replace_invlists(lists, True)
    lists.this.disown()
    for part in parts:
        for number, ids, codes in _runs(part, first, end):
            lists.add_entries(number - first, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
            ivf.ntotal += len(ids)
            report(len(ids))
    index.ntotal = ivf.ntotal
    with folder.writing(path) as temporary:
        faiss.write_index(index, str(temporary))
        return describe(temporary, path, ivf.ntotal)


def _runs(codes: IpcFile, first: int, end: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Ids and codes of each list of a range that a part has entries in."""
    # The file is sorted by list, so that its range is found without reading the rest.
    start, stop = (_first_row(codes, number) for number in (first, end))
    if start == stop:
        return
    numbers = codes.read("list", start, stop)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    for begin, finish in zip(starts, [*starts[1:], len(numbers)], strict=True):
        ids = np.ascontiguousarray(codes.read("id", start + begin, start + finish))
        found = np.ascontiguousarray(codes.read("code", start + begin, start + finish))
        yield int(numbers[begin]), ids, found


def _first_row(codes: IpcFile, number: int) -> int:
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
