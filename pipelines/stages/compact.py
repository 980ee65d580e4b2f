"""Copies the parts of a database without their removed documents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from retro_db.errors import ExecutionError
from retro_db.meter import Meter
from retro_db.reader.database import Database
from retro_db.reader.database import open as open_database
from retro_db.reader.opening import open_files, read_documents
from retro_db.store.folder import FileEntry
from retro_db.updates.compaction import CompactedPart, OldPart, compact_part

from ..engine.context import Build
from ..engine.jobs import Job, Stage, Task, fingerprint

VERSION = 1


class OldDatabase:
    """The database that is compacted. Picklable: opened where it is needed.

    Args:
        url: URL of the database.
        generation: Generation that is copied: removals and appends may go on meanwhile.
        sha256: Hash of its manifest.
    """

    def __init__(self, url: str, generation: int, sha256: str) -> None:
        self.sha256 = sha256
        self._url = url
        self._generation = generation

    def __reduce__(self) -> tuple[type[OldDatabase], tuple[Any, ...]]:
        return OldDatabase, (self._url, self._generation, self.sha256)

    @cached_property
    def database(self) -> Database:
        """The database, opened."""
        return self.reopen()

    def reopen(self) -> Database:
        """The database as it is there now.

        Raises:
            ExecutionError: Another build has replaced it.
        """
        database = open_database(self._url, self._generation)
        if database.manifest.sha256 != self.sha256:
            raise ExecutionError(
                f"{self._url}: another build has replaced it; compact it into a new folder"
            )
        return database

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
        documents = read_documents(folder, tables.documents[number], entries["chunks"].rows)
        first = sum(before.rows for before in tables.documents[:number])
        kept = ~np.isin(np.arange(first, first + documents.num_rows), database.removals.documents)
        chunks, embeddings = (
            open_files(folder, [entry], name, database.parameters)[0]
            for name, entry in entries.items()
        )
        return OldPart(documents, kept, chunks, embeddings)


@dataclass
class CompactJob(Job):
    """Copies one part without its removed documents."""

    stage: ClassVar[str] = "compact"
    source: OldDatabase

    def open(self) -> OldDatabase:
        return self.source

    def run(self, shared: OldDatabase, number: int, meter: Meter, /) -> CompactedPart:
        return compact_part(shared.part(number), number, self.folder, meter)

    def files(self, result: CompactedPart) -> list[FileEntry]:
        return [result.chunks, result.documents, result.embeddings]


def compact_stage(build: Build, source: OldDatabase) -> list[CompactedPart]:
    """Runs the stage over every part of the old database."""
    job = CompactJob(build.folder, source)
    entries = source.database.tables.chunks
    mark = fingerprint(VERSION, {"database": source.sha256})
    tasks = [Task(f"part-{number:07d}", mark, number) for number in range(len(entries))]
    total = sum(entry.rows for entry in entries)
    return build.run(Stage(job, tasks, CompactedPart, "chunks", total))
