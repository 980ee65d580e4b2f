"""Compacting: a new database of what was not removed, and the map from old ids to new."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from retro_db.compaction import (
    CompactedPart,
    OldPart,
    Renumbering,
    compact_part,
    compact_partition,
    read_renumbering,
    renumber,
    write_renumbering,
)
from retro_db.config import Config
from retro_db.database import Database, open_files, read_documents
from retro_db.database import open as open_database
from retro_db.errors import CorpusError, ExecutionError, InputError
from retro_db.index.filling import partition_path
from retro_db.manifest import (
    FILE,
    Manifest,
    QueryCorpus,
    SourceCounts,
    Tables,
    query_path,
    read_manifest,
    write_manifest,
)
from retro_db.manifest import VERSION as FORMAT_VERSION
from retro_db.parts import Part, listed_parts
from retro_db.retriever import LOCATIONS
from retro_db.serialize import digest
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder

from .build import (
    OWNERSHIP,
    check_output,
    finished,
    mark_finished,
    owned_folder,
    sweep,
    write_stages,
)
from .console import Console
from .engine import Engine
from .index import BuiltIndex, TrainedIndex, say_index
from .neighbors import NeighborsPart, Searched, neighbors_stage
from .preflight import allow_files, check_disk, held_bytes
from .shards import Task, fingerprint
from .stage import Build, run_stage
from .tune import tune_stages

VERSION = 1
REMOVED = "removed"
# Of which compaction a folder is.
_MARK = "state/compacting"


class _Source:
    """The database that is compacted. Picklable: opened where it is needed.

    Args:
        url: Of the database.
        generation: Which one, as removals and appends may go on.
        sha256: Of its manifest.
    """

    def __init__(self, url: str, generation: int, sha256: str) -> None:
        self.sha256 = sha256
        self._url = url
        self._generation = generation

    def __reduce__(self) -> tuple[type[_Source], tuple[Any, ...]]:
        return _Source, (self._url, self._generation, self.sha256)

    @cached_property
    def database(self) -> Database:
        """The database, opened."""
        return self.reopen()

    def reopen(self) -> Database:
        """The database as it is there now.

        Raises:
            ExecutionError: It was built anew in the meantime.
        """
        found = open_database(self._url, self._generation)
        if found.manifest.sha256 != self.sha256:
            raise ExecutionError(
                f"{self._url}: built anew in the meantime; compact it into a new folder"
            )
        return found

    def part(self, number: int) -> OldPart:
        """One part, opened; every byte of it is what was written.

        Raises:
            DamagedFileError: Or else the new database would vouch for it.
        """
        database = self.database
        folder, tables = database.folder, database.tables
        entries = {name: getattr(tables, name)[number] for name in ("chunks", "embeddings")}
        for entry in (tables.documents[number], *entries.values()):
            with folder.intact(entry):
                pass
        documents = read_documents(folder, tables.documents[number], entries["chunks"].rows or 0)
        first = sum(before.rows or 0 for before in tables.documents[:number])
        kept = ~np.isin(np.arange(first, first + documents.num_rows), database.removed)
        chunks, embeddings = (
            open_files(folder, [entry], name, database.parameters)[0]
            for name, entry in entries.items()
        )
        return OldPart(documents, kept, chunks, embeddings)


@dataclass
class CompactJob:
    """Copies one part without its removed documents."""

    folder: Folder
    source: _Source
    stage: str = field(default="compact", init=False)

    def open(self) -> _Source:
        """The old database."""
        return self.source

    def run(self, shared: _Source, number: int, report: Callable[[int], None]) -> CompactedPart:
        """Writes three tables."""
        return compact_part(shared.part(number), number, self.folder, report)

    def files(self, result: CompactedPart) -> list[FileEntry]:
        """The three."""
        return [result.chunks, result.documents, result.embeddings]


@dataclass(frozen=True)
class RenumberedPartition:
    """One range of lists with new ids."""

    file: FileEntry


@dataclass
class RenumberJob:
    """Gives the entries of one partition their new ids."""

    folder: Folder
    home: Folder
    renumbered: FileEntry
    stage: str = field(default="renumber", init=False)

    def open(self) -> Renumbering:
        """The map from old ids to new."""
        return read_renumbering(self.folder, self.renumbered)

    def run(
        self, shared: Renumbering, item: tuple[int, FileEntry], report: Callable[[int], None]
    ) -> RenumberedPartition:
        """Writes the partition."""
        number, partition = item
        with self.home.intact(partition) as held:
            file = compact_partition(held, shared, partition_path(number), self.folder)
        report(file.rows or 0)
        return RenumberedPartition(file)

    def files(self, result: RenumberedPartition) -> list[FileEntry]:
        """The partition."""
        return [result.file]


def compact(url: str, output: str, engine: Engine, console: Console) -> Manifest:
    """Writes a database anew without its removed documents; an interrupted run is continued.

    Keys and codes are copied, and the trained index stays. Neighbors are searched anew: with fewer codes
    in the way, a chunk that lost none may have nearer ones.

    Args:
        url: The database; it is only read.
        output: A new folder.
        engine: What executes the stages.
        console: What people see.

    Returns:
        The new manifest.

    Raises:
        InputError: The embeddings were not kept, or the folder holds something else.
        CorpusError: Nothing is left.
    """
    engine.options()
    database = open_database(url)
    old = database.manifest
    if not old.tables.embeddings:
        raise InputError(
            f"{url}: its embeddings were not kept, by which neighbors are searched anew; "
            "build anew with embeddings.keep: true"
        )
    renumbering = renumber(database)
    if not len(renumbering.count):
        raise CorpusError(f"{url}: every chunk was removed; nothing is left to compact")
    mark = digest([VERSION, old.sha256])
    _check_new(Folder(output), mark)
    with owned_folder(Folder(output)) as folder:
        # Another run may have ended in between.
        _check_new(folder, mark)
        folder.write(_MARK, mark.encode())
        if manifest := _finished(folder, mark):
            console.say(f"{output} is {url} compacted: nothing to do")
            return manifest
        size = sum(entry.bytes for entry in old.files)
        told = [check_disk(folder, size, held_bytes(folder)), allow_files(len(old.tables.chunks))]
        console.say(f"check      {', '.join(told)}")
        build = Build(_config(old, output), folder, folder, engine, console, [])
        source = _Source(database.folder.url, old.generation, old.sha256)
        manifest, index = _run(build, source, renumbering)
        source.reopen()
        if (now := open_database(url).manifest.generation) != old.generation:
            console.say(
                f"warning    {url} is generation {now} by now; {output} is made of {old.generation}"
            )
        manifest = write_manifest(folder, manifest)
        sweep(folder, manifest)
        write_stages(build, manifest, index)
        mark_finished(folder, mark, manifest)
        return manifest


def _finished(folder: Folder, mark: str) -> Manifest | None:
    """What this compaction made, if it is there; later generations of it are nobody's to redo."""
    if folder.exists(FILE) and (now := read_manifest(folder)).generation > 1:
        return now
    return finished(folder, mark)


def _check_new(folder: Folder, mark: str) -> None:
    """Refuses a folder in which anything else than this compaction is under way or done.

    Raises:
        InputError: Another build or database is there, perhaps the one to be compacted.
    """
    check_output(folder)
    begun = folder.exists(_MARK) and folder.read(_MARK) == mark.encode()
    if not begun and (folder.exists(FILE) or set(folder.list("state")) - OWNERSHIP):
        raise InputError(f"{folder.url}: another database or build is there; name a new folder")


def _config(old: Manifest, output: str) -> Config:
    """The settings of the database. Places, which no manifest has, are not looked at."""
    data = old.config | {"output": output, "tokenizer": {"path": "tokenizer"}}
    for name in ("corpus", "queries"):
        data[name] = [source | {"paths": ["."]} for source in data[name]]
    return Config.model_validate(data)


def _run(build: Build, source: _Source, renumbering: Renumbering) -> tuple[Manifest, BuiltIndex]:
    database, home = source.database, build.home
    old = database.manifest
    build.console.say(
        f"compact    {old.counts.removed_documents:,} documents of {old.counts.documents:,} are left out"
    )
    if database.folder.exists(LOCATIONS):
        home.write(LOCATIONS, database.folder.read(LOCATIONS))
    for entry in (old.template_file, *old.tokenizer_files):
        _copy(database.folder, entry, home, entry.path)
    renumbered = write_renumbering(home, renumbering)
    copied = _compact_stage(build, source)
    partitions = _renumber_stage(build, database, renumbered)
    parts = _parts(copied)
    key, dimension = old.index.key, old.encoder.dimension
    search = tune_stages(build, parts, key, old.template_file, partitions, dimension)
    template = TrainedIndex(old.template_file, None, old.index.training_points)
    index = BuiltIndex(key, old.index.lists, template, partitions, [], search)
    say_index(build, index)
    named = [one["name"] for one in old.config["corpus"] if one.get("id")]
    searched = Searched(home, parts, index, database.parameters, named)
    found = neighbors_stage(build, parts, searched)
    queries = [
        _compact_queries(build, database, query, settings, searched)
        for query, settings in zip(old.queries, old.config["queries"], strict=True)
    ]
    return _manifest(build, database, copied, index, found, queries, renumbered), index


def _compact_stage(build: Build, source: _Source) -> list[CompactedPart]:
    job = CompactJob(build.folder, source)
    entries = source.database.tables.chunks
    mark = fingerprint(VERSION, {"database": source.sha256})
    tasks = [Task(f"part-{number:07d}", mark, number) for number in range(len(entries))]
    total = sum(entry.rows or 0 for entry in entries)
    return run_stage(build, job, tasks, CompactedPart, "chunks", total)


def _renumber_stage(build: Build, database: Database, renumbered: FileEntry) -> list[FileEntry]:
    job = RenumberJob(build.folder, database.folder, renumbered)
    mark = fingerprint(VERSION, {"database": database.manifest.sha256})
    tasks = [
        Task(f"partition-{number:05d}", mark, (number, partition))
        for number, partition in enumerate(database.manifest.partition_files)
    ]
    total = database.manifest.counts.indexed_chunks
    done = run_stage(build, job, tasks, RenumberedPartition, "chunks", total)
    return [one.file for one in done]


def _parts(copied: Sequence[CompactedPart]) -> list[Part]:
    """Those with a document, by their numbers in the old database."""
    parts: list[Part] = []
    first_id = 0
    for number, one in enumerate(copied):
        if one.documents.rows:
            parts.append(Part(number, 0, first_id, one.chunks, one.documents, one.embeddings))
            first_id += one.chunks.rows or 0
    return parts


def _compact_queries(
    build: Build,
    database: Database,
    query: QueryCorpus,
    settings: dict[str, Any],
    searched: Searched,
) -> QueryCorpus:
    """Copies a query corpus, whose chunks find their neighbors anew."""
    place = query_path(query.source.name)
    one = replace(build, folder=build.home.below(place), stages={})
    build.console.say(f"queries    {query.source.name}")
    tables = replace(
        query.tables,
        **{
            name: [
                _copy(
                    database.folder, entry, build.home, f"{place}/{contract(name).name(number, 0)}"
                )
                for number, entry in enumerate(getattr(query.tables, name))
            ]
            for name in ("documents", "chunks", "embeddings", "dropped")
        },
    )
    namesakes = searched.named if settings.get("id") else []
    found = neighbors_stage(one, listed_parts(tables), searched, namesakes)
    neighbors = [part.file.below(place) for part in found]
    short = sum(part.short_rows for part in found)
    return replace(query, tables=replace(tables, neighbors=neighbors), short_rows=short)


def _copy(source: Folder, entry: FileEntry, target: Folder, path: str) -> FileEntry:
    """Copies a file byte for byte."""
    with target.writing(path) as temporary, source.intact(entry) as held:
        shutil.copyfile(held, temporary)
    return replace(entry, path=path)


def _manifest(
    build: Build,
    database: Database,
    copied: Sequence[CompactedPart],
    index: BuiltIndex,
    found: Sequence[NeighborsPart],
    queries: list[QueryCorpus],
    renumbered: FileEntry,
) -> Manifest:
    old = database.manifest
    left = [one for one in copied if one.documents.rows]
    dropped = [
        _copy(database.folder, entry, build.home, contract("dropped").name(number, 0))
        for number, entry in enumerate(old.tables.dropped)
    ]
    return replace(
        old,
        counts=replace(
            old.counts,
            documents=sum(one.documents.rows or 0 for one in left),
            chunks=sum(one.chunks.rows or 0 for one in left),
            tokens=sum(one.tokens for one in left),
            validation_chunks=sum(one.validation_chunks for one in left),
            keyless_chunks=sum(one.keyless for one in left),
            indexed_chunks=sum(file.rows or 0 for file in index.partitions),
            short_rows=sum(part.short_rows for part in found),
            removed_documents=0,
            removed_chunks=0,
        ),
        sources=[_source(source, left) for source in old.sources],
        index=index.described(old.index),
        tables=Tables(
            documents=[one.documents for one in left],
            chunks=[one.chunks for one in left],
            embeddings=[one.embeddings for one in left],
            neighbors=[part.file for part in found],
            dropped=dropped,
            renumbered=[renumbered],
        ),
        index_files=[old.template_file, *index.partitions],
        queries=queries,
        generation=1,
        parent=None,
        version=FORMAT_VERSION,
    )


def _source(old: SourceCounts, left: Sequence[CompactedPart]) -> SourceCounts:
    """What is left of a source; what was removed counts as dropped."""
    own = [one for one in left if one.source == old.name]
    documents = sum(one.documents.rows or 0 for one in own)
    removed = old.documents - documents
    reasons = dict(old.dropped_by)
    if removed:
        reasons[REMOVED] = reasons.get(REMOVED, 0) + removed
    return replace(
        old,
        documents=documents,
        chunks=sum(one.chunks.rows or 0 for one in own),
        tokens=sum(one.tokens for one in own),
        dropped=old.dropped + removed,
        dropped_by=reasons,
    )
