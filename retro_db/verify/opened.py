"""A corpus under examination: its parts, what the manifest counts, and what the checks learn."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.manifest.model import SourceCounts, query_path
from retro_db.manifest.parts import Part
from retro_db.reader.database import Corpus, Database
from retro_db.reader.opening import open_files
from retro_db.search.part_documents import Documents, load_documents, load_queries
from retro_db.store.folder import TableEntry
from retro_db.store.tables import TableFile

BLOCK_ROWS = 65_536


@dataclass
class OpenedCorpus:
    """A corpus and what is known of its chunks; its checks run side by side.

    Attributes:
        database: Database whose chunks are the corpus's neighbors.
        reader: Reader of the corpus: the database itself, or a query corpus.
        name: Prefix of the paths of its tables.
        sources: Counts of each source in the manifest.
        keyless: Number of chunks without an embedding that the manifest counts.
        short_rows: Number of chunks with fewer than k neighbors that the manifest counts.
        embedded: bool [N], chunks that have an embedding for sure: all that have one if embeddings were
            kept, else those with neighbors.
        held_out: bool [N], chunks outside the training split.
        counted: Counts of the checks of the parts.
        home: The database under examination; the corpus itself, if it is the database.
    """

    database: Database
    reader: Corpus
    name: str
    sources: list[SourceCounts]
    keyless: int
    short_rows: int
    embedded: np.ndarray = field(init=False)
    held_out: np.ndarray = field(init=False)
    counted: Counter[tuple[str, ...]] = field(default_factory=Counter, init=False)
    home: OpenedCorpus = field(init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.home = self
        self.embedded, self.held_out = np.zeros((2, len(self.reader)), bool)

    @property
    def is_queries(self) -> bool:
        """Whether the corpus is a query corpus."""
        return self.reader is not self.database

    @property
    def has_embeddings(self) -> bool:
        """Whether the build kept the corpus's embeddings."""
        return bool(self.reader.tables.embeddings)

    def read_parquet(self, entry: TableEntry, *columns: str) -> pa.Table:
        """Reads columns of a file, whatever their types; all columns if none is named."""
        with self.reader.folder.holding(entry) as path:
            return pq.read_table(path, columns=list(columns) or None)

    def count(self, *name: str, more: int) -> None:
        """Adds to a count of the checks."""
        with self._lock:
            self.counted[name] += more

    def parts(self) -> list[OpenedPart]:
        """Returns the parts of the corpus in order."""
        tables = self.reader.tables
        starts = np.cumsum([0, *(entry.rows for entry in tables.chunks)]).tolist()
        documents = np.cumsum([0, *(entry.rows for entry in tables.documents)]).tolist()
        embeddings: Sequence[TableEntry | None] = tables.embeddings or [None] * len(tables.chunks)
        rows = zip(tables.chunks, tables.documents, embeddings, strict=True)
        return [
            OpenedPart(
                self,
                Part(0, number, starts[number], *entries),
                documents[number],
                tables.neighbors[number],
            )
            for number, entries in enumerate(rows)
        ]


@dataclass(frozen=True)
class OpenedPart:
    """One part of a corpus under examination.

    Attributes:
        corpus: The corpus.
        files: Files of the part; paths are from the database's folder.
        first_document: Global row of its first document.
        neighbors: Its neighbors file.
    """

    corpus: OpenedCorpus
    files: Part
    first_document: int
    neighbors: TableEntry

    @property
    def rows(self) -> slice:
        """Range of the global ids of its chunks."""
        return slice(self.files.first_id, self.files.first_id + self.files.rows)

    def open(self, table: str, entry: TableEntry) -> TableFile:
        """Opens one of its Arrow files."""
        reader = self.corpus.reader
        [file] = open_files(reader.folder, [entry], table, reader.parameters)
        return file

    def read_documents(self, *columns: str) -> pa.Table:
        """Reads columns of its documents; all columns if none is named."""
        return self.corpus.read_parquet(self.files.documents, *columns)

    def load_documents(self, parts: list[Part]) -> Documents:
        """Loads its documents that have chunks, and the ranges of ids that each must not find.

        Args:
            parts: Parts of the database.
        """
        folder = self.corpus.reader.folder
        if self.corpus.is_queries:
            return load_queries(folder, self.files, parts, self._namesakes())
        return load_documents(folder, self.files)

    def _namesakes(self) -> list[str]:
        """Returns sources of the database whose documents may have the same ids as this query corpus's."""
        config = self.corpus.database.manifest.config
        names = {source.name for source in self.corpus.sources}
        if not any(
            query.get("id") for query in config.get("queries", ()) if query["name"] in names
        ):
            return []
        return [source["name"] for source in config.get("corpus", ()) if source.get("id")]


def opened_corpora(database: Database) -> list[OpenedCorpus]:
    """Returns the database's own chunks first, then every query corpus."""
    manifest = database.manifest
    counts = manifest.counts
    home = OpenedCorpus(
        database, database, "", manifest.sources, counts.keyless_chunks, counts.short_rows
    )
    corpora = [home]
    for query in manifest.queries:
        corpus = OpenedCorpus(
            database,
            database.queries[query.source.name],
            f"{query_path(query.source.name)}/",
            [query.source],
            query.keyless_chunks,
            query.short_rows,
        )
        corpus.home = home
        corpora.append(corpus)
    return corpora


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    """Yields consecutive ranges of rows, start and stop, that fit into memory together."""
    starts = range(0, rows, BLOCK_ROWS)
    yield from itertools.pairwise([*starts, rows])


def between(start: int, stop: int) -> str:
    """Says in words which rows of a file something is wrong in."""
    return f"between rows {start} and {stop}"
