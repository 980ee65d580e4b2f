"""Finds the lists that every chunk visits, and hands the chunks to the partitions of the join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retro_db.index.structure import read_index
from retro_db.join.gathering import read_ids
from retro_db.join.router import Router
from retro_db.join.setting import JoinSetting
from retro_db.join.span_routing import RoutedSpan, Routing, route_span
from retro_db.join.spans import Span
from retro_db.join.spatial_order import Order
from retro_db.manifest.parts import contents_of
from retro_db.meter import Meter
from retro_db.reader.database import open as open_database
from retro_db.store.folder import FileEntry, Folder
from retro_db.threads import Share

from ..engine.context import Build
from ..engine.jobs import Job, Placement, Stage, Task, fingerprint

VERSION = 1


@dataclass(frozen=True)
class Removed:
    """Documents that were removed from the database.

    Attributes:
        generation: Generation of the database whose manifest lists them.
        sha256: Hash of the list.
    """

    generation: int
    sha256: str


def removed_ids(home: Folder, removed: Removed | None) -> np.ndarray:
    """Ids of the removed documents' chunks: int64, ascending."""
    if removed is None:
        return np.empty(0, np.int64)
    return open_database(home.url, removed.generation).removals.chunks


@dataclass
class RouteJob(Job):
    """Routes the chunks of one span."""

    stage: ClassVar[str] = "route"
    part_of: ClassVar[str | None] = "neighbors"
    home: Folder
    ordered: Folder
    template: FileEntry
    routing: Routing
    removed: Removed | None
    setting: JoinSetting
    cores: Share

    @property
    def name(self) -> str:
        return self.stage + self.setting.turn

    def open(self) -> tuple[Router, Order, np.ndarray]:
        template = read_index(self.home.verified(self.template))
        return Router(template), Order.read(self.ordered), removed_ids(self.home, self.removed)

    def run(
        self,
        shared: tuple[Router, Order, np.ndarray],
        item: tuple[Span, FileEntry | None],
        meter: Meter,
        /,
    ) -> RoutedSpan:
        router, order, removed = shared
        span, chosen = item
        only = read_ids(self.folder, chosen) if chosen else None
        return route_span(
            span,
            only,
            removed,
            router,
            order,
            self.routing,
            self.setting,
            self.folder,
            threads=self.cores.threads,
            report=meter,
        )

    def files(self, result: RoutedSpan) -> list[FileEntry]:
        return [result.routed.file]


def route_stage(
    build: Build,
    job: RouteJob,
    spans: list[tuple[Span, FileEntry | None]],
    decides: dict[str, object],
) -> list[RoutedSpan]:
    """Routes spans.

    Args:
        build: The build, of the database or of a query corpus.
        job: What is done to each span.
        spans: The spans, each with the file of the ids that are routed; None for all.
        decides: What decides the routes besides the chunks.
    """
    tasks = [
        Task(
            span.name,
            fingerprint(
                VERSION, decides | {"embed": span_contents(span), "short": only and only.sha256}
            ),
            (span, only),
        )
        for span, only in spans
    ]
    total = sum(span.rows for span, _ in spans)
    placement = Placement.in_memory(job.setting.memory)
    return build.run(Stage(job, tasks, RoutedSpan, "chunks", total, placement))


def span_contents(span: Span) -> list[object]:
    """What a span's chunks are, for fingerprints."""
    return [
        [
            piece.first_id,
            piece.start,
            piece.stop,
            *contents_of(piece.part),
            piece.part.chunks.sha256,
        ]
        for piece in span.pieces
    ]
