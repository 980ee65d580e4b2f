"""Joins each partition's queries with its own keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retro_db.join.at_home import HomeResult, join_at_home
from retro_db.join.partition import Routed, RoutedSlice
from retro_db.join.setting import JoinSetting
from retro_db.join.span_routing import RoutedSpan
from retro_db.join.spatial_order import Order
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, Folder
from retro_db.threads import Share

from ..engine.jobs import Job


@dataclass(frozen=True)
class RoutedChunks:
    """Chunks by the partition of their nearest list.

    Attributes:
        spans: What was routed, in the order of ids.
        nprobe: Lists of a chunk in these files.
    """

    spans: list[RoutedSpan]
    nprobe: int

    def slices_of(self, partition: int) -> list[RoutedSlice]:
        """The slices of one partition that hold anything."""
        slices = [
            RoutedSlice(span.routed.at(partition), int(span.rows_of_partitions[partition]))
            for span in self.spans
        ]
        return [routed for routed in slices if routed.rows]


@dataclass
class PartitionJob(Job):
    """What is done to one partition, whose keys are read once for it."""

    part_of: ClassVar[str | None] = "neighbors"
    ordered: Folder
    keys: RoutedChunks
    starts: list[int]
    setting: JoinSetting
    cores: Share

    @property
    def name(self) -> str:
        return self.stage + self.setting.turn

    def open(self) -> Order:
        return Order.read(self.ordered)

    def read(self, partition: int, meter: Meter) -> Routed:
        """Reads what was routed to be keys, and counts the bytes."""
        slices, nprobe = self.keys.slices_of(partition), self.keys.nprobe
        return Routed.read(
            self.ordered, slices, self.setting, nprobe, lambda size: meter(0, key_bytes=size)
        )


@dataclass
class HomeJob(PartitionJob):
    """Joins the queries of one partition with its keys; they are the keys if no others are given."""

    stage: ClassVar[str] = "home"
    queries: RoutedChunks | None = None

    def run(self, shared: Order, partition: int, meter: Meter, /) -> HomeResult:
        chunks = self.read(partition, meter)
        first, end = (int(cut) for cut in shared.cuts[partition : partition + 2])
        queries = chunks
        if self.queries is not None:
            slices, nprobe = self.queries.slices_of(partition), self.queries.nprobe
            queries = Routed.read(self.folder, slices, self.setting, nprobe, lambda size: None)
        return join_at_home(
            chunks.keys(first, end, self.setting),
            queries,
            partition,
            shared,
            np.array(self.starts, np.int64),
            self.setting,
            self.folder,
            threads=self.cores.threads,
            report=meter,
        )

    def files(self, result: HomeResult) -> list[FileEntry]:
        return [sliced.file for sliced in (*result.near, *result.visits)]
