"""Gathering: the neighbors of a span's chunks from every partition, merged by (distance, id)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from retro_db.join.near_files import Neighbors
from retro_db.join.nearest import nearest_of_pairs
from retro_db.join.setting import JoinSetting
from retro_db.join.spans import PartRows, Span
from retro_db.reader.opening import open_files
from retro_db.store.contracts import contract
from retro_db.store.embedded import is_embedded
from retro_db.store.folder import FileEntry, Folder, TableEntry, describe
from retro_db.store.slices import Slice, column, read_slice
from retro_db.store.writing import TableWriter

_BLOCK_ROWS = 16_384


def gather(folder: Folder, rounds: Sequence[Sequence[Slice]], setting: JoinSetting) -> Neighbors:
    """Reads what all partitions have found for a span, sorted by query.

    Args:
        folder: Folder of the join.
        rounds: For every round, the span's slice of each file of neighbors. What a query found in a later
            round, through more lists, stands for what it found before.
        setting: What the join agrees on.
    """
    schema = setting.schema("near")
    answers: list[Neighbors] = []
    later = np.empty(0, np.int64)
    for slices in reversed(rounds):
        neighbors = Neighbors.joined(
            [
                Neighbors(column(batch, "query"), column(batch, "id"), column(batch, "distance"))
                for piece in slices
                for batch in read_slice(folder, piece, schema)
            ]
        )
        if len(later):
            neighbors = neighbors.take(~np.isin(neighbors.queries, later))
        later = np.union1d(later, neighbors.queries) if len(rounds) > 1 else later
        answers.append(neighbors)
    joined = Neighbors.joined(answers)
    return joined.take(np.argsort(joined.queries, kind="stable"))


def queries_of(span: Span, home: Folder, dimension: int, removed: np.ndarray) -> np.ndarray:
    """Ids of a span's chunks that have an embedding and were not removed: int64, ascending.

    Args:
        span: The span.
        home: Folder of its files.
        dimension: d of the embeddings.
        removed: int64 [r], ids of removed chunks.
    """
    ids = [np.empty(0, np.int64)]
    for piece in span.pieces:
        for start, embedded in _embedded(piece, home, dimension):
            ids.append(np.flatnonzero(embedded) + piece.part.first_id + start)
    return np.setdiff1d(np.concatenate(ids), removed, assume_unique=True)


def write_ids(folder: Folder, path: str, ids: np.ndarray) -> FileEntry:
    """Writes ids of chunks, int64 [n]."""
    with folder.writing(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, ids)
        return describe(temporary, path)


def read_ids(folder: Folder, file: FileEntry) -> np.ndarray:
    """Reads what `write_ids` has written."""
    return np.load(io.BytesIO(folder.read(file.path)))


def short_queries(neighbors: Neighbors, queries: np.ndarray, k: int) -> np.ndarray:
    """Queries with fewer than k neighbors: int64, ascending.

    Args:
        neighbors: Neighbors of the span, sorted by query.
        queries: int64 [n], ids of the span's queries.
        k: Number of neighbors.
    """
    counts = np.searchsorted(neighbors.queries, queries, side="right")
    counts -= np.searchsorted(neighbors.queries, queries, side="left")
    return queries[counts < k]


def write_neighbors(
    pieces: Iterable[tuple[PartRows, Neighbors]],
    home: Folder,
    path: str,
    folder: Folder,
    setting: JoinSetting,
) -> tuple[TableEntry, int]:
    """Writes the neighbors of one part's chunks, row for row.

    Args:
        pieces: All rows of the part, in order, with neighbors of theirs and maybe of others, sorted by query.
        home: Folder of the part's files; chunks without an embedding have no neighbors.
        path: Path of the neighbors file, relative to the folder.
        folder: Folder that it is written to.
        setting: What the join agrees on.

    Returns:
        The file, and the number of chunks with an embedding that have fewer than k neighbors.
    """
    table, k = contract("neighbors"), setting.k
    short = 0
    with folder.writing(path) as temporary:
        with TableWriter(temporary, table.schema(k=k), table.batch_rows) as writer:
            for piece, neighbors in pieces:
                for start, embedded in _embedded(piece, home, setting.dimension):
                    first_id = piece.part.first_id + start
                    ids, distances = _nearest_of(neighbors, first_id, len(embedded), k)
                    short += int((ids[embedded, -1] < 0).sum())
                    writer.append({"ids": ids, "distances": distances})
        return describe(temporary, path, writer.rows), short


def _nearest_of(
    neighbors: Neighbors, first_id: int, count: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest neighbors of chunks `first_id` to `first_id + count - 1`, as `nearest_of_pairs`."""
    pairs = slice(*np.searchsorted(neighbors.queries, [first_id, first_id + count]))
    rows = neighbors.queries[pairs] - first_id
    return nearest_of_pairs(rows, neighbors.ids[pairs], neighbors.distances[pairs], count, k)


def _embedded(piece: PartRows, home: Folder, dimension: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields rows of a part from `start` on, block by block: whether each has an embedding, bool [rows]."""
    parameters: dict[str, str | int] = {"dimension": dimension}
    [embeddings] = open_files(home, [piece.part.keys_file], "embeddings", parameters)
    for start in range(piece.start, piece.stop, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, piece.stop)
        yield start, is_embedded(embeddings.read("vector", start, stop))
