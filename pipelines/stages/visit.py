"""Joins each partition's keys with the queries of other partitions that visit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retro_db.join.at_home import HomeResult
from retro_db.join.on_visit import join_visits
from retro_db.join.spatial_order import Order
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry
from retro_db.store.slices import SlicedFile

from .home import PartitionJob


@dataclass(frozen=True)
class VisitResult:
    """Files of the neighbors that queries have found on their visits to one partition."""

    near: list[SlicedFile]


@dataclass
class VisitJob(PartitionJob):
    """Joins the keys of one partition with its visitors."""

    stage: ClassVar[str] = "visit"
    homes: list[HomeResult]

    def run(self, shared: Order, partition: int, meter: Meter, /) -> VisitResult:
        first, end = (int(cut) for cut in shared.cuts[partition : partition + 2])
        visits = [piece for home in self.homes if (piece := home.visits_to(partition)).bytes]
        if not visits:
            return VisitResult([])
        near = join_visits(
            self.read(partition, meter).keys(first, end, self.setting),
            visits,
            partition,
            first,
            np.array(self.starts, np.int64),
            self.setting,
            self.folder,
            threads=self.cores.threads,
            report=meter,
        )
        return VisitResult(near)

    def files(self, result: VisitResult) -> list[FileEntry]:
        return [sliced.file for sliced in result.near]
