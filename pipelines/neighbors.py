"""Stage 8: every chunk's neighbors in other documents."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from retro_db.database import open_table
from retro_db.index.searching import Searcher
from retro_db.neighbors import neighbors_part
from retro_db.parts import Part, key_column, load_documents
from retro_db.serialize import digest
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.tables import ColumnReader

from .index import BuiltIndex, open_searcher
from .shards import Task, fingerprint
from .stage import Build, run_stage

VERSION = 1


@dataclass(frozen=True)
class NeighborsPart:
    """One part's neighbors, and how many of its rows are short of k."""

    file: FileEntry
    short_rows: int


@dataclass
class NeighborsJob:
    """Finds the neighbors of one part's chunks among all chunks."""

    folder: Folder
    parts: list[Part]
    key: str
    partitions: int
    nprobe: int
    dimension: int
    k: int
    rerank: int
    max_nprobe: int | None
    threads: int
    stage: str = field(default="neighbors", init=False)

    def open(self) -> tuple[Searcher, ColumnReader]:
        """The index, and the keys for exact distances."""
        searcher = open_searcher(
            self.folder, self.key, self.partitions, self.nprobe, self.max_nprobe
        )
        return searcher, key_column(self.folder, self.parts, self.dimension)

    def run(
        self, shared: tuple[Searcher, ColumnReader], part: Part, report: Callable[[int], None]
    ) -> NeighborsPart:
        """Writes the neighbors file."""
        searcher, keys = shared
        [embeddings] = open_table(
            self.folder, [part.keys_file], "embeddings", {"dimension": self.dimension}
        )
        return NeighborsPart(
            *neighbors_part(
                embeddings,
                load_documents(self.folder, part),
                contract("neighbors").name(part.shard, part.number),
                searcher,
                keys,
                self.k,
                self.rerank,
                self.threads,
                self.folder,
                report,
            )
        )

    def files(self, result: NeighborsPart) -> list[FileEntry]:
        """The neighbors file."""
        return [result.file]


def neighbors_stage(
    build: Build, parts: list[Part], index: BuiltIndex, dimension: int
) -> list[NeighborsPart]:
    """Runs the stage."""
    settings = build.config.neighbors
    job = NeighborsJob(
        build.folder,
        parts,
        index.key,
        len(index.partitions),
        index.search.nprobe,
        dimension,
        settings.k,
        settings.rerank,
        settings.max_nprobe,
        build.engine.threads,
    )
    everything = digest([part.keys_file.sha256 for part in parts])
    tasks = [
        Task(
            part.name,
            fingerprint(
                job.stage,
                VERSION,
                job.k,
                job.rerank,
                job.max_nprobe,
                index.identity,
                everything,
                part.first_id,
                part.documents.sha256,
            ),
            part,
        )
        for part in parts
    ]
    total = sum(part.rows for part in parts)
    return run_stage(build, job, tasks, NeighborsPart, "chunks", total)


if __name__ == "__main__":
    # The classes above must be pickled under their module's name, so the command imports them anew.
    from .cli import end_process, run, stage_command

    end_process(run(sys.argv[1:], stage_command("neighbors")))
