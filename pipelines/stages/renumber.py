"""Gives the entries of index partitions their new ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retro_db.index.filling import partition_path
from retro_db.meter import Meter
from retro_db.reader.database import Database
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.packing import pack_numbers
from retro_db.updates.compaction import Renumbering, compact_partition, read_renumbering

from ..engine.context import Build
from ..engine.jobs import Job, Stage, Task, fingerprint
from .assemble import AssembledPartition

VERSION = 2


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
    ) -> AssembledPartition:
        number, partition = item
        with self.home.intact(partition) as path:
            file, lengths = compact_partition(path, shared, partition_path(number), self.folder)
        meter(file.rows)
        return AssembledPartition(file, pack_numbers(lengths))

    def files(self, result: AssembledPartition) -> list[FileEntry]:
        return [result.file]


def renumber_stage(
    build: Build, database: Database, renumbered: TableEntry
) -> list[AssembledPartition]:
    """Renumbers the entries of every partition."""
    job = RenumberJob(build.folder, database.folder, renumbered)
    mark = fingerprint(VERSION, {"database": database.manifest.sha256})
    tasks = [
        Task(f"partition-{number:05d}", mark, (number, partition))
        for number, partition in enumerate(database.manifest.partition_files)
    ]
    total = database.manifest.counts.indexed_chunks
    return build.run(Stage(job, tasks, AssembledPartition, "chunks", total))
