"""Compacting: a new database of what was not removed, and the map from old ids to new."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from retro_db.config import Config
from retro_db.errors import CorpusError, InputError
from retro_db.manifest.files import FILE, read_manifest, write_manifest
from retro_db.manifest.model import VERSION as FORMAT_VERSION
from retro_db.manifest.model import Manifest, QueryCorpus, SourceCounts, Tables, query_path
from retro_db.manifest.parts import Part, listed_parts
from retro_db.reader.database import Database
from retro_db.reader.database import open as open_database
from retro_db.search.retriever import LOCATIONS
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.serialize import digest
from retro_db.updates.compaction import (
    CompactedPart,
    Renumbering,
    renumber,
    write_renumbering,
)

from ..engine.console import Console
from ..engine.resume import Build
from ..engine.runner import Engine
from ..stages.compact import VERSION, OldDatabase, compact_stage
from ..stages.neighbors import NeighborsPart, Searched, neighbors_stage
from ..stages.renumber import renumber_stage
from ..stages.train import TrainedIndex
from ..stages.tune import BuiltIndex, tune_stages
from .build import write_stages
from .folders import OWNERSHIP, check_output, finished, mark_finished, owned_folder, sweep
from .index import say_index
from .preflight import allow_files, check_disk, held_bytes

Entry = TypeVar("Entry", bound=FileEntry)

REMOVED = "removed"
# Of which compaction a folder is.
_MARK = "state/compacting"


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
        source = OldDatabase(database.folder.url, old.generation, old.sha256)
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


def _run(
    build: Build, source: OldDatabase, renumbering: Renumbering
) -> tuple[Manifest, BuiltIndex]:
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
    copied = compact_stage(build, source)
    partitions = renumber_stage(build, database, renumbered)
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


def _parts(copied: Sequence[CompactedPart]) -> list[Part]:
    """Those with a document, by their numbers in the old database."""
    parts: list[Part] = []
    first_id = 0
    for number, one in enumerate(copied):
        if one.documents.rows:
            parts.append(Part(number, 0, first_id, one.chunks, one.documents, one.embeddings))
            first_id += one.chunks.rows
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


def _copy(source: Folder, entry: Entry, target: Folder, path: str) -> Entry:
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
    renumbered: TableEntry,
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
            documents=sum(one.documents.rows for one in left),
            chunks=sum(one.chunks.rows for one in left),
            tokens=sum(one.tokens for one in left),
            validation_chunks=sum(one.validation_chunks for one in left),
            keyless_chunks=sum(one.keyless for one in left),
            indexed_chunks=sum(file.rows for file in index.partitions),
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
    documents = sum(one.documents.rows for one in own)
    removed = old.documents - documents
    reasons = dict(old.dropped_by)
    if removed:
        reasons[REMOVED] = reasons.get(REMOVED, 0) + removed
    return replace(
        old,
        documents=documents,
        chunks=sum(one.chunks.rows for one in own),
        tokens=sum(one.tokens for one in own),
        dropped=old.dropped + removed,
        dropped_by=reasons,
    )
