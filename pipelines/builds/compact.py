"""Compacting: a new database of what was not removed, and the map from old ids to new."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from retro_db.config import Config
from retro_db.errors import CorpusError, InputError
from retro_db.manifest.model import Manifest, QueryCorpus, query_path
from retro_db.manifest.parts import Part
from retro_db.manifest.sealing import COMPACTING, FILE, read_manifest, write_manifest
from retro_db.reader.database import Database
from retro_db.reader.database import open as open_database
from retro_db.search.retriever import LOCATIONS
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.serialize import digest
from retro_db.updates.compaction import CompactedPart, Renumbering, renumber, write_renumbering

from ..engine.completing import Running
from ..engine.console import Console
from ..engine.context import Build
from ..engine.runner import Engine
from ..stages.compact import VERSION, OldDatabase, compact_stage
from ..stages.renumber import renumber_stage
from ..stages.train import TrainedIndex
from ..stages.tune import BuiltIndex, FilledIndex
from .build import write_stages
from .folders import (
    OWNERSHIP,
    check_files,
    check_output,
    finished,
    keep_card,
    mark_finished,
    owned_folder,
    sweep,
)
from .index import draw_queries, tune_index
from .join import Join, Searched
from .manifest_content import compacted_manifest
from .preflight import allow_files, check_addresses, check_disk, held_bytes
from .queries import search_again

Entry = TypeVar("Entry", bound=FileEntry)


def compact(url: str, output: str, engine: Engine, console: Console) -> Manifest:
    """Writes a new database without the removed documents of another; continues an interrupted run.

    Embeddings and codes are copied, and the trained index stays. Neighbors are searched again: with fewer
    codes in the way, a chunk that lost none may have nearer ones.

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
    database = open_database(url)
    old = database.manifest
    if not old.tables.embeddings:
        raise InputError(
            f"{url}: its embeddings were not kept, by which neighbors are searched again; "
            "build a new database with embeddings.keep: true"
        )
    renumbering = renumber(database)
    if not len(renumbering.count):
        raise CorpusError(f"{url}: every chunk was removed; nothing is left to compact")
    mark = digest([VERSION, old.sha256])
    _check_new(Folder(output), mark)
    with owned_folder(Folder(output)) as folder:
        # Another run may have ended in between.
        _check_new(folder, mark)
        folder.write(COMPACTING, mark.encode())
        if manifest := _finished(folder, mark):
            console.say(f"{output} is {url} compacted: nothing to do")
            return manifest
        check_addresses()
        size = sum(entry.bytes for entry in old.files)
        disk = check_disk(folder, size, held_bytes(folder))
        console.say(f"check      {disk}, {allow_files(len(old.tables.chunks))}")
        build = _build(old, folder, engine, console)
        source = OldDatabase(database.folder.url, old.generation, old.sha256)
        manifest, index = _run(build, source, renumbering)
        source.reopen()
        if (now := open_database(url).manifest.generation) != old.generation:
            console.say(
                f"warning    {url} is now at generation {now}; {output} was made from {old.generation}"
            )
        check_files(folder, manifest)
        manifest = write_manifest(folder, manifest)
        sweep(folder, manifest)
        write_stages(build, manifest, index)
        keep_card(folder, manifest, console)
        mark_finished(folder, mark, manifest)
        return manifest


def _build(old: Manifest, folder: Folder, engine: Engine, console: Console) -> Build:
    """The build that writes the new database: it reads no corpus."""
    return Build(
        config=_config(old, folder.url),
        folder=folder,
        home=folder,
        engine=engine,
        console=console,
        shards=[],
        action=Running(),
    )


def _finished(folder: Folder, mark: str) -> Manifest | None:
    """What this compaction made, if it is complete; later generations of it are left as they are."""
    if folder.exists(FILE) and (manifest := read_manifest(folder)).generation > 1:
        return manifest
    return finished(folder, mark)


def _check_new(folder: Folder, mark: str) -> None:
    """Refuses a folder in which anything other than this compaction is under way or done.

    Raises:
        InputError: It holds another build or database, perhaps the one to be compacted.
    """
    check_output(folder)
    begun = folder.exists(COMPACTING) and folder.read(COMPACTING) == mark.encode()
    if not begun and (folder.exists(FILE) or set(folder.list("state")) - OWNERSHIP):
        raise InputError(f"{folder.url}: another database or build is there; name a new folder")


def _config(old: Manifest, output: str) -> Config:
    """The settings of the database, with placeholders for paths, which no manifest holds."""
    data = old.config | {"output": output, "tokenizer": {"path": "tokenizer"}}
    for name in ("corpus", "queries"):
        data[name] = [source | {"paths": ["."]} for source in data[name]]
    return Config.model_validate(data)


def _run(
    build: Build, source: OldDatabase, renumbering: Renumbering
) -> tuple[Manifest, BuiltIndex]:
    """Copies what was not removed, and searches it."""
    database, home = source.database, build.home
    old, dimension = database.manifest, database.manifest.encoder.dimension
    removed, documents = old.counts.removed_documents, old.counts.documents
    build.console.say(f"compact    {removed:,} of {documents:,} documents are removed for good")
    if database.folder.exists(LOCATIONS):
        home.write(LOCATIONS, database.folder.read(LOCATIONS))
    for entry in (old.template_file, *old.tokenizer_files):
        _copy(database.folder, entry, home, entry.path)
    renumbered = write_renumbering(home, renumbering)
    copied = compact_stage(build, source)
    renumbered_partitions = renumber_stage(build, database, renumbered)
    partitions = [partition.file for partition in renumbered_partitions]
    lengths = [partition.lengths for partition in renumbered_partitions]
    parts = _parts(copied)
    trained = TrainedIndex(old.template_file, None, old.index.training_points)
    filled = FilledIndex(old.index.key, old.index.lists, trained, partitions, lengths)
    index = tune_index(build, parts, draw_queries(build, parts, dimension), filled, dimension)
    named = [source["name"] for source in old.config["corpus"] if source.get("id")]
    join = Join(build, Searched(parts, index, database.parameters, named), joins_itself=True)
    neighbors = join.neighbors(build, parts)
    manifest = compacted_manifest(
        old,
        copied=copied,
        index=index,
        neighbors=neighbors,
        queries=search_again(build, old, _copied_queries(database, home), join),
        dropped=_copy_tables(database, old.tables.dropped, home, "", "dropped"),
        renumbered=renumbered,
    )
    return manifest, index


def _parts(copied: Sequence[CompactedPart]) -> list[Part]:
    """The parts that still have a document, by their numbers in the old database."""
    parts: list[Part] = []
    first_id = 0
    for number, part in enumerate(copied):
        if part.documents.rows:
            parts.append(Part(number, 0, first_id, part.chunks, part.documents, part.embeddings))
            first_id += part.chunks.rows
    return parts


def _copied_queries(database: Database, target: Folder) -> list[QueryCorpus]:
    """The query corpora with copies of their files, still without neighbors among what remains."""
    queries = []
    for query in database.manifest.queries:
        place = f"{query_path(query.source.name)}/"
        tables = {
            name: _copy_tables(database, getattr(query.tables, name), target, place, name)
            for name in ("documents", "chunks", "embeddings", "dropped")
        }
        queries.append(replace(query, tables=replace(query.tables, **tables)))
    return queries


def _copy_tables(
    database: Database, entries: Sequence[TableEntry], target: Folder, place: str, table: str
) -> list[TableEntry]:
    """Copies the files of a table, numbered from 0, to a place in the new database."""
    return [
        _copy(database.folder, entry, target, f"{place}{contract(table).name(number, 0)}")
        for number, entry in enumerate(entries)
    ]


def _copy(source: Folder, entry: Entry, target: Folder, path: str) -> Entry:
    """Copies a file byte for byte."""
    with target.writing(path) as temporary, source.intact(entry) as original:
        shutil.copyfile(original, temporary)
    return replace(entry, path=path)
