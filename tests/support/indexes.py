"""Keys in parts, and an index over them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from retro_db.index.filling import assemble_partition, encode_part, list_ranges, partition_path
from retro_db.index.part_embeddings import PartEmbeddings
from retro_db.index.structure import faiss, inverted_file
from retro_db.index.training import PATH
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder
from retro_db.store.tables import IpcFile
from retro_db.store.writing import TableWriter

D = 32


def quiet(count: int) -> None:
    """A report that nobody reads."""


def make_keys(count: int) -> np.ndarray:
    """Clustered float16 vectors, some of them equal."""
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(20, D))
    keys = centers[rng.integers(20, size=count)] + 0.3 * rng.normal(size=(count, D))
    keys[count // 2 : count // 2 + 40] = keys[:40]
    return keys.astype(np.float16)


def make_parts(folder: Path, keys: np.ndarray, shards: int) -> list[PartEmbeddings]:
    """The keys in as many files of unequal size, every 17th chunk not indexed."""
    table = contract("embeddings")
    schema = table.schema(dimension=D)
    bounds = [len(keys) * i * (i + 1) // (shards * (shards + 1)) for i in range(shards + 1)]
    parts = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        path = folder / f"keys-{number}.arrow"
        with TableWriter(path, schema, table.batch_rows) as writer:
            writer.append({"vector": keys[start:stop]})
        file = IpcFile(path, schema, stop - start, table.batch_rows)
        parts.append(PartEmbeddings(start, file, np.arange(start, stop) % 17 != 0))
    return parts


def fill(
    folder: Folder, template: faiss.Index, parts: list[PartEmbeddings], partitions: int
) -> None:
    """Runs the two stages."""
    Path(folder.url, "index").mkdir(parents=True)
    faiss.write_index(template, str(Path(folder.url) / PATH))
    schema = contract("codes").schema(code_size=inverted_file(template).code_size)
    codes, entries = [], []
    for number, part in enumerate(parts):
        path = contract("codes").name(number, 0)
        entry, counts = encode_part(part, path, template, 1, folder, quiet)
        entries.append(counts)
        file = IpcFile(folder.local(path), schema, entry.rows, contract("codes").batch_rows)
        codes.append(file)
    ranges = list_ranges(np.sum(entries, axis=0), inverted_file(template).nlist, partitions)
    assert len(ranges) == partitions
    for number, (first, end) in enumerate(ranges):
        lists = range(first, end)
        assemble_partition(template, lists, codes, partition_path(number), folder, quiet)
