"""Finds the chunks that have fewer than k neighbors so far: they go round again, through more lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retro_db.join.gathering import gather, queries_of, short_queries, write_ids
from retro_db.join.setting import JoinSetting
from retro_db.join.spans import Span
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.slices import SlicedFile, slices_of

from ..engine.jobs import Job
from .route import Removed, removed_ids


@dataclass(frozen=True)
class ShortSpan:
    """Ids of a span's chunks with too few neighbors; None if every chunk has k."""

    file: FileEntry | None


@dataclass
class ShortJob(Job):
    """Finds the short chunks of one span."""

    stage: ClassVar[str] = "short"
    part_of: ClassVar[str | None] = "neighbors"
    home: Folder
    rounds: list[list[SlicedFile]]
    removed: Removed | None
    setting: JoinSetting

    @property
    def name(self) -> str:
        return self.stage + self.setting.turn

    def open(self) -> np.ndarray:
        return removed_ids(self.home, self.removed)

    def run(self, shared: np.ndarray, span: Span, meter: Meter, /) -> ShortSpan:
        slices = [slices_of(files, span.number) for files in self.rounds]
        queries = queries_of(span, self.home, self.setting.dimension, shared)
        short = short_queries(gather(self.folder, slices, self.setting), queries, self.setting.k)
        meter(span.rows)
        if not len(short):
            return ShortSpan(None)
        return ShortSpan(
            write_ids(self.folder, f"state/join/short{self.setting.turn}/{span.name}.npy", short)
        )

    def files(self, result: ShortSpan) -> list[FileEntry]:
        return [result.file] if result.file else []
