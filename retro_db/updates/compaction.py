"""Compacting: the same database without what was removed, its chunks renumbered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from retro_db.index.structure import (
    faiss,
    inverted_file,
    list_codes,
    list_ids,
    read_index,
)
from retro_db.manifest.model import TRAIN
from retro_db.reader.database import Database
from retro_db.store.contracts import contract
from retro_db.store.embedded import is_embedded
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.gathering import Table
from retro_db.store.parquet_tables import read_parquet
from retro_db.store.tables import TableFile
from retro_db.store.writing import TableWriter


@dataclass(frozen=True)
class Renumbering:
    """The map from old ids of chunks to new ones, as runs of consecutive chunks that were kept.

    Attributes:
        old_first: int64 [r], ascending, first id of each run before the compaction.
        new_first: int64 [r], id of the same chunk after it.
        count: int64 [r], number of chunks of each run.
    """

    old_first: np.ndarray
    new_first: np.ndarray
    count: np.ndarray

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Returns new ids of old ones, int64 of the same shape; -1 for -1 and for removed chunks."""
        if not len(self.old_first):
            return np.full(np.shape(ids), -1, np.int64)
        run = np.maximum(np.searchsorted(self.old_first, ids, side="right") - 1, 0)
        offset = ids - self.old_first[run]
        kept = (offset >= 0) & (offset < self.count[run])
        return np.where(kept, self.new_first[run] + offset, -1)


def write_renumbering(folder: Folder, renumbering: Renumbering) -> TableEntry:
    """Writes the map from old ids to new, a table of the new database.

    Args:
        folder: Folder of the new database.
        renumbering: Renumbering of all chunks of the old database.
    """
    columns = {name: getattr(renumbering, name) for name in contract("renumbered").schema().names}
    return _write("renumbered", 0, contract("renumbered").schema(), [columns], folder)


def read_renumbering(folder: Folder, entry: TableEntry) -> Renumbering:
    """Reads what `write_renumbering` wrote."""
    schema = contract("renumbered").schema()
    with folder.holding(entry) as path:
        table = read_parquet(path, schema, entry.rows, entry.path)
    return Renumbering(**{name: table[name].to_numpy() for name in schema.names})


def renumber(database: Database) -> Renumbering:
    """Returns the runs of chunks of a database that are not removed."""
    documents = database.documents
    kept = documents["chunk_count"].to_numpy() > 0
    kept[database.removals.documents] = False
    firsts = documents["first_chunk"].to_numpy()[kept]
    counts = documents["chunk_count"].to_numpy()[kept]
    if not len(firsts):
        return Renumbering(*(np.empty(0, np.int64) for _ in range(3)))
    starts = np.flatnonzero(np.append(True, firsts[1:] != (firsts + counts)[:-1]))
    count = np.add.reduceat(counts, starts)
    return Renumbering(firsts[starts], np.cumsum(count) - count, count)


@dataclass(frozen=True)
class OldPart:
    """One part of the database that is compacted.

    Attributes:
        documents: Documents of the part, rows as in its file.
        kept: bool [documents], False for removed documents.
        chunks: Open chunks file of the part.
        embeddings: Open embeddings file of the part.
    """

    documents: pa.Table
    kept: np.ndarray
    chunks: TableFile
    embeddings: TableFile

    @property
    def kept_rows(self) -> np.ndarray:
        """Rows of the chunks that stay: int64 [n]."""
        counts = self.documents["chunk_count"].to_numpy()
        return np.flatnonzero(np.repeat(self.kept, counts))


@dataclass(frozen=True)
class CompactedPart:
    """What remains of a part: its files, which are empty if nothing remains, and their counts."""

    source: str
    chunks: TableEntry
    documents: TableEntry
    embeddings: TableEntry
    tokens: int
    validation_chunks: int
    keyless: int


def compact_part(
    old: OldPart, number: int, folder: Folder, report: Callable[[int], None]
) -> CompactedPart:
    """Writes the documents, chunks and embeddings of a part that were not removed.

    Args:
        old: The part before the compaction.
        number: Number of the part in the names of its files.
        folder: Folder of the new database.
        report: Called with the number of chunks written since the last call.
    """
    documents = old.documents.filter(pa.array(old.kept))
    counts = documents["chunk_count"].to_numpy()
    rows = old.kept_rows
    columns = {name: documents[name].to_pylist() for name in ("source", "id", "split")}
    columns |= {"first_chunk": np.cumsum(counts) - counts, "chunk_count": counts}
    renamed = np.cumsum(old.kept) - 1
    tokens, keyless = 0, 0

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        nonlocal tokens
        table = Table([old.chunks])
        for piece in _pieces(rows, old.chunks.batch_rows):
            located = table.rows(piece)
            read = {name: table.take(name, located) for name in ("tokens", "length", "document")}
            tokens += int(read["length"].sum(dtype=np.int64))
            report(len(piece))
            yield read | {"document": renamed[read["document"]]}

    def vectors() -> Iterator[dict[str, np.ndarray]]:
        nonlocal keyless
        column = Table([old.embeddings]).column("vector")
        for piece in _pieces(rows, old.embeddings.batch_rows):
            embeddings = column[piece]
            keyless += int((~is_embedded(embeddings)).sum())
            yield {"vector": embeddings}

    held_out = np.array(columns["split"]) != TRAIN if len(counts) else np.empty(0, bool)
    return CompactedPart(
        source=columns["source"][0] if len(counts) else "",
        chunks=_write("chunks", number, old.chunks.schema, chunks(), folder),
        documents=_write("documents", number, contract("documents").schema(), [columns], folder),
        embeddings=_write("embeddings", number, old.embeddings.schema, vectors(), folder),
        tokens=tokens,
        validation_chunks=int(counts[held_out].sum()),
        keyless=keyless,
    )


def _pieces(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _write(
    table: str, number: int, schema: pa.Schema, batches: object, folder: Folder
) -> TableEntry:
    agreed = contract(table)
    path = agreed.name(number, 0)
    with folder.writing(path) as temporary:
        parquet = agreed.format == "parquet"
        with TableWriter(temporary, schema, agreed.batch_rows, parquet=parquet) as writer:
            for batch in batches:  # type: ignore[attr-defined]
                writer.append(batch)
        return describe(temporary, path, writer.rows)


def compact_partition(
    partition: Path, renumbering: Renumbering, path: str, folder: Folder
) -> tuple[TableEntry, np.ndarray]:
    """Writes a range of inverted lists without removed chunks, the others under their new ids.

    Args:
        partition: File of the range before the compaction.
        renumbering: Renumbering of all chunks.
        path: Path of the new partition, relative to the folder.
        folder: Folder of the new database.

    Returns:
        The partition's file, whose rows are the entries, and the entries of each list, int64 [lists].
    """
    index = read_index(partition)
    ivf = inverted_file(index)
    before = ivf.invlists
    lists = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    lengths = np.zeros(ivf.nlist, np.int64)
    for number in range(ivf.nlist):
        ids = renumbering.of(list_ids(before, number))
        codes = np.ascontiguousarray(list_codes(before, number)[ids >= 0])
        ids = np.ascontiguousarray(ids[ids >= 0])
        if len(ids):
            lists.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        lengths[number] = len(ids)
    ivf.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = ivf.ntotal = lists.compute_ntotal()
    with folder.writing(path) as temporary:
        faiss.write_index(index, str(temporary))
        return describe(temporary, path, int(ivf.ntotal)), lengths
