"""Gives the entries of index partitions their new ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from retro_db.index.filling import partition_path
from retro_db.reader.database import Database
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.updates.compaction import (
    Renumbering,
    compact_partition,
    read_renumbering,
)

from ..engine.jobs import Task, fingerprint
from ..engine.resume import Build, run_stage
from .compact import VERSION


@dataclass(frozen=True)
class RenumberedPartition:
    """One range of lists with new ids."""

    file: TableEntry


@dataclass
class RenumberJob:
    """Gives the entries of one partition their new ids."""

    folder: Folder
    home: Folder
    renumbered: TableEntry
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
        report(file.rows)
        return RenumberedPartition(file)

    def files(self, result: RenumberedPartition) -> list[FileEntry]:
        """The partition."""
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
    done = run_stage(build, job, tasks, RenumberedPartition, "chunks", total)
    return [one.file for one in done]
