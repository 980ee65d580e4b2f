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
from retro_db.index.structure import (
    WITHOUT_TABLES,
    faiss,
    inverted_file,
    list_codes,
    list_ids,
    read_index,
)
from retro_db.manifest.sealing import FILE
from retro_db.meter import Meter
from retro_db.reader.database import Database
from retro_db.store.folder import FileEntry
from retro_db.verify.contradictions import check_key
from retro_db.verify.ledger import Check
from retro_db.verify.opened import OpenedCorpus

_CENTROIDS = 65_536


def open_lists(path: Path) -> faiss.IndexIVF:
    """Opens the inverted lists of a memory-mapped partition; the index lives as long as they do.

    Args:
        path: File of the partition.

    Raises:
        DamagedFileError: The file is not an index with inverted lists.
    """
    index = read_index(path, faiss.IO_FLAG_MMAP | WITHOUT_TABLES)
    try:
        ivf = inverted_file(index)
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: holds no inverted lists; run verify") from error
    ivf.referenced_objects = [index]
    return ivf


class Partitions:
    """The partitions of an index, each opened when it is needed.

    Args:
        database: Database of the index.
        pool: Threads that count lists.

    Attributes:
        starts: Number of the first list of each partition, and one behind the last list.

    Raises:
        DamagedFileError: A file is not an index.
    """

    def __init__(self, database: Database, pool: Executor) -> None:
        self._paths = [
            database.folder.verified(entry) for entry in database.manifest.partition_files
        ]
        counts = pool.map(lambda path: int(open_lists(path).nlist), self._paths)
        self.starts = [0, *itertools.accumulate(counts)]
        self._opened: dict[int, faiss.IndexIVF] = {}

    def open(self, number: int) -> faiss.IndexIVF:
        """Opens one partition."""
        return open_lists(self._paths[number])

    def ids(self, inverted_list: int) -> np.ndarray:
        """Returns the ids of the chunks in a list: int64 [n], ascending."""
        return list_ids(*self._place(inverted_list))

    def _place(self, inverted_list: int) -> tuple[faiss.InvertedLists, int]:
        """Returns the lists of the partition that holds a list, and its number among them."""
        number = int(np.searchsorted(self.starts, inverted_list, side="right")) - 1
        if number not in self._opened:
            self._opened[number] = self.open(number)
        return self._opened[number].invlists, inverted_list - self.starts[number]

    def code(self, inverted_list: int, chunk: int) -> np.ndarray | None:
        """Returns the code of a chunk in a list, uint8 [code_size]; None if the list lacks the chunk."""
        lists, position = self._place(inverted_list)
        ids = list_ids(lists, position)
        row = int(np.searchsorted(ids, chunk))
        if row == len(ids) or ids[row] != chunk:
            return None
        return list_codes(lists, position)[row]


class IndexExamination:
    """The checks of an index.

    Args:
        corpus: The database.
        partitions: Partitions of its index.
        meter: Counts entries.
    """

    def __init__(self, corpus: OpenedCorpus, partitions: Partitions, meter: Meter) -> None:
        self._corpus = corpus
        self._partitions = partitions
        self._meter = meter
        self._manifest = corpus.database.manifest
        self._trained = open_lists(corpus.database.folder.verified(self._manifest.template_file))
        self._seen = np.zeros(len(corpus.database), bool)
        self._lock = threading.Lock()

    def checks(self) -> Iterator[Check]:
        """Yields a check for each partition."""
        for number, entry in enumerate(self._manifest.partition_files):
            run = functools.partial(self._check_partition, number, entry)
            yield Check(entry.path, [entry.path], run)

    def check_whole(self) -> Iterator[str]:
        """Checks that no list is missing, and that they hold every chunk that belongs in them."""
        info, counts = self._manifest.index, self._manifest.counts
        path = self._manifest.template_file.path
        yield from check_key(self._manifest, self._trained)
        if int(self._trained.nlist) != info.lists:
            yield f"{path}: {self._trained.nlist} lists, {FILE} says {info.lists}"
        if self._partitions.starts[-1] != info.lists:
            yield f"index: {self._partitions.starts[-1]} lists in all, {FILE} says {info.lists}"
        if self._trained.ntotal:
            yield f"{path}: it has entries, which belong in the partitions"
        if (entries := int(self._seen.sum())) != counts.indexed_chunks:
            yield f"index: {entries} chunks, {FILE} says {counts.indexed_chunks}"
        training = ~self._corpus.held_out
        if (self._seen & ~training).any():
            yield "index: it holds a chunk of the validation split"
        if missing := int((self._corpus.embedded & training & ~self._seen).sum()):
            yield f"index: {missing} training chunks that have an embedding are not in it"
        if self._corpus.has_embeddings and (self._seen & ~self._corpus.embedded).any():
            yield "index: it holds a chunk without an embedding"
        elif int((training & ~self._seen).sum()) > counts.keyless_chunks:
            yield "index: it lacks more training chunks than the chunks without an embedding"

    def _check_partition(self, number: int, entry: FileEntry) -> Iterator[str]:
        """Checks that the lists hold chunks of the database in ascending order, each in one list alone."""
        ivf, first = self._partitions.open(number), self._partitions.starts[number]
        entries = 0
        for position in range(ivf.nlist):
            ids = list_ids(ivf.invlists, position)
            entries += len(ids)
            if len(ids) and (ids.min() < 0 or ids.max() >= len(self._seen)):
                yield f"{entry.path}: list {first + position} has an id out of range"
                continue
            if (np.diff(ids) <= 0).any():
                yield f"{entry.path}: ids of list {first + position} do not ascend"
            with self._lock:
                twice = self._seen[ids].any()
                self._seen[ids] = True
            if twice:
                yield f"{entry.path}: a chunk of list {first + position} is in another list too"
            self._meter(len(ids))
        if entries != entry.rows or ivf.ntotal != entries:
            yield f"{entry.path}: {entries} entries, it says {ivf.ntotal} and {FILE} {entry.rows}"
        if (ivf.d, ivf.code_size) != (self._trained.d, self._trained.code_size):
            yield f"{entry.path}: its codes and those of the trained index differ in size"
        else:
            yield from self._check_centroids(ivf, first, entry)

    def _check_centroids(self, ivf: faiss.IndexIVF, first: int, entry: FileEntry) -> Iterator[str]:
        """Checks that the lists have the centroids of the same lists of the trained index."""
        whole = self._trained
        if first + ivf.nlist > whole.nlist:
            return
        for start in range(0, ivf.nlist, _CENTROIDS):
            count = min(_CENTROIDS, ivf.nlist - start)
            centroids = ivf.quantizer.reconstruct_n(start, count)
            if not np.array_equal(centroids, whole.quantizer.reconstruct_n(first + start, count)):
                yield f"{entry.path}: its centroids are not those of the trained index"
                return


def check_fine(corpus: OpenedCorpus) -> Iterator[str]:
    """Checks that the quantizer of fine codes makes codes of the size that is stored."""
    size = corpus.database.manifest.index.fine_size
    if size and read_index(corpus.database.folder.local(FINE_PATH)).sa_code_size() != size:
        yield f"{FINE_PATH}: its codes do not have {size} bytes"
