"""Trains the index on a sample of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retro_db.index.drawing import Drawn, DrawnPoints
from retro_db.index.keys import IndexKey, parse_key
from retro_db.index.part_embeddings import load_embeddings
from retro_db.index.training import (
    Points,
    Sampling,
    StoredPoints,
    train_and_write,
    training_points,
)
from retro_db.manifest.parts import Part, contents_of
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry
from retro_db.threads import Share

from ..engine.context import Build
from ..engine.jobs import Job, Placement, Stage, Task, fingerprint
from . import draw

VERSION = 5


@dataclass(frozen=True)
class TrainedIndex:
    """The trained index, the quantizer of fine codes if any, and the size of their training sample."""

    file: FileEntry
    fine: FileEntry | None
    points: int

    @property
    def files(self) -> list[FileEntry]:
        """What was written."""
        return [file for file in (self.file, self.fine) if file]


@dataclass
class TrainJob(Job):
    """Trains the index."""

    stage: ClassVar[str] = "train"
    key: str
    fine: str | None
    dimension: int
    entries: int
    points: int
    seed: int
    cores: Share

    def run(
        self, shared: None, item: tuple[list[Part], list[Drawn]], meter: Meter, /
    ) -> TrainedIndex:
        sampling = Sampling(self.dimension, self.entries, self.points, self.seed)
        trained = train_and_write(
            self._points(*item),
            parse_key(self.key, self.dimension),
            self.fine,
            sampling,
            self.folder,
            meter,
            threads=self.cores.threads,
        )
        return TrainedIndex(*trained)

    def _points(self, parts: list[Part], drawn: list[Drawn]) -> Points:
        if all(part.drawing.points for part in drawn):
            return DrawnPoints(self.folder, drawn)
        return StoredPoints(
            lambda: (load_embeddings(self.folder, part, self.dimension) for part in parts)
        )

    def files(self, result: TrainedIndex) -> list[FileEntry]:
        return result.files


def train_stage(
    build: Build,
    parts: list[Part],
    drawn: list[Drawn],
    key: IndexKey,
    entries: int,
    dimension: int,
) -> TrainedIndex:
    """Trains the index on a sample of the parts.

    Args:
        build: The build.
        parts: All parts.
        drawn: What was drawn from each.
        key: The parsed index key.
        entries: Number of chunks of the training split.
        dimension: Dimension d of the embeddings.
    """
    config = build.config
    fine = None if config.embeddings.keep else config.index.refine
    # The memory matters only where it bounds the sample.
    memory = int(config.index.memory)
    points = training_points(key, dimension, entries, memory)
    job = TrainJob(
        build.folder, key.text, fine, dimension, entries, points, config.seed, Share(tasks=1)
    )
    decides = {
        "index.key": key.text,
        "index.refine": fine,
        "index.memory": points,
        "seed": config.seed,
        "draw": draw.VERSION,
        "embed": [entries, [contents_of(part) for part in parts]],
    }
    task = Task("trained", fingerprint(VERSION, decides), (parts, drawn))
    total = min(entries, points)
    placement = Placement.in_memory(memory)
    return build.run_task(Stage(job, [task], TrainedIndex, "chunks", total, placement))
