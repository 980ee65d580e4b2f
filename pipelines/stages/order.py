"""Orders the lists in space, and cuts them into the partitions of the join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retro_db.index.structure import inverted_file, read_index
from retro_db.join.spatial_order import Order, cut_equally, cut_partitions, order_lists
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.packing import unpack_numbers

from ..engine.context import Build
from ..engine.jobs import Job, Placement, Stage, Task, fingerprint
from .tune import BuiltIndex

VERSION = 2


@dataclass(frozen=True)
class OrderedLists:
    """The file of the order, and the number of its partitions."""

    file: FileEntry
    partitions: int


@dataclass
class OrderJob(Job):
    """Orders the lists of an index."""

    stage: ClassVar[str] = "order"
    part_of: ClassVar[str | None] = "neighbors"
    home: Folder
    template: FileEntry
    partitions: int | None
    most_keys: int

    def run(self, shared: None, lengths: list[str], meter: Meter, /) -> OrderedLists:
        template = read_index(self.home.verified(self.template))  # owns what the next line reads
        ivf = inverted_file(template)
        ordered = order_lists(ivf.quantizer.reconstruct_n(0, ivf.nlist))
        keys = np.concatenate([unpack_numbers(packed) for packed in lengths])[ordered]
        if self.partitions is None:
            cuts = cut_partitions(keys, self.most_keys)
        else:
            cuts = cut_equally(keys, self.partitions)
        places = np.empty(len(ordered), np.int64)
        places[ordered] = np.arange(len(ordered))
        meter(len(ordered))
        order = Order(places, cuts)
        return OrderedLists(order.write(self.folder), order.partitions)

    def files(self, result: OrderedLists) -> list[FileEntry]:
        return [result.file]


def order_stage(build: Build, index: BuiltIndex, most_keys: int) -> OrderedLists:
    """Orders the lists, and cuts them into as many partitions as are configured, or the memory asks for.

    Args:
        build: The build.
        index: The index.
        most_keys: Keys that a partition may have.
    """
    wanted = build.config.neighbors.partitions
    partitions = None if wanted == "auto" else wanted
    template = index.template.file
    job = OrderJob(build.folder, build.home, template, partitions, most_keys)
    decides = {
        "train": template.sha256,
        "assemble": [file.sha256 for file in index.partitions],
        "neighbors.partitions": partitions,
        "index.memory": most_keys if partitions is None else None,
    }
    task = Task("ordered", fingerprint(VERSION, decides), index.lengths)
    placement = Placement.in_memory(int(build.config.index.memory))
    return build.run_task(Stage(job, [task], OrderedLists, "lists", index.lists, placement))
