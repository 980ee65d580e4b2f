"""The index, planned: its key, its files, and the memory of training and search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retro_db.config import Config
from retro_db.index.filling import cut_lists, range_bounds
from retro_db.index.keys import choose_key, parse_key, training_bytes
from retro_db.index.sizing import index_sizes
from retro_db.index.training import training_points
from retro_db.manifest.model import IndexInfo
from retro_db.plan.manifests import index_info
from retro_db.plan.table_sizes import index_files
from retro_db.search.searching import group_partitions, resident_bytes
from retro_db.store.folder import FileEntry


@dataclass(frozen=True)
class IndexPlan:
    """The size of the index and the memory that it takes.

    Attributes:
        key: Index key that was given, or that `auto` chose.
        dimension: Dimension of the embeddings.
        lists: Number of inverted lists.
        entries: Number of chunks in the index: the chunks of training documents.
        entry_bytes: Bytes of one entry, code and id.
        partitions: Number of files of inverted lists.
        memory: Bytes that a worker may use: `index.memory`.
        training_points: Number of embeddings that train the index.
        training_bytes: Memory that the training points take, transformed, with what k-means needs.
        loaded_bytes: Memory that the trained index and all partitions take when opened.
        search_groups: Number of groups of partitions that a search opens one after another; 1 if all fit.
        search_bytes: Memory that the trained index and the largest group take.
    """

    key: str
    dimension: int
    lists: int
    entries: int
    entry_bytes: int
    partitions: int
    memory: int
    training_points: int
    training_bytes: int
    loaded_bytes: int
    search_groups: int
    search_bytes: int

    def described(self, config: Config) -> IndexInfo:
        """Returns what the manifest says of the index before it is tuned."""
        return index_info(
            config, self.key, self.lists, self.partitions, self.training_points, self.dimension
        )


def plan_index(config: Config, dimension: int, chunks: int) -> tuple[IndexPlan, list[FileEntry]]:
    """Plans the index, with entries spread evenly over the lists.

    Args:
        config: Configuration of the build.
        dimension: Dimension of the embeddings, d.
        chunks: Number of chunks of the corpus, validation included.

    Returns:
        The size of the index, and its files.

    Raises:
        IndexKeyError: The index key is malformed, or this number of chunks and this memory cannot train it.
    """
    settings, memory = config.index, int(config.index.memory)
    entries = max(1, round(chunks * (1 - config.split.validation)))
    key = settings.key if settings.key != "auto" else choose_key(entries, dimension, memory)
    parsed = parse_key(key, dimension)
    sizes = index_sizes(parsed, dimension)
    points = min(entries, training_points(parsed, dimension, entries, memory))
    bounds = range_bounds(parsed.lists)
    spread = np.diff(entries * bounds // parsed.lists)
    ranges = cut_lists(settings, spread, parsed.lists, sizes.entry)
    files = index_files(config, dimension, ranges, entries, sizes)
    loaded = [resident_bytes(file.bytes, parsed) for file in files[-len(ranges) :]]
    groups = group_partitions(loaded, memory)
    trained = files[0].bytes
    plan = IndexPlan(
        key=key,
        dimension=dimension,
        lists=parsed.lists,
        entries=entries,
        entry_bytes=sizes.entry,
        partitions=len(ranges),
        memory=memory,
        training_points=points,
        training_bytes=training_bytes(parsed, dimension, points),
        loaded_bytes=trained + sum(loaded),
        search_groups=len(groups),
        search_bytes=trained + max(sum(loaded[first:end]) for first, end in groups),
    )
    return plan, files
