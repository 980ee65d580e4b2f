"""Gathers the neighbors of every chunk from the partitions of the join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retro_db.join.gathering import gather, write_neighbors
from retro_db.join.setting import JoinSetting
from retro_db.join.spans import Span
from retro_db.meter import Meter
from retro_db.reader.opening import open_files
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.slices import SlicedFile, slices_of

from ..engine.jobs import Job

VERSION = 3


@dataclass(frozen=True)
class NeighborsPart:
    """One part's neighbors, and how many of its rows are short of k."""

    file: TableEntry
    short_rows: int


@dataclass(frozen=True)
class NeighborsSpan:
    """The neighbors of the parts of one span."""

    parts: list[NeighborsPart]


@dataclass(frozen=True)
class NeighborsTable:
    """What the stage made of all parts.

    Attributes:
        files: Neighbors files in order, as the database sees them.
        short_rows: Number of chunks with an embedding that have fewer than k neighbors.
    """

    files: list[TableEntry]
    short_rows: int


@dataclass
class NeighborsJob(Job):
    """Gathers the neighbors of one span of whole parts."""

    stage: ClassVar[str] = "neighbors"
    home: Folder
    rounds: list[list[SlicedFile]]
    setting: JoinSetting

    def run(self, shared: None, span: Span, meter: Meter, /) -> NeighborsSpan:
        slices = [slices_of(files, span.number) for files in self.rounds]
        neighbors = gather(self.folder, slices, self.setting)
        parts = []
        for piece in span.pieces:
            part = piece.part
            dimension: dict[str, str | int] = {"dimension": self.setting.dimension}
            [embeddings] = open_files(self.home, [part.keys_file], "embeddings", dimension)
            path = contract("neighbors").name(part.shard, part.number)
            written = write_neighbors(
                neighbors, part.first_id, embeddings, self.setting.k, path, self.folder
            )
            parts.append(NeighborsPart(*written))
            meter(part.rows)
        return NeighborsSpan(parts)

    def files(self, result: NeighborsSpan) -> list[FileEntry]:
        return [part.file for part in result.parts]
