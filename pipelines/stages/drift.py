"""Measures whether the codes of a trained index fit new embeddings as well as the old ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retro_db.hashing import fractions_of
from retro_db.index.filling import quantization_error
from retro_db.index.part_embeddings import load_embeddings
from retro_db.index.structure import faiss, read_index
from retro_db.manifest.parts import Part, contents_of
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, Folder

from ..engine.context import Build
from ..engine.jobs import Job, Stage, Task, fingerprint
from ..engine.resume import sole
from .train import TrainedIndex

VERSION = 1
# Embeddings of each kind: the mean of their errors is then good to about a hundredth.
_KEYS = 4000


@dataclass(frozen=True)
class Drift:
    """Mean squared distances of embeddings from what their codes decode to."""

    old_error: float
    new_error: float

    @property
    def growth(self) -> float:
        """Error of the new embeddings over the error of the old ones; 1 if neither has any."""
        return self.new_error / self.old_error if self.old_error > 0 else 1.0


@dataclass
class DriftJob(Job):
    """Compares samples of old and new embeddings."""

    stage: ClassVar[str] = "drift"
    home: Folder
    template: FileEntry
    dimension: int
    seed: int

    def open(self) -> faiss.Index:
        with self.home.holding(self.template) as path:
            return read_index(path)

    def run(
        self,
        shared: faiss.Index,
        item: tuple[list[Part], list[Part]],
        meter: Meter,
        /,
    ) -> Drift:
        old, new = (quantization_error(shared, self._sample(parts)) for parts in item)
        return Drift(old, new)

    def _sample(self, parts: list[Part]) -> np.ndarray:
        return np.concatenate([np.empty((0, self.dimension), np.float16), *self._keys(parts)])

    def _keys(self, parts: list[Part]) -> Iterator[np.ndarray]:
        share = _KEYS / max(sum(part.rows for part in parts), 1)
        for part in parts:
            part_embeddings = load_embeddings(self.home, part, self.dimension)
            step = part_embeddings.embeddings.batch_rows
            for start in range(0, part.rows, step):
                rows, embeddings = part_embeddings.read(start, start + step)
                yield embeddings[fractions_of(rows + part.first_id, self.seed + 2) < share]


def drift_stage(
    build: Build, old: list[Part], new: list[Part], template: TrainedIndex, dimension: int
) -> Drift:
    """Compares the errors of old and new parts.

    Args:
        build: The build that adds.
        old: Parts of the database, their files as it sees them.
        new: Parts that are added, their files as the database sees them.
        template: The trained index.
        dimension: Dimension d of the embeddings.
    """
    job = DriftJob(build.folder, build.home, template.file, dimension, build.config.seed)
    decides = {
        "train": template.file.sha256,
        "embed": [[contents_of(part) for part in parts] for parts in (old, new)],
        "seed": build.config.seed,
    }
    task = Task("drift", fingerprint(VERSION, decides), (old, new))
    return sole(build.run(Stage(job, [task], Drift, "chunks", 2 * _KEYS)))
