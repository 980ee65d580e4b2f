"""Reading a database: NumPy views of memory-mapped files, addressed by global id."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from retro_db.errors import InputError
from retro_db.manifest.model import Manifest, Tables
from retro_db.manifest.sealing import FILE, manifest_path, read_manifest
from retro_db.printing import redacted
from retro_db.reader.opening import open_table, read_documents, read_rows
from retro_db.reader.removals import Removals
from retro_db.reader.standing import stamp_of, standing
from retro_db.reader.stored_chunks import Chunks
from retro_db.reader.stored_neighbors import Neighbors
from retro_db.store.cache import Cache, parse_bytes
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry
from retro_db.store.gathering import ColumnReader, Table


def open(  # noqa: A001 - read as retro_db.open
    url: str,
    generation: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int | str | None = None,
) -> Database:
    """Opens a finished database.

    On an object store it is read through copies of its files, each fetched whole when something in it is
    first read. All processes of this machine that name the same cache share them. On a local disk the
    files are read in place, and `cache` and `cache_bytes` have no effect.

    Args:
        url: Folder of the database: a path or any fsspec URL.
        generation: Generation to open; by default the current one.
        cache: Folder for the copies, on a local disk with `flock`; by default `retro-db-cache-UID` in the
            folder for temporary files.
        cache_bytes: Bytes that the copies may take together, as a number or a text such as `200GB`: at
            least the size of the largest file. The least recently used copies are removed to make room.
            By default, half of what the disk has free besides the copies.

    Raises:
        NotADatabaseError: The folder has no manifest.
        UnsupportedVersionError: This release does not read its format.
        ManifestError: The manifest is damaged.
        InputError: The generation does not exist, or `cache_bytes` is not a size.
    """
    limit = None if cache_bytes is None else parse_bytes(cache_bytes)
    folder = Folder(str(url), cache=Cache(os.fspath(cache or ""), limit))
    stamp = stamp_of(folder, FILE)
    current = read_manifest(folder)
    if generation is None or generation == current.generation:
        return Database(standing(folder, current, stamp), current)
    earlier = range(1, current.generation)
    if generation not in earlier or not folder.exists(manifest_path(generation)):
        known = [str(number) for number in earlier if folder.exists(manifest_path(number))]
        raise InputError(
            f"generation: {folder.url} has no generation {generation}; known: "
            + ", ".join([*known, str(current.generation)])
        )
    kept = read_manifest(folder, manifest_path(generation))
    return Database(standing(folder, kept, stamp), kept)


class Corpus:
    """Chunks that have neighbors, read-only: the database's own, or a query corpus's.

    Picklable: files are reopened when they are next used.

    Attributes:
        folder: Folder of the database.
        manifest: Manifest of the database.
        tables: Files of the corpus.
        found_in: Corpus that the neighbor ids refer to; None for the corpus itself.
    """

    def __init__(
        self, folder: Folder, manifest: Manifest, tables: Tables, found_in: Corpus | None = None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tables = tables
        self.found_in = found_in
        self._tables: dict[str, Table] = {}

    def __reduce__(self) -> tuple[type[Corpus], tuple[Any, ...]]:
        return Corpus, (self.folder, self.manifest, self.tables, self.found_in)

    def __repr__(self) -> str:
        return f"<retro_db.Corpus in {redacted(self.folder.url)!r}: {len(self):,} chunks>"

    def __len__(self) -> int:
        return sum(entry.rows for entry in self.tables.chunks)

    @functools.cached_property
    def chunks(self) -> Chunks:
        """Tokens of the chunks, by `chunks[ids]` and `chunks.values(ids)`."""
        pad_id = self.manifest.chunk.pad_id
        return Chunks(self.table("chunks"), self.first_chunks, self.first_documents, pad_id)

    @functools.cached_property
    def neighbors(self) -> Neighbors:
        """Neighbors of the chunks without removed ones, by `neighbors[ids]`, `neighbors.distances(ids)`."""
        found_in = self if self.found_in is None else self.found_in
        removals = found_in.removals if found_in.tables.removed else None
        return Neighbors(self.table("neighbors"), len(found_in), removals, self.folder.url)

    @functools.cached_property
    def embeddings(self) -> ColumnReader:
        """Embeddings of the chunks by `embeddings[ids]`, float16 [n, d]; all zeros if a chunk has none.

        Raises:
            InputError: The build did not keep them.
        """
        if not self.tables.embeddings and len(self):
            raise InputError(
                f"{self.folder.url}: embeddings were not kept; build with embeddings.keep: true"
            )
        return self.column("embeddings", "vector")

    @functools.cached_property
    def documents(self) -> pa.Table:
        """One row per document, with source, id, first_chunk (a global chunk id), chunk_count and split.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        tables = list(self.document_parts())
        return pa.concat_tables(tables) if tables else contract("documents").schema().empty_table()

    def document_parts(self) -> Iterator[pa.Table]:
        """The rows of `documents`, one table for each file, in order.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        for number in range(len(self.tables.documents)):
            yield self._document_part(number)

    def documents_at(self, rows: np.ndarray) -> pa.Table:
        """Rows of `documents`; only the files that have some of them are read.

        Args:
            rows: int64 [n], such as `chunks.documents(ids)`.

        Returns:
            n rows, in that order.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        parts = np.searchsorted(self.first_documents, rows, side="right") - 1
        pieces = [contract("documents").schema().empty_table()]
        for part in np.unique(parts):
            rows_in_part = rows[parts == part] - self.first_documents[part]
            pieces.append(self._document_part(int(part)).take(rows_in_part))
        return pa.concat_tables(pieces).take(np.argsort(np.argsort(parts, kind="stable")))

    @functools.cached_property
    def first_documents(self) -> np.ndarray:
        """First row of `documents` in each file, and the number of all rows, int64 [files + 1]."""
        return _starts(self.tables.documents)

    def _document_part(self, number: int) -> pa.Table:
        """The documents of one file, with global ids of their first chunks."""
        entry, chunks = self.tables.documents[number], self.tables.chunks[number]
        table = read_documents(self.folder, entry, chunks.rows)
        position = table.schema.get_field_index("first_chunk")
        shifted = pa.array(table["first_chunk"].to_numpy() + self.first_chunks[number])
        return table.set_column(position, table.schema.field(position), shifted)

    @functools.cached_property
    def first_chunks(self) -> np.ndarray:
        """Id of the first chunk in each file, and the number of all chunks, int64 [files + 1]."""
        return _starts(self.tables.chunks)

    @functools.cached_property
    def removals(self) -> Removals:
        """The removed documents and their chunks."""
        return Removals(self.folder, self.tables)

    @property
    def removed(self) -> np.ndarray:
        """Rows of `documents` that were removed, int64 [R], ascending.

        They and their chunks keep their ids and can be read; they are neither neighbors nor
        training text.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        return self.removals.documents

    @property
    def removed_chunks(self) -> np.ndarray:
        """Ids of the removed documents' chunks, int64 [n], ascending."""
        return self.removals.chunks

    def is_removed(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """Whether chunks belong to a removed document.

        Args:
            ids: Chunk ids of any shape, such as rows of neighbors; -1 marks a missing neighbor.

        Returns:
            bool, in the shape of the ids; False for -1.
        """
        return self.removals.has_chunks(ids)

    @functools.cached_property
    def renumbered(self) -> pa.Table:
        """The map from old chunk ids to new ones in a compacted database, of old_first, new_first and count.

        One row for each run of consecutive chunks; empty if the database was not compacted.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        tables = [read_rows(self.folder, entry, "renumbered") for entry in self.tables.renumbered]
        return pa.concat_tables(tables) if tables else contract("renumbered").schema().empty_table()

    def column(self, table: str, column: str) -> ColumnReader:
        """One column of an Arrow table over all its files.

        Args:
            table: chunks, embeddings, fine or neighbors.
            column: Name of the column.

        Returns:
            A reader that takes global chunk ids.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        return self.table(table).column(column)

    def table(self, name: str) -> Table:
        """An Arrow table with its files open: chunks, embeddings, fine or neighbors.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        if name not in self._tables:
            entries = getattr(self.tables, name)
            self._tables[name] = open_table(self.folder, entries, name, self.parameters)
        return self._tables[name]

    @property
    def parameters(self) -> dict[str, str | int]:
        """Values for the parameters in the contracts' column types."""
        return self.manifest.type_parameters


class Database(Corpus):
    """A database, read-only. Picklable: files are reopened when they are next used.

    Attributes:
        folder: Folder of the database.
        manifest: Manifest of the database.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        super().__init__(folder, manifest, manifest.tables)

    def __reduce__(self) -> tuple[type[Corpus], tuple[Any, ...]]:
        return Database, (self.folder, self.manifest)

    def __repr__(self) -> str:
        return f"<retro_db.Database {redacted(self.folder.url)!r}: {len(self):,} chunks>"

    @functools.cached_property
    def queries(self) -> dict[str, Corpus]:
        """The query corpora by name. Their chunk ids count from 0; their neighbors are the database's."""
        return {
            query.source.name: Corpus(self.folder, self.manifest, query.tables, self)
            for query in self.manifest.queries
        }

    def check_k(self, k: int) -> None:
        """Checks that k neighbors are stored for each chunk.

        Raises:
            InputError: k is below 1, or fewer are stored.
        """
        stored = self.manifest.neighbors.k
        if not 1 <= k <= stored:
            raise InputError(f"k: {k} is not between 1 and the {stored} neighbors stored")

    def corpus(self, queries: str | None) -> Corpus:
        """A query corpus by its name, or for None the database's own chunks.

        Raises:
            InputError: The database has no query corpus of that name.
        """
        if queries is None:
            return self
        if queries not in self.queries:
            known = ", ".join(self.queries) or "none"
            raise InputError(f"queries: {queries} is not in the database; known: {known}")
        return self.queries[queries]

    @functools.cached_property
    def fine_codes(self) -> ColumnReader:
        """Fine codes of the embeddings, uint8 [n, bytes], stored if embeddings were not kept."""
        return self.column("fine", "code")


def _starts(entries: list[TableEntry]) -> np.ndarray:
    """First global row of every file, and the total: int64 [files + 1]."""
    return np.cumsum([0, *(entry.rows for entry in entries)], dtype=np.int64)
