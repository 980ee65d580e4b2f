"""Encodes the embeddings of parts with the trained index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retro_db.index.filling import encode_part
from retro_db.index.part_embeddings import load_embeddings
from retro_db.index.refining import FINE_PATH, refine_part
from retro_db.index.structure import faiss, read_index
from retro_db.index.training import PATH as TEMPLATE_PATH
from retro_db.manifest.parts import Part, contents_of
from retro_db.meter import Meter
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.packing import pack_numbers
from retro_db.threads import Share

from ..engine.context import Build
from ..engine.jobs import Job, Stage, Task, fingerprint
from .train import VERSION, TrainedIndex


@dataclass(frozen=True)
class EncodedPart:
    """One part's codes, how many in each range of lists, and its fine codes if they are wanted.

    The numbers are packed: a driver holds them of tens of thousands of parts, a thousand each.
    """

    file: TableEntry
    entries: str
    fine: TableEntry | None


@dataclass
class EncodeJob(Job):
    """Encodes one part."""

    stage: ClassVar[str] = "encode"
    home: Folder
    has_fine: bool
    dimension: int
    cores: Share

    def open(self) -> tuple[faiss.Index, faiss.Index | None]:
        quantizer = read_index(self.home.local(FINE_PATH)) if self.has_fine else None
        return read_index(self.home.local(TEMPLATE_PATH)), quantizer

    def run(
        self,
        shared: tuple[faiss.Index, faiss.Index | None],
        part: Part,
        meter: Meter,
        /,
    ) -> EncodedPart:
        template, quantizer = shared
        part_embeddings = load_embeddings(self.folder, part, self.dimension)
        path = contract("codes").name(part.shard, part.number)
        file, entries = encode_part(
            part_embeddings, path, template, self.cores.threads, self.folder, meter
        )
        fine = None
        if quantizer is not None:
            path = contract("fine").name(part.shard, part.number)
            fine = refine_part(part_embeddings.embeddings, path, quantizer, self.folder)
        return EncodedPart(file, pack_numbers(entries), fine)

    def files(self, result: EncodedPart) -> list[FileEntry]:
        return [file for file in (result.file, result.fine) if file]


def encode_stage(
    build: Build, parts: list[Part], template: TrainedIndex, dimension: int
) -> list[EncodedPart]:
    """Encodes parts whose files lie in the folder of the build, each by itself."""
    fine = template.fine.sha256 if template.fine else None
    cores = build.engine.share(len(parts))
    job = EncodeJob(
        build.folder, build.home, has_fine=fine is not None, dimension=dimension, cores=cores
    )
    tasks = [
        Task(
            part.name,
            fingerprint(
                VERSION,
                {
                    "train": [template.file.sha256, fine],
                    "embed": contents_of(part),
                    "chunk": part.first_id,
                },
            ),
            part,
        )
        for part in parts
    ]
    total = sum(part.rows for part in parts)
    return build.run(Stage(job, tasks, EncodedPart, "chunks", total))
