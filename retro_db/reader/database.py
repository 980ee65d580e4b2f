"""Reading a database: NumPy views of memory-mapped files, addressed by global id."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from retro_db.errors import DamagedFileError, InputError
from retro_db.manifest.files import manifest_path, read_manifest
from retro_db.manifest.model import Manifest, Tables
from retro_db.printing import redacted
from retro_db.reader.opening import open_table, read_documents, read_rows
from retro_db.reader.removals import Removals
from retro_db.reader.rows import pack
from retro_db.store.cache import Cache, parse_bytes
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry
from retro_db.store.gathering import ColumnReader, Rows, Table


def open(  # noqa: A001 - read as retro_db.open
    url: str,
    generation: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int | str | None = None,
) -> Database:
    """Opens a finished database.

    On an object store it is read through copies of its files, each fetched whole when something in it is
    first read. All processes of this machine that name the same cache share them. On a local disk the
    files are read where they are, and `cache` and `cache_bytes` mean nothing.

    Args:
        url: Its folder: a path or any fsspec URL.
        generation: Which one is wanted, as it was; the current one where left out.
        cache: Folder for the copies, on a local disk with `flock`; `retro-db-cache-UID` in the folder for
            temporary files where left out.
        cache_bytes: What the copies may take together, as a number or such as `200GB`: at least the
            largest file. The least recently used leave for others. Where left out, half of what the disk
            has free besides them.

    Raises:
        NotADatabaseError: There is no manifest.
        UnsupportedVersionError: This release does not read its format.
        ManifestError: The manifest is damaged.
        InputError: There is no such generation, or `cache_bytes` is no size.
    """
    limit = None if cache_bytes is None else parse_bytes(cache_bytes)
    folder = Folder(str(url), cache=Cache(os.fspath(cache or ""), limit))
    current = read_manifest(folder)
    if generation is None or generation == current.generation:
        return Database(folder, current)
    earlier = range(1, current.generation)
    if generation not in earlier or not folder.exists(manifest_path(generation)):
        known = [str(one) for one in earlier if folder.exists(manifest_path(one))]
        raise InputError(
            f"generation: {folder.url} has no generation {generation}; known: "
            + ", ".join([*known, str(current.generation)])
        )
    return Database(folder, read_manifest(folder, manifest_path(generation)))


class Corpus:
    """Chunks that have neighbors, read-only: those of the database, or of a query corpus.

    Picklable: files are reopened where they are next used.

    Attributes:
        folder: Where the database is.
        manifest: What it holds.
        tables: The corpus's files.
        found_in: Whose chunks the neighbors are, where not its own.
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
        """Tokens: `chunks[ids]`, `chunks.values(ids)`."""
        return Chunks(self)

    @functools.cached_property
    def neighbors(self) -> Neighbors:
        """Neighbors that were not removed: `neighbors[ids]`, `neighbors.distances(ids)`."""
        return Neighbors(self, self if self.found_in is None else self.found_in)

    @functools.cached_property
    def embeddings(self) -> ColumnReader:
        """Keys: `embeddings[ids]`, float16 [n, d]; all zeros where a chunk has none.

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
        """One row per document: source, id, first_chunk (a global chunk id), chunk_count, split.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        tables = list(self.document_parts())
        return pa.concat_tables(tables) if tables else contract("documents").schema().empty_table()

    def document_parts(self) -> Iterator[pa.Table]:
        """The documents file by file, in order; together they are `documents`.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        for number in range(len(self.tables.documents)):
            yield self._document_part(number)

    def documents_at(self, rows: np.ndarray) -> pa.Table:
        """Rows of `documents`, of which only the files that hold them are read.

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
            own = rows[parts == part] - self.first_documents[part]
            pieces.append(self._document_part(int(part)).take(own))
        return pa.concat_tables(pieces).take(np.argsort(np.argsort(parts, kind="stable")))

    @functools.cached_property
    def first_documents(self) -> np.ndarray:
        """Row of `documents` that each file begins with, and the one behind the last: int64 [files + 1]."""
        return _starts(self.tables.documents)

    def _document_part(self, number: int) -> pa.Table:
        """The documents of one file, their first chunks as global ids."""
        entry, chunks = self.tables.documents[number], self.tables.chunks[number]
        table = read_documents(self.folder, entry, chunks.rows)
        position = table.schema.get_field_index("first_chunk")
        shifted = pa.array(table["first_chunk"].to_numpy() + self.first_chunks[number])
        return table.set_column(position, table.schema.field(position), shifted)

    @functools.cached_property
    def first_chunks(self) -> np.ndarray:
        """Id of the first chunk of each file, and the one behind the last: int64 [files + 1]."""
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
        """Of a compacted database, where chunks of the one before have gone: old_first, new_first, count.

        One row for each run of consecutive chunks; empty where nothing was compacted.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        tables = [read_rows(self.folder, entry, "renumbered") for entry in self.tables.renumbered]
        return pa.concat_tables(tables) if tables else contract("renumbered").schema().empty_table()

    def column(self, table: str, column: str) -> ColumnReader:
        """One column of an Arrow table over all its files.

        Args:
            table: chunks, embeddings, fine or neighbors.
            column: One of its columns.

        Returns:
            A reader that takes global chunk ids.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        return self.table(table).column(column)

    def table(self, name: str) -> Table:
        """An Arrow table with its files open.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        if name not in self._tables:
            entries = getattr(self.tables, name)
            self._tables[name] = open_table(self.folder, entries, name, self.parameters)
        return self._tables[name]

    @property
    def parameters(self) -> dict[str, str | int]:
        """Values of the parameters that the contracts' types name."""
        return self.manifest.type_parameters


class Database(Corpus):
    """A database, read-only. Picklable: files are reopened where they are next used.

    Attributes:
        folder: Where it is.
        manifest: What it holds.
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
        """Checks a number of neighbors that is wanted for each chunk.

        Raises:
            InputError: So many are not stored.
        """
        stored = self.manifest.neighbors.k
        if not 1 <= k <= stored:
            raise InputError(f"k: {k} is not between 1 and the {stored} neighbors stored")

    def corpus(self, queries: str | None) -> Corpus:
        """A query corpus by its name, or the database's own chunks where there is none.

        Raises:
            InputError: There is no such query corpus.
        """
        if queries is None:
            return self
        if queries not in self.queries:
            known = ", ".join(self.queries) or "none"
            raise InputError(f"queries: {queries} is not in the database; known: {known}")
        return self.queries[queries]

    @functools.cached_property
    def fine_codes(self) -> ColumnReader:
        """Fine codes of the keys, uint8 [n, bytes], where embeddings were not kept."""
        return self.column("fine", "code")


class Chunks:
    """Tokens by global chunk id."""

    def __init__(self, corpus: Corpus) -> None:
        self._table = corpus.table("chunks")
        self._tokens = self._table.column("tokens")
        self._lengths = self._table.column("length")
        self._documents = self._table.column("document")
        self._chunk_starts = corpus.first_chunks
        self._document_starts = corpus.first_documents
        self._pad_id = corpus.manifest.chunk.pad_id

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Tokens, uint16 or uint32 [n, m], padded; ids of any shape, one id, or a slice.

        Raises:
            IndexError: An id is out of range.
        """
        return self._tokens[ids]

    def lengths(self, ids: np.ndarray | list[int] | slice) -> np.ndarray:
        """Tokens before the padding, uint16 [n]."""
        return self._lengths[ids]

    def documents(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """Global document rows, int64 [n]."""
        wanted = np.asarray(ids, dtype=np.int64)
        part = np.searchsorted(self._chunk_starts, wanted, side="right") - 1
        return self._documents[wanted] + self._document_starts[part]

    def values(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """[N, F]: each chunk with its continuation in the same document (paper, section 2.3).

        Args:
            ids: int64 [n], or of any shape, such as rows of neighbors without -1.

        Returns:
            uint16 or uint32 [n, 2 m]; F is all padding after a document's last chunk.

        Raises:
            IndexError: An id is out of range.
        """
        return self.values_and_lengths(ids)[0]

    def values_and_lengths(self, ids: np.ndarray | list[int]) -> tuple[np.ndarray, np.ndarray]:
        """What `values` and `value_lengths` give, in one pass."""
        rows = self._table.rows(ids)
        lengths = self._value_lengths(rows)
        values = self._table.take_pairs("tokens", rows)
        values[..., 1, :][lengths[..., 1] == 0] = self._pad_id
        return values.reshape(*values.shape[:-2], 2 * values.shape[-1]), lengths

    def value_lengths(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """Tokens before the padding of N and of F: int64 [n, 2], 0 where there is no F."""
        return self._value_lengths(self._table.rows(ids))

    def _value_lengths(self, rows: Rows) -> np.ndarray:
        documents = self._table.take_pairs("document", rows)
        lengths = self._table.take_pairs("length", rows).astype(np.int64)
        lengths[..., 1] *= documents[..., 0] == documents[..., 1]
        return lengths


class Neighbors:
    """Neighbors by global chunk id. Removed chunks are passed over.

    Args:
        corpus: Whose chunks have the neighbors.
        found_in: Whose chunks the neighbors are.
    """

    def __init__(self, corpus: Corpus, found_in: Corpus) -> None:
        self._ids = corpus.column("neighbors", "ids")
        self._distances = corpus.column("neighbors", "distances")
        self._removals = found_in.removals if found_in.tables.removed else None
        self._count = len(found_in)
        self._url = corpus.folder.url

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Chunk ids of other documents, nearest first, int64 [n, k]; -1 where there is none.

        Raises:
            DamagedFileError: What is stored is no chunk's id.
        """
        stored = self._ids[ids]
        if stored.size and (stored.min() < -1 or stored.max() >= self._count):
            raise DamagedFileError(f"{self._url}: neighbors: an id is out of range; run verify")
        removed = self._removed_among(stored)
        return stored if removed is None else pack(stored, ~removed, -1)

    def distances(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Their squared L2 distances, float32 [n, k]; infinity where there is none."""
        stored = self._distances[ids]
        if self._removals is None:
            return stored
        removed = self._removed_among(self._ids[ids])
        return stored if removed is None else pack(stored, ~removed, np.inf)

    def _removed_among(self, stored: np.ndarray) -> np.ndarray | None:
        """Which of some stored neighbors were removed, bool [n, k]; None if none was."""
        if self._removals is None:
            return None
        removed = self._removals.has_chunks(stored)
        return removed if removed.any() else None


def _starts(entries: list[TableEntry]) -> np.ndarray:
    """First global row of every file, and the total: int64 [files + 1]."""
    return np.cumsum([0, *(entry.rows for entry in entries)], dtype=np.int64)
