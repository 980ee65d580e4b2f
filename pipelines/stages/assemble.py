"""Gathers the codes of all parts into partitions of the index."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retro_db.config import IndexConfig
from retro_db.index.filling import assemble_partition, cut_lists, partition_path
from retro_db.index.keys import IndexKey
from retro_db.index.structure import faiss, inverted_file, read_index
from retro_db.index.training import PATH as TEMPLATE_PATH
from retro_db.index.training import predict_size
from retro_db.meter import Meter
from retro_db.reader.opening import open_files
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.packing import pack_numbers, unpack_numbers
from retro_db.store.serialize import digest
from retro_db.store.tables import TableFile

from ..engine.context import Build
from ..engine.jobs import Job, Placement, Stage, Task, fingerprint
from .encode import EncodedPart
from .train import TrainedIndex

VERSION = 5


@dataclass(frozen=True)
class AssembledPartition:
    """One range of lists.

    Attributes:
        file: The partition of the index.
        lengths: Packed numbers: the entries of each of its lists.
    """

    file: TableEntry
    lengths: str

    @property
    def squares(self) -> int:
        """Sum of the lists' squared lengths: what searches take grows with it."""
        return int((unpack_numbers(self.lengths) ** 2).sum())


@dataclass(frozen=True)
class ListRange:
    """One partition to be: lists first to end - 1.

    `base` is the previous generation's partition of the same lists, whose entries come first.
    """

    number: int
    first: int
    end: int
    base: FileEntry | None = None


@dataclass
class AssembleJob(Job):
    """Assembles one partition from the codes of all parts."""

    stage: ClassVar[str] = "assemble"
    home: Folder
    codes: list[TableEntry]

    def open(self) -> tuple[faiss.Index, list[TableFile]]:
        template = read_index(self.home.local(TEMPLATE_PATH))
        parameters: dict[str, str | int] = {"code_size": int(inverted_file(template).code_size)}
        return template, open_files(self.folder, self.codes, "codes", parameters)

    def run(
        self,
        shared: tuple[faiss.Index, list[TableFile]],
        lists: ListRange,
        meter: Meter,
        /,
    ) -> AssembledPartition:
        template, parts = shared
        path = partition_path(lists.number)
        with self.home.intact(lists.base) if lists.base else nullcontext() as base:
            file, lengths = assemble_partition(
                template,
                range(lists.first, lists.end),
                parts,
                path,
                self.folder,
                meter,
                base=base,
            )
        return AssembledPartition(file, pack_numbers(lengths))

    def files(self, result: AssembledPartition) -> list[FileEntry]:
        return [result.file]


def assemble_stage(
    build: Build, codes: list[EncodedPart], template: TrainedIndex, ranges: list[ListRange]
) -> list[AssembledPartition]:
    """Gathers the codes, behind the entries that the ranges begin with, into partitions."""
    job = AssembleJob(build.folder, build.home, [part.file for part in codes])
    encoded = digest([part.file.sha256 for part in codes])
    tasks = [
        Task(
            f"partition-{lists.number:05d}",
            fingerprint(
                VERSION,
                {
                    "train": template.file.sha256,
                    "encode": encoded,
                    "index.partitions": [lists.first, lists.end],
                    "index": lists.base and lists.base.sha256,
                },
            ),
            lists,
        )
        for lists in ranges
    ]
    total = sum(part.file.rows for part in codes)
    placement = Placement.in_memory(int(build.config.index.memory))
    return build.run(Stage(job, tasks, AssembledPartition, "chunks", total, placement))


def divide_lists(
    config: IndexConfig, codes: list[EncodedPart], key: IndexKey, dimension: int
) -> list[ListRange]:
    """Divides the lists into partitions of about equal size.

    Args:
        config: Settings of the index.
        codes: What was encoded, with the entries in each range of lists.
        key: The parsed index key.
        dimension: Dimension d of the embeddings.
    """
    entries = functools.reduce(np.add, (unpack_numbers(encoded.entries) for encoded in codes))
    each, _ = predict_size(key, dimension, 1)
    bounds = cut_lists(config, entries, key.lists, each)
    return [ListRange(number, first, end) for number, (first, end) in enumerate(bounds)]
