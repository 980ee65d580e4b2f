"""Reading a database: NumPy views of memory-mapped files, addressed by global id."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.errors import DamagedFileError, InputError
from retro_db.manifest import Manifest, Tables, read_manifest
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.tables import ColumnReader, IpcFile


def open(url: str) -> Database:  # noqa: A001 - read as retro_db.open
    """Opens a finished database.

    Args:
        url: Its folder: a path or any fsspec URL.

    Raises:
        NotADatabaseError: There is no manifest.
        UnsupportedVersionError: This release does not read its format.
        ManifestError: The manifest is damaged.
    """
    folder = Folder(str(url))
    return Database(folder, read_manifest(folder))


class Corpus:
    """Chunks that have neighbors, read-only: those of the database, or of a query corpus.

    Picklable: files are reopened where they are next used.

    Attributes:
        folder: Where the database is.
        manifest: What it holds.
        tables: The corpus's files.
    """

    def __init__(self, folder: Folder, manifest: Manifest, tables: Tables) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tables = tables
        self._files: dict[str, list[IpcFile]] = {}

    def __reduce__(self) -> tuple[type[Corpus], tuple[Any, ...]]:
        return Corpus, (self.folder, self.manifest, self.tables)

    def __repr__(self) -> str:
        return f"<retro_db.Corpus in {self.folder.url!r}: {len(self):,} chunks>"

    def __len__(self) -> int:
        return sum(entry.rows or 0 for entry in self.tables.chunks)

    @functools.cached_property
    def chunks(self) -> Chunks:
        """Tokens: `chunks[ids]`, `chunks.values(ids)`."""
        return Chunks(self)

    @functools.cached_property
    def neighbors(self) -> Neighbors:
        """Neighbors: `neighbors[ids]`, `neighbors.distances(ids)`."""
        return Neighbors(self)

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
        schema = contract("documents").schema()
        tables, first = [], 0
        pairs = zip(self.tables.documents, self.tables.chunks, strict=True)
        for entry, chunks in pairs:
            table = self._parquet(entry, schema)
            shifted = pa.array(table["first_chunk"].to_numpy() + first)
            position = table.schema.get_field_index("first_chunk")
            tables.append(table.set_column(position, schema.field(position), shifted))
            first += chunks.rows or 0
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def _parquet(self, entry: FileEntry, schema: pa.Schema) -> pa.Table:
        path = self.folder.local(entry.path)
        try:
            table = pq.read_table(path, schema=schema)
        except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
            raise DamagedFileError(
                f"{self.folder.url}: {entry.path} cannot be read ({error}); run verify"
            ) from error
        if table.num_rows != entry.rows:
            raise DamagedFileError(
                f"{self.folder.url}: {entry.path} has {table.num_rows} rows, the manifest says "
                f"{entry.rows}; run verify"
            )
        return table

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
        return ColumnReader(self.files(table), column)

    def files(self, table: str) -> list[IpcFile]:
        """The open files of an Arrow table, in order.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        if table not in self._files:
            entries = getattr(self.tables, table)
            self._files[table] = open_table(self.folder, entries, table, self.parameters)
        return self._files[table]

    @property
    def parameters(self) -> dict[str, str | int]:
        """Values of the parameters that the contracts' types name."""
        manifest = self.manifest
        return {
            "token_type": manifest.chunk.token_type,
            "chunk_tokens": manifest.chunk.tokens,
            "dimension": manifest.encoder.dimension,
            "k": manifest.neighbors.k,
            "fine_size": manifest.index.fine_size,
        }


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
        return f"<retro_db.Database {self.folder.url!r}: {len(self):,} chunks>"

    @functools.cached_property
    def queries(self) -> dict[str, Corpus]:
        """The query corpora by name. Their chunk ids count from 0; their neighbors are the database's."""
        return {
            query.source.name: Corpus(self.folder, self.manifest, query.tables)
            for query in self.manifest.queries
        }

    @functools.cached_property
    def fine_codes(self) -> ColumnReader:
        """Fine codes of the keys, uint8 [n, bytes], where embeddings were not kept."""
        return self.column("fine", "code")


def open_table(
    folder: Folder, entries: list[FileEntry], table: str, parameters: dict[str, str | int]
) -> list[IpcFile]:
    """Opens the files of an Arrow table.

    Args:
        folder: Where they are.
        entries: What the manifest or the completion records say of them.
        table: Name of the contract.
        parameters: For the contract's types; those that it does not name are ignored.

    Returns:
        One open file for each entry.

    Raises:
        DamagedFileError: A file is missing, of another size, or holds something else.
    """
    agreed = contract(table)
    schema = agreed.schema(**parameters)
    files = []
    for entry in entries:
        path = folder.local(entry.path)
        if path.stat().st_size != entry.bytes:
            raise DamagedFileError(
                f"{folder.url}: {entry.path} has {path.stat().st_size} bytes, {entry.bytes} were "
                "written; restore it or build again"
            )
        files.append(IpcFile(path, schema, entry.rows or 0, agreed.batch_rows))
    return files


class Chunks:
    """Tokens by global chunk id."""

    def __init__(self, corpus: Corpus) -> None:
        self._tokens = corpus.column("chunks", "tokens")
        self._lengths = corpus.column("chunks", "length")
        self._documents = corpus.column("chunks", "document")
        self._chunk_starts = _starts(corpus.tables.chunks)
        self._document_starts = _starts(corpus.tables.documents)
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
        wanted = np.asarray(ids, dtype=np.int64)
        following = np.minimum(wanted + 1, len(self) - 1)
        continuations = self[following]
        continuations[self.value_lengths(wanted)[..., 1] == 0] = self._pad_id
        return np.concatenate([self[wanted], continuations], axis=-1)

    def value_lengths(self, ids: np.ndarray | list[int]) -> np.ndarray:
        """Tokens before the padding of N and of F: int64 [n, 2], 0 where there is no F."""
        wanted = np.asarray(ids, dtype=np.int64)
        following = np.minimum(wanted + 1, len(self) - 1)
        goes_on = (following > wanted) & (self.documents(following) == self.documents(wanted))
        rest = np.where(goes_on, self.lengths(following), 0)
        return np.stack([self.lengths(wanted), rest], axis=-1).astype(np.int64)


class Neighbors:
    """Neighbors by global chunk id."""

    def __init__(self, corpus: Corpus) -> None:
        self._ids = corpus.column("neighbors", "ids")
        self._distances = corpus.column("neighbors", "distances")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Chunk ids of other documents, nearest first, int64 [n, k]; -1 where there is none."""
        return self._ids[ids]

    def distances(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Their squared L2 distances, float32 [n, k]; infinity where there is none."""
        return self._distances[ids]


def _starts(entries: list[FileEntry]) -> np.ndarray:
    """First global row of every file, and the total: int64 [files + 1]."""
    return np.cumsum([0, *(entry.rows or 0 for entry in entries)], dtype=np.int64)
