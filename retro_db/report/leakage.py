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
        chunks: Ids of the chunks in their corpus, int64 [n].
        lengths: Lengths of the chunks in tokens, int64 [n].
        common: Length of the run, int64 [n]; 0 if nothing is common.
        neighbors: First neighbor that has the run, int64 [n]; -1 if nothing is common.
        compared: Number of neighbors that the chunk was compared with, int64 [n].
    """

    chunks: np.ndarray
    lengths: np.ndarray
    common: np.ndarray
    neighbors: np.ndarray
    compared: np.ndarray

    @classmethod
    def joined(cls, blocks: Iterable[Overlaps]) -> Overlaps:
        """Returns the overlaps of all chunks of some blocks, in their order."""
        parts = list(blocks)
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(
            *(
                np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)])
                for name in names
            )
        )

    @property
    def ratios(self) -> np.ndarray:
        """Shares of the chunks that their runs take, r(C): float64 [n]."""
        return self.common / self.lengths

    @property
    def bins(self) -> np.ndarray:
        """Bins of r(C): 0 for none, b for more than (b - 1) / BINS up to b / BINS: int64 [n]."""
        # Whole numbers alone, so that rounding cannot move a ratio across a bound.
        return -(-BINS * self.common // self.lengths)


@dataclass
class Leakage:
    """How r(C) is distributed.

    Attributes:
        chunks: Number of measured chunks.
        without_neighbors: Number of measured chunks without any neighbor: their r(C) is 0.
        histogram: Chunks with r(C) of 0, then of more than 0/16 up to 1/16, and so on to 16/16.
        at_most: Chunks with r(C) of at most 12.5%, 25%, 50% and 100%.
        mean: Mean of r(C); 0 if nothing was measured.
    """

    chunks: int
    without_neighbors: int
    histogram: list[int]
    at_most: list[int]
    mean: float


def longest_common(
    chunks: np.ndarray, lengths: np.ndarray, values: np.ndarray, value_lengths: np.ndarray
) -> np.ndarray:
    """Finds the longest run of tokens that chunks have in common with [N, F] of their neighbors.

    Args:
        chunks: Tokens [n, m].
        lengths: Tokens of each chunk before its padding, [n].
        values: Tokens [n, k, 2 m].
        value_lengths: Tokens of N and of F before their padding, [n, k, 2]; 0 for a missing neighbor.

    Returns:
        Lengths of the longest common substrings, int64 [n, k].
    """
    m = chunks.shape[1]
    tokens = np.where(np.arange(m) < lengths[:, None], chunks.astype(np.int32), _NO_TOKEN)
    is_token = (np.arange(m) < value_lengths[..., None]).reshape(values.shape)
    value_tokens = np.where(is_token, values.astype(np.int32), _NO_VALUE)
    # Dynamic programming over the chunk's tokens: runs that end at each token of the neighbor.
    kind = np.min_scalar_type(m)
    runs = np.zeros((*values.shape[:2], 2 * m + 1), kind)
    longest = np.zeros(values.shape, kind)
    for position in range(m):
        equal = value_tokens == tokens[:, position, None, None]
        runs[..., 1:] = (runs[..., :-1] + kind.type(1)) * equal
        np.maximum(longest, runs[..., 1:], out=longest)
    return longest.max(axis=-1, initial=0).astype(np.int64)


def overlaps(corpus: Corpus, ids: np.ndarray, k: int) -> Iterator[Overlaps]:
    """Compares chunks with their first k neighbors, some at a time so that memory does not grow with them.

    Args:
        corpus: Corpus of the chunks.
        ids: Ids of the chunks, int64 [n].
        k: Neighbors of each; 10 in the paper.

    Yields:
        Overlaps of all chunks, in their order.

    Raises:
        DamagedFileError: A file is missing, or disagrees with the manifest.
    """
    for start in range(0, len(ids), _BLOCK):
        yield _overlaps(corpus, ids[start : start + _BLOCK], k)


def _overlaps(corpus: Corpus, ids: np.ndarray, k: int) -> Overlaps:
    near = corpus.neighbors[ids][:, :k]
    filled = near >= 0
    chunks, lengths = corpus.chunks[ids], corpus.chunks.lengths(ids).astype(np.int64)
    searched = corpus if corpus.found_in is None else corpus.found_in
    values = np.zeros((*near.shape, 2 * chunks.shape[1]), chunks.dtype)
    value_lengths = np.zeros((*near.shape, 2), np.int64)
    values[filled], value_lengths[filled] = searched.chunks.values_and_lengths(near[filled])
    common = longest_common(chunks, lengths, values, value_lengths)
    best = common.argmax(axis=1)
    most = np.take_along_axis(common, best[:, None], axis=1)[:, 0]
    nearest = np.take_along_axis(near, best[:, None], axis=1)[:, 0]
    return Overlaps(ids, lengths, most, np.where(most > 0, nearest, -1), filled.sum(axis=1))


def measure_leakage(
    database: Database,
    queries: str | None = None,
    k: int = 10,
    save: str | None = None,
) -> Leakage:
    """Measures r(C) of every chunk of an evaluation set.

    Args:
        database: Database that has the neighbors.
        queries: Name of the query corpus; None for the validation split.
        k: Number of neighbors that a chunk is compared with; 10 in the paper.
        save: Path or URL of a Parquet file for each chunk's figures: chunk, length, common and neighbor,
            as in `Overlaps`.

    Raises:
        InputError: The database has no such corpus, no validation split, or fewer neighbors.
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
    """Returns a corpus, and the ids of the chunks that are measured."""
    corpus = database.corpus(queries)
    if queries is not None:
        return corpus, np.arange(len(corpus))
    blocks: list[np.ndarray] = [np.empty(0, np.int64)]
    base = 0
    for table in database.document_parts():
        chosen = (table["split"].to_numpy() == VALIDATION) & (table["chunk_count"].to_numpy() > 0)
        chosen[database.removals.documents_among(base, len(table))] = False
        base += len(table)
        firsts = table["first_chunk"].to_numpy()[chosen]
        counts = table["chunk_count"].to_numpy()[chosen]
        blocks.append(ids_in(firsts, counts))
    ids = np.concatenate(blocks)
    if not len(ids):
        raise InputError(
            f"{database.folder.url}: has no validation split; name a query corpus, or build with "
            "split.validation"
        )
    return database, ids


@contextlib.contextmanager
def _saving(path: str | None) -> Iterator[Callable[[Overlaps], None]]:
    """Yields a function that saves the figures of some chunks; the file gets its name once it is complete."""
    if path is None:
        yield lambda _: None
        return
    folder, name = os.path.split(path)
    with (
        Folder(folder or ".").writing(name) as file,
        pq.ParquetWriter(file, _SCHEMA, compression="zstd") as writer,
    ):
        yield lambda block: writer.write_batch(_figures(block))


def _figures(block: Overlaps) -> pa.RecordBatch:
    columns = (block.chunks, block.lengths, block.common, block.neighbors)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)
