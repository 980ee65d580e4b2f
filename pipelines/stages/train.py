"""Trains the index on a sample of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retro_db.index.keys import IndexKey, parse_key
from retro_db.index.part_embeddings import load_embeddings
from retro_db.index.training import Sampling, train_part, training_points
from retro_db.manifest.parts import Part, contents_of
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry

from ..engine.context import Build
from ..engine.jobs import Job, Placement, Stage, Task, fingerprint
from ..engine.resume import sole

VERSION = 4


@dataclass(frozen=True)
class TrainedIndex:
    """The template, the quantizer of fine codes if there is one, and how many keys trained them."""

    file: FileEntry
    fine: FileEntry | None
    points: int

    @property
    def files(self) -> list[FileEntry]:
        """What was written."""
        return [file for file in (self.file, self.fine) if file]


@dataclass
class TrainJob(Job):
    """Trains the template."""

    stage: ClassVar[str] = "train"
    key: str
    fine: str | None
    dimension: int
    entries: int
    points: int
    seed: int

    def run(self, shared: None, parts: list[Part], meter: Meter, /) -> TrainedIndex:
        return TrainedIndex(
            *train_part(
                (load_embeddings(self.folder, part, self.dimension) for part in parts),
                parse_key(self.key, self.dimension),
                self.fine,
                Sampling(self.dimension, self.entries, self.points, self.seed),
                self.folder,
                meter,
            )
        )

    def files(self, result: TrainedIndex) -> list[FileEntry]:
        return result.files


def train_stage(
    build: Build, parts: list[Part], key: IndexKey, entries: int, dimension: int
) -> TrainedIndex:
    """Trains the index on a sample of the parts."""
    config = build.config
    fine = None if config.embeddings.keep else config.index.refine
    # The memory matters only where it bounds the sample.
    memory = int(config.index.memory)
    points = training_points(key, dimension, entries, memory)
    job = TrainJob(build.folder, key.text, fine, dimension, entries, points, config.seed)
    decides = {
        "index.key": key.text,
        "index.refine": fine,
        "index.memory": points,
        "seed": config.seed,
        "embed": [entries, [contents_of(part) for part in parts]],
    }
    task = Task("trained", fingerprint(VERSION, decides), parts)
    total = min(entries, points)
    placement = Placement.in_memory(memory)
    return sole(build.run(Stage(job, [task], TrainedIndex, "chunks", total, placement)))
