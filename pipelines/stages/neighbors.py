"""Gathers the neighbors of every chunk from the partitions of the join."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from retro_db.join.gathering import gather, write_neighbors
from retro_db.join.near_files import Neighbors
from retro_db.join.setting import JoinSetting
from retro_db.join.spans import PartRows, Span
from retro_db.meter import Meter
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
class GatheredParts:
    """The neighbors of some whole parts."""

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
    """Gathers the neighbors of whole parts, span by span."""

    stage: ClassVar[str] = "neighbors"
    home: Folder
    rounds: list[list[SlicedFile]]
    setting: JoinSetting

    def run(self, shared: None, spans: list[Span], meter: Meter, /) -> GatheredParts:
        files = []
        for part, pieces in itertools.groupby(self._gathered(spans), lambda pair: pair[0].part):
            path = contract("neighbors").name(part.shard, part.number)
            written = write_neighbors(pieces, self.home, path, self.folder, self.setting)
            files.append(NeighborsPart(*written))
            meter(part.rows)
        return GatheredParts(files)

    def _gathered(self, spans: list[Span]) -> Iterator[tuple[PartRows, Neighbors]]:
        for span in spans:
            slices = [slices_of(files, span.number) for files in self.rounds]
            neighbors = gather(self.folder, slices, self.setting)
            for piece in span.pieces:
                yield piece, neighbors

    def files(self, result: GatheredParts) -> list[FileEntry]:
        return [part.file for part in result.parts]
