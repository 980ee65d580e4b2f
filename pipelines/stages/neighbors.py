"""Finds the neighbors of every chunk in other documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retro_db.config import NeighborsConfig
from retro_db.index.part_embeddings import embedding_column
from retro_db.manifest.parts import Part, contents_of
from retro_db.meter import Meter
from retro_db.reader.database import open as open_database
from retro_db.reader.opening import open_files, open_table
from retro_db.search.finder import ChunkTokens, Finder
from retro_db.search.part_documents import load_documents, load_queries
from retro_db.search.part_neighbors import PartQueries, neighbors_part
from retro_db.search.searching import open_searcher
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.serialize import digest
from retro_db.threads import Share

from ..engine.context import Build
from ..engine.jobs import Job, Placement, Stage, Task, fingerprint
from .tune import BuiltIndex, search_groups

VERSION = 2


@dataclass(frozen=True)
class NeighborsPart:
    """One part's neighbors, and how many of its rows are short of k."""

    file: TableEntry
    short_rows: int


@dataclass(frozen=True)
class Removed:
    """Documents that were removed from the database.

    Attributes:
        generation: Generation of the database whose manifest lists them.
        sha256: Hash of the list.
    """

    generation: int
    sha256: str


@dataclass(frozen=True)
class Searched:
    """What is searched: the index, the parts whose chunks are in it, and how the tables look.

    Attributes:
        home: The database.
        parts: All its parts.
        index: Index of their embeddings.
        parameters: Parameters of the contracts' types: token_type, chunk_tokens, dimension.
        named: Sources whose records name their documents.
        removed: Documents whose chunks may be no neighbors; None if none was removed.
    """

    home: Folder
    parts: list[Part]
    index: BuiltIndex
    parameters: dict[str, str | int]
    named: list[str]
    removed: Removed | None = None


@dataclass
class NeighborsJob(Job):
    """Finds the neighbors of one part's chunks, of the database or of a query corpus."""

    stage: ClassVar[str] = "neighbors"
    searched: Searched
    config: NeighborsConfig
    namesakes: list[str] | None
    memory: int
    cores: Share

    def open(self) -> Finder:
        home, parts, index = self.searched.home, self.searched.parts, self.searched.index
        template = index.template.file
        removed = None
        if removal := self.searched.removed:
            removed = open_database(home.url, removal.generation).removals.chunks
        searcher = open_searcher(home, index.key, template, index.partitions, self.memory, removed)
        embeddings = embedding_column(home, parts, int(self.searched.parameters["dimension"]))
        tokens = self._tokens(parts)
        settings = index.search.settings
        return Finder(searcher, embeddings, settings, self.config.max_nprobe, tokens)

    def run(self, shared: Finder, part: Part, meter: Meter, /) -> NeighborsPart:
        home, parameters = self.searched.home, self.searched.parameters
        [embeddings] = open_files(home, [part.keys_file], "embeddings", parameters)
        if self.namesakes is None:
            documents = load_documents(home, part)
        else:
            documents = load_queries(home, part, self.searched.parts, self.namesakes)
        return NeighborsPart(
            *neighbors_part(
                PartQueries(embeddings, documents, self._tokens([part])),
                shared,
                self.config.k,
                contract("neighbors").name(part.shard, part.number),
                self.folder,
                threads=self.cores.threads,
                report=meter,
            )
        )

    def files(self, result: NeighborsPart) -> list[FileEntry]:
        return [result.file]

    def _tokens(self, parts: list[Part]) -> ChunkTokens | None:
        if not self.config.drop_duplicates:
            return None
        entries = [part.chunks for part in parts]
        table = open_table(self.searched.home, entries, "chunks", self.searched.parameters)
        return ChunkTokens(table.column("tokens"), table.column("length"))


@dataclass(frozen=True)
class NeighborsTable:
    """What the stage made of all parts.

    Attributes:
        files: Neighbors files in order, as the database sees them.
        short_rows: Number of chunks with an embedding that have fewer than k neighbors.
    """

    files: list[TableEntry]
    short_rows: int


def neighbors_stage(
    build: Build,
    parts: list[Part],
    searched: Searched,
    namesakes: list[str] | None = None,
) -> NeighborsTable:
    """Finds the neighbors of every chunk.

    Args:
        build: The build, of the database or of a query corpus.
        parts: Parts whose chunks are the queries, their files as the database sees them.
        searched: What is searched.
        namesakes: For a query corpus, sources of the database whose documents are skipped if a query's
            document has their id; None if the parts are the database's own.
    """
    config = build.config
    memory = int(config.index.memory)
    placement = Placement.in_memory(memory)
    cores = build.engine.share(len(parts), placement)
    job = NeighborsJob(build.folder, searched, config.neighbors, namesakes, memory, cores)
    index, dimension = searched.index, int(searched.parameters["dimension"])
    keys = ("neighbors.k", "neighbors.max_nprobe", "neighbors.drop_duplicates")
    decides = config.settings(*keys) | {
        "index": digest(index.identity),
        "index.memory": search_groups(index.partitions, index.key, dimension, memory),
        "embed": digest([[*contents_of(part), part.chunks.sha256] for part in searched.parts]),
        "queries": namesakes,
        "removed": searched.removed and searched.removed.sha256,
    }
    tasks = [
        Task(
            part.name,
            fingerprint(
                VERSION,
                decides | {"chunk": [part.first_id, *contents_of(part), part.chunks.sha256]},
            ),
            part,
        )
        for part in parts
    ]
    total = sum(part.rows for part in parts)
    results = build.run(Stage(job, tasks, NeighborsPart, "chunks", total, placement))
    return NeighborsTable(
        [result.file.below(build.place) for result in results],
        sum(result.short_rows for result in results),
    )
