"""The index: every list of every partition, a bool for each chunk in memory."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from retro_db.errors import DamagedFileError
from retro_db.index.refining import FINE_PATH
from retro_db.index.structure import faiss, inverted_file, list_codes, list_ids, read_index
from retro_db.manifest.files import FILE
from retro_db.meter import Meter
from retro_db.reader.database import Database
from retro_db.store.folder import FileEntry
from retro_db.verify.ledger import Check
from retro_db.verify.opened import Held

_CENTROIDS = 65_536


def open_lists(path: Path) -> faiss.IndexIVF:
    """The inverted lists of a memory-mapped partition; the index lives as long as they do.

    Args:
        path: Its file.

    Raises:
        DamagedFileError: The file is no index with inverted lists.
    """
    index = read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
    try:
        ivf = inverted_file(index)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: holds no inverted lists; run verify") from error
    ivf.referenced_objects = [index]
    return ivf


class Partitions:
    """The partitions of an index, opened where they are looked at.

    Args:
        database: Whose index.
        pool: Threads that count lists.

    Attributes:
        starts: Number of the first list of each partition, and behind the last.

    Raises:
        DamagedFileError: A file is no index.
    """

    def __init__(self, database: Database, pool: Executor) -> None:
        self._paths = [
            database.folder.verified(entry) for entry in database.manifest.partition_files
        ]
        counts = pool.map(lambda path: int(open_lists(path).nlist), self._paths)
        self.starts = [0, *itertools.accumulate(counts)]
        self._opened: dict[int, faiss.IndexIVF] = {}

    def open(self, number: int) -> faiss.IndexIVF:
        """One of them."""
        return open_lists(self._paths[number])

    def code(self, inverted_list: int, chunk: int) -> np.ndarray | None:
        """The code of a chunk in a list, uint8 [code_size]; None where it is not there."""
        number = int(np.searchsorted(self.starts, inverted_list, side="right")) - 1
        if number not in self._opened:
            self._opened[number] = self.open(number)
        held, own = self._opened[number].invlists, inverted_list - self.starts[number]
        ids = list_ids(held, own)
        row = int(np.searchsorted(ids, chunk))
        if row == len(ids) or ids[row] != chunk:
            return None
        return list_codes(held, own)[row]


class IndexExamination:
    """What is looked at in an index.

    Args:
        held: The database.
        partitions: Of its index.
        meter: Counts entries.
    """

    def __init__(self, held: Held, partitions: Partitions, meter: Meter) -> None:
        self._held = held
        self._partitions = partitions
        self._meter = meter
        self._manifest = held.database.manifest
        self._template = open_lists(held.database.folder.verified(self._manifest.template_file))
        self._seen = np.zeros(len(held.database), bool)
        self._lock = threading.Lock()

    def checks(self) -> Iterator[Check]:
        """One check for each partition."""
        for number, entry in enumerate(self._manifest.partition_files):
            run = functools.partial(self._check_partition, number, entry)
            yield Check(entry.path, [entry.path], run)

    def check_whole(self) -> Iterator[str]:
        """The lists are all there, and hold every chunk that belongs in them."""
        info, counts = self._manifest.index, self._manifest.counts
        path = self._manifest.template_file.path
        if int(self._template.nlist) != info.lists:
            yield f"{path}: {self._template.nlist} lists, {FILE} says {info.lists}"
        if self._partitions.starts[-1] != info.lists:
            yield f"index: {self._partitions.starts[-1]} lists in all, {FILE} says {info.lists}"
        if self._template.ntotal:
            yield f"{path}: it has entries of its own"
        if (entries := int(self._seen.sum())) != counts.indexed_chunks:
            yield f"index: {entries} chunks, {FILE} says {counts.indexed_chunks}"
        trained = ~self._held.held_out
        if (self._seen & ~trained).any():
            yield "index: it holds a chunk of the validation split"
        if missing := int((self._held.keyed & trained & ~self._seen).sum()):
            yield f"index: {missing} training chunks that have a key are not in it"
        if self._held.has_keys and (self._seen & ~self._held.keyed).any():
            yield "index: it holds a chunk that has no key"
        elif int((trained & ~self._seen).sum()) > counts.keyless_chunks:
            yield "index: it lacks more training chunks than have no key"

    def _check_partition(self, number: int, entry: FileEntry) -> Iterator[str]:
        """Its lists hold chunks of the database in ascending order, each in one list alone."""
        ivf, first = self._partitions.open(number), self._partitions.starts[number]
        entries = 0
        for own in range(ivf.nlist):
            ids = list_ids(ivf.invlists, own)
            entries += len(ids)
            if len(ids) and (ids.min() < 0 or ids.max() >= len(self._seen)):
                yield f"{entry.path}: list {first + own} has an id out of range"
                continue
            if (np.diff(ids) <= 0).any():
                yield f"{entry.path}: ids of list {first + own} do not ascend"
            with self._lock:
                twice = self._seen[ids].any()
                self._seen[ids] = True
            if twice:
                yield f"{entry.path}: a chunk of list {first + own} is in another list too"
            self._meter(len(ids))
        if entries != entry.rows or ivf.ntotal != entries:
            yield f"{entry.path}: {entries} entries, it says {ivf.ntotal} and {FILE} {entry.rows}"
        if (ivf.d, ivf.code_size) != (self._template.d, self._template.code_size):
            yield f"{entry.path}: its codes are not of the size of the trained index's"
        else:
            yield from self._check_centroids(ivf, first, entry)

    def _check_centroids(self, ivf: faiss.IndexIVF, first: int, entry: FileEntry) -> Iterator[str]:
        """Its lists are those of the trained index at its place."""
        whole = self._template
        if first + ivf.nlist > whole.nlist:
            return
        for start in range(0, ivf.nlist, _CENTROIDS):
            count = min(_CENTROIDS, ivf.nlist - start)
            own = ivf.quantizer.reconstruct_n(start, count)
            if not np.array_equal(own, whole.quantizer.reconstruct_n(first + start, count)):
                yield f"{entry.path}: its centroids are not those of the trained index"
                return


def check_fine(held: Held) -> Iterator[str]:
    """The quantizer of fine codes makes codes of the size that is stored."""
    size = held.database.manifest.index.fine_size
    if size and read_index(held.database.folder.local(FINE_PATH)).sa_code_size() != size:
        yield f"{FINE_PATH}: it makes no codes of {size} bytes"
