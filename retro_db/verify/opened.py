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
class Held:
    """A corpus and what is known of its chunks; its checks run side by side.

    Attributes:
        database: Whose chunks are its neighbors.
        corpus: The database itself, or a query corpus.
        name: What the paths of its tables begin with.
        sources: What the manifest counts for each source.
        keyless: Chunks without a key, as the manifest counts them.
        short_rows: Chunks with fewer than k neighbors, as the manifest counts them.
        keyed: bool [N], chunks that have a key for sure: all that have one where embeddings were
            kept, else those with neighbors.
        held_out: bool [N], chunks outside the training split.
        found: What the checks of the parts counted.
        home: The database under examination; itself, if it is that.
    """

    database: Database
    corpus: Corpus
    name: str
    sources: list[SourceCounts]
    keyless: int
    short_rows: int
    keyed: np.ndarray = field(init=False)
    held_out: np.ndarray = field(init=False)
    found: Counter[tuple[str, ...]] = field(default_factory=Counter, init=False)
    home: Held = field(init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.home = self
        self.keyed, self.held_out = np.zeros((2, len(self.corpus)), bool)

    @property
    def is_queries(self) -> bool:
        """Whether it is a query corpus."""
        return self.corpus is not self.database

    @property
    def has_keys(self) -> bool:
        """Whether embeddings were kept."""
        return bool(self.corpus.tables.embeddings)

    def read_parquet(self, entry: TableEntry, *columns: str) -> pa.Table:
        """Columns of a file, whatever they are; all where none is named."""
        with self.corpus.folder.holding(entry) as path:
            return pq.read_table(path, columns=list(columns) or None)

    def count(self, *name: str, more: int) -> None:
        """Adds to what was found."""
        with self._lock:
            self.found[name] += more

    def parts(self) -> list[HeldPart]:
        """Its parts, in order."""
        tables = self.corpus.tables
        starts = np.cumsum([0, *(entry.rows for entry in tables.chunks)]).tolist()
        documents = np.cumsum([0, *(entry.rows for entry in tables.documents)]).tolist()
        embeddings: Sequence[TableEntry | None] = tables.embeddings or [None] * len(tables.chunks)
        rows = zip(tables.chunks, tables.documents, embeddings, strict=True)
        return [
            HeldPart(
                self,
                Part(0, number, starts[number], *entries),
                documents[number],
                tables.neighbors[number],
            )
            for number, entries in enumerate(rows)
        ]


@dataclass(frozen=True)
class HeldPart:
    """One part of a corpus under examination.

    Attributes:
        held: The corpus.
        part: Its files; paths are from the database's folder.
        first_document: Global row of its first document.
        neighbors: Its neighbors file.
    """

    held: Held
    part: Part
    first_document: int
    neighbors: TableEntry

    @property
    def rows(self) -> slice:
        """Its chunks' global ids."""
        return slice(self.part.first_id, self.part.first_id + self.part.rows)

    def open(self, table: str, entry: TableEntry) -> TableFile:
        """One of its Arrow files."""
        corpus = self.held.corpus
        [file] = open_files(corpus.folder, [entry], table, corpus.parameters)
        return file

    def read_documents(self, *columns: str) -> pa.Table:
        """Columns of its documents; all where none is named."""
        return self.held.read_parquet(self.part.documents, *columns)

    def load_documents(self, parts: list[Part]) -> Documents:
        """Its documents that have chunks, and what each must not find.

        Args:
            parts: Of the database.
        """
        folder = self.held.corpus.folder
        if self.held.is_queries:
            return load_queries(folder, self.part, parts, self._namesakes())
        return load_documents(folder, self.part)

    def _namesakes(self) -> list[str]:
        """Sources of the database whose documents' ids can be this query corpus's own."""
        config = self.held.database.manifest.config
        own = {query.name for query in self.held.sources}
        if not any(one.get("id") for one in config.get("queries", ()) if one["name"] in own):
            return []
        return [source["name"] for source in config.get("corpus", ()) if source.get("id")]


def corpora(database: Database) -> list[Held]:
    """The database's own chunks, and every query corpus."""
    manifest = database.manifest
    counts = manifest.counts
    own = (manifest.sources, counts.keyless_chunks, counts.short_rows)
    held = [Held(database, database, "", *own)]
    for query in manifest.queries:
        name = query.source.name
        corpus, own = (
            database.queries[name],
            ([query.source], query.keyless_chunks, query.short_rows),
        )
        held.append(Held(database, corpus, f"{query_path(name)}/", *own))
        held[-1].home = held[0]
    return held


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows, start and stop, that are held at a time."""
    starts = range(0, rows, BLOCK_ROWS)
    yield from itertools.pairwise([*starts, rows])


def between(start: int, stop: int) -> str:
    """Where in a file something is wrong."""
    return f"between rows {start} and {stop}"
