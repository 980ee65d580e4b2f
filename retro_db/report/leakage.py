"""How much of what a model is evaluated on it could have copied from its neighbors (paper, section 2.6)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.errors import InputError
from retro_db.manifest.model import VALIDATION
from retro_db.reader.database import Corpus, Database
from retro_db.reader.rows import ids_in
from retro_db.store.folder import Folder

SHARES = (0.125, 0.25, 0.5, 1.0)
BINS = 16
# Chunks measured at a time: some megabytes of runs.
_BLOCK = 1024
_NO_TOKEN, _NO_VALUE = -1, -2
_SCHEMA = pa.schema(
    [
        pa.field("chunk", pa.int64(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("common", pa.int32(), nullable=False),
        pa.field("neighbor", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Overlaps:
    """The longest run of tokens that each of n chunks has in common with one of its neighbors.

    Attributes:
        chunks: Their ids in their corpus, int64 [n].
        lengths: Of the chunks, in tokens, int64 [n].
        common: Length of the run, int64 [n]; 0 where there is none.
        neighbors: The first neighbor that has it, int64 [n]; -1 where there is none.
        compared: With how many neighbors, int64 [n].
    """

    chunks: np.ndarray
    lengths: np.ndarray
    common: np.ndarray
    neighbors: np.ndarray
    compared: np.ndarray

    @classmethod
    def joined(cls, blocks: Iterable[Overlaps]) -> Overlaps:
        """Of all chunks of some blocks, in their order."""
        held = list(blocks)
        fields = [
            np.concatenate([np.empty(0, np.int64), *(getattr(block, one.name) for block in held)])
            for one in dataclasses.fields(cls)
        ]
        return cls(*fields)

    @property
    def ratios(self) -> np.ndarray:
        """r(C): float64 [n]."""
        return self.common / self.lengths

    @property
    def bins(self) -> np.ndarray:
        """Of r(C): 0 for none, b for more than (b - 1) / BINS up to b / BINS: int64 [n]."""
        # Of whole numbers, so that no bound is missed by a rounding.
        return -(-BINS * self.common // self.lengths)


@dataclass
class Leakage:
    """How r(C) is distributed.

    Attributes:
        chunks: How many were measured.
        without_neighbors: Those of them that have none: r(C) is 0.
        histogram: Chunks with r(C) of 0, then of more than 0/16 up to 1/16, and so on to 16/16.
        at_most: Chunks with r(C) of at most 12.5%, 25%, 50% and 100%.
        mean: Of r(C); 0 where nothing was measured.
    """

    chunks: int
    without_neighbors: int
    histogram: list[int]
    at_most: list[int]
    mean: float


def longest_common(
    chunks: np.ndarray, lengths: np.ndarray, values: np.ndarray, value_lengths: np.ndarray
) -> np.ndarray:
    """The longest run of tokens that chunks have in common with [N, F] of their neighbors.

    Args:
        chunks: Tokens [n, m].
        lengths: Tokens of each chunk before its padding, [n].
        values: Tokens [n, k, 2 m].
        value_lengths: Tokens of N and of F before their padding, [n, k, 2]; 0 where there is none.

    Returns:
        Lengths of the longest common substrings, int64 [n, k].
    """
    m = chunks.shape[1]
    own = np.where(np.arange(m) < lengths[:, None], chunks.astype(np.int32), _NO_TOKEN)
    there = (np.arange(m) < value_lengths[..., None]).reshape(values.shape)
    other = np.where(there, values.astype(np.int32), _NO_VALUE)
    # Dynamic programming over the chunk's tokens: runs that end at each token of the neighbor.
    kind = np.min_scalar_type(m)
    runs = np.zeros((*values.shape[:2], 2 * m + 1), kind)
    longest = np.zeros(values.shape, kind)
    for token in range(m):
        equal = other == own[:, token, None, None]
        runs[..., 1:] = (runs[..., :-1] + kind.type(1)) * equal
        np.maximum(longest, runs[..., 1:], out=longest)
    return longest.max(axis=-1, initial=0).astype(np.int64)


def overlaps(corpus: Corpus, ids: np.ndarray, k: int) -> Iterator[Overlaps]:
    """Compares chunks with their first k neighbors, some at a time so that memory does not grow with them.

    Args:
        corpus: Whose chunks.
        ids: int64 [n].
        k: Neighbors of each; 10 in the paper.

    Yields:
        All of them, in their order.

    Raises:
        DamagedFileError: A file is missing, or disagrees with the manifest.
    """
    for start in range(0, len(ids), _BLOCK):
        yield _overlaps(corpus, ids[start : start + _BLOCK], k)


def _overlaps(corpus: Corpus, ids: np.ndarray, k: int) -> Overlaps:
    near = corpus.neighbors[ids][:, :k]
    there = near >= 0
    chunks, lengths = corpus.chunks[ids], corpus.chunks.lengths(ids).astype(np.int64)
    found_in = corpus if corpus.found_in is None else corpus.found_in
    values = np.zeros((*near.shape, 2 * chunks.shape[1]), chunks.dtype)
    value_lengths = np.zeros((*near.shape, 2), np.int64)
    values[there], value_lengths[there] = found_in.chunks.values_and_lengths(near[there])
    common = longest_common(chunks, lengths, values, value_lengths)
    best = common.argmax(axis=1)
    most = np.take_along_axis(common, best[:, None], axis=1)[:, 0]
    holder = np.take_along_axis(near, best[:, None], axis=1)[:, 0]
    return Overlaps(ids, lengths, most, np.where(most > 0, holder, -1), there.sum(axis=1))


def measure_leakage(
    database: Database,
    queries: str | None = None,
    k: int = 10,
    save: str | None = None,
) -> Leakage:
    """Measures r(C) of every chunk of an evaluation set.

    Args:
        database: Where the neighbors are.
        queries: Name of the query corpus; the validation split where it is None.
        k: Neighbors of a chunk that are looked at; 10 in the paper.
        save: Path or URL of a Parquet file for each chunk's figures: chunk, length, common and neighbor,
            as in `Overlaps`.

    Raises:
        InputError: There is no such corpus, no validation split, or fewer neighbors are stored.
        DamagedFileError: A file is missing, or disagrees with the manifest.
    """
    database.check_k(k)
    corpus, ids = _evaluated(database, queries)
    histogram = np.zeros(BINS + 1, np.int64)
    at_most = np.zeros(len(SHARES), np.int64)
    without, total = 0, 0.0
    with _saving(save) as keep:
        for block in overlaps(corpus, ids, k):
            keep(block)
            histogram += np.bincount(block.bins, minlength=BINS + 1)
            ratios = block.ratios
            at_most += [int((ratios <= share).sum()) for share in SHARES]
            without += int((block.compared == 0).sum())
            total += float(ratios.sum())
    mean = total / max(len(ids), 1)
    return Leakage(len(ids), without, histogram.tolist(), at_most.tolist(), mean)


def _evaluated(database: Database, queries: str | None) -> tuple[Corpus, np.ndarray]:
    """A corpus, and ids of those of its chunks that are measured."""
    corpus = database.corpus(queries)
    if queries is not None:
        return corpus, np.arange(len(corpus))
    ids: list[np.ndarray] = [np.empty(0, np.int64)]
    base = 0
    for table in database.document_parts():
        chosen = (table["split"].to_numpy() == VALIDATION) & (table["chunk_count"].to_numpy() > 0)
        chosen[database.removals.documents_among(base, len(table))] = False
        base += len(table)
        firsts = table["first_chunk"].to_numpy()[chosen]
        counts = table["chunk_count"].to_numpy()[chosen]
        ids.append(ids_in(firsts, counts))
    found = np.concatenate(ids)
    if not len(found):
        raise InputError(
            f"{database.folder.url}: has no validation split; name a query corpus, or build with "
            "split.validation"
        )
    return database, found


@contextlib.contextmanager
def _saving(path: str | None) -> Iterator[Callable[[Overlaps], None]]:
    """What takes the figures of some chunks; the file takes its name when all are in it."""
    if path is None:
        yield lambda _: None
        return
    place, name = os.path.split(path)
    with (
        Folder(place or ".").writing(name) as file,
        pq.ParquetWriter(file, _SCHEMA, compression="zstd") as writer,
    ):
        yield lambda block: writer.write_batch(_figures(block))


def _figures(block: Overlaps) -> pa.RecordBatch:
    columns = (block.chunks, block.lengths, block.common, block.neighbors)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)
