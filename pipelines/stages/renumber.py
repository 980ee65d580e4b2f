"""Gives the entries of index partitions their new ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retro_db.index.filling import partition_path
from retro_db.meter import Meter
from retro_db.reader.database import Database
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.updates.compaction import Renumbering, compact_partition, read_renumbering

from ..engine.context import Build
from ..engine.jobs import Job, Stage, Task, fingerprint
from .compact import VERSION


@dataclass(frozen=True)
class RenumberedPartition:
    """One range of lists with new ids."""

    file: TableEntry


@dataclass
class RenumberJob(Job):
    """Gives the entries of one partition their new ids."""

    stage: ClassVar[str] = "renumber"
    home: Folder
    renumbered: TableEntry

    def open(self) -> Renumbering:
        return read_renumbering(self.folder, self.renumbered)

    def run(
        self, shared: Renumbering, item: tuple[int, FileEntry], meter: Meter, /
    ) -> RenumberedPartition:
        number, partition = item
        with self.home.intact(partition) as path:
            file = compact_partition(path, shared, partition_path(number), self.folder)
        meter(file.rows)
        return RenumberedPartition(file)

    def files(self, result: RenumberedPartition) -> list[FileEntry]:
        return [result.file]


def renumber_stage(build: Build, database: Database, renumbered: TableEntry) -> list[TableEntry]:
    """Runs the stage over every partition of the old database."""
    job = RenumberJob(build.folder, database.folder, renumbered)
    mark = fingerprint(VERSION, {"database": database.manifest.sha256})
    tasks = [
        Task(f"partition-{number:05d}", mark, (number, partition))
        for number, partition in enumerate(database.manifest.partition_files)
    ]
    total = database.manifest.counts.indexed_chunks
    results = build.run(Stage(job, tasks, RenumberedPartition, "chunks", total))
    return [result.file for result in results]
