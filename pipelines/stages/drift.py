"""Do the codes of a trained index fit new keys as well as the old ones?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from retro_db.hashing import fractions_of
from retro_db.index.filling import quantization_error
from retro_db.index.part_embeddings import load_embeddings
from retro_db.index.structure import faiss, read_index
from retro_db.manifest.parts import Part, contents_of
from retro_db.store.folder import FileEntry, Folder

from ..engine.jobs import Task, fingerprint
from ..engine.resume import Build, run_stage, sole
from .train import TrainedIndex

VERSION = 1
# Keys of each kind: the mean of their errors is then good to about a hundredth.
_KEYS = 4000


@dataclass(frozen=True)
class Drift:
    """Mean squared distances of keys from what their codes stand for."""

    old_error: float
    new_error: float

    @property
    def growth(self) -> float:
        """How many times larger that of the new keys is; 1 where there is none at all."""
        return self.new_error / self.old_error if self.old_error > 0 else 1.0


@dataclass
class DriftJob:
    """Compares samples of old and new keys."""

    folder: Folder
    home: Folder
    template: FileEntry
    dimension: int
    seed: int
    stage: str = field(default="drift", init=False)

    def open(self) -> faiss.Index:
        """The template."""
        with self.home.holding(self.template) as path:
            return read_index(path)

    def run(
        self,
        shared: faiss.Index,
        item: tuple[list[Part], list[Part]],
        report: Callable[[int], None],
    ) -> Drift:
        """Encodes and decodes the samples."""
        old, new = (quantization_error(shared, self._sample(parts)) for parts in item)
        return Drift(old, new)

    def files(self, result: Drift) -> list[FileEntry]:
        """None: the record is the result."""
        return []

    def _sample(self, parts: list[Part]) -> np.ndarray:
        found = [np.empty((0, self.dimension), np.float16), *self._keys(parts)]
        return np.concatenate(found)

    def _keys(self, parts: list[Part]) -> Iterator[np.ndarray]:
        share = _KEYS / max(sum(part.rows for part in parts), 1)
        for part in parts:
            part_embeddings = load_embeddings(self.home, part, self.dimension)
            step = part_embeddings.embeddings.batch_rows
            for start in range(0, part.rows, step):
                rows, found = part_embeddings.read(start, start + step)
                yield found[fractions_of(rows + part.first_id, self.seed + 2) < share]


def drift_stage(
    build: Build, old: list[Part], new: list[Part], template: TrainedIndex, dimension: int
) -> Drift:
    """Runs the stage.

    Args:
        build: The build that adds.
        old: Parts of the database, their files as it sees them.
        new: Parts that are added, the same way.
        template: The trained index.
        dimension: d.

    Returns:
        The errors of both.
    """
    job = DriftJob(build.folder, build.home, template.file, dimension, build.config.seed)
    decides = {
        "train": template.file.sha256,
        "embed": [[contents_of(part) for part in parts] for parts in (old, new)],
        "seed": build.config.seed,
    }
    task = Task("drift", fingerprint(VERSION, decides), (old, new))
    return sole(run_stage(build, job, [task], Drift, "chunks", 2 * _KEYS))
