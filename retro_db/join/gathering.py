"""Gathering: the neighbors of a span's chunks from every partition, merged by (distance, id)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from retro_db.index.structure import is_embedded
from retro_db.join.near_files import Neighbors
from retro_db.join.nearest import nearest_of_pairs
from retro_db.join.setting import JoinSetting
from retro_db.join.spans import Span
from retro_db.reader.opening import open_files
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry, describe
from retro_db.store.slices import Slice, column, read_slice
from retro_db.store.tables import TableFile
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
        parameters: dict[str, str | int] = {"dimension": dimension}
        [embeddings] = open_files(home, [piece.part.keys_file], "embeddings", parameters)
        for start in range(piece.start, piece.stop, _BLOCK_ROWS):
            vectors = embeddings.read("vector", start, min(start + _BLOCK_ROWS, piece.stop))
            ids.append(np.flatnonzero(is_embedded(vectors)) + piece.part.first_id + start)
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
    neighbors: Neighbors,
    first_id: int,
    embeddings: TableFile,
    k: int,
    path: str,
    folder: Folder,
) -> tuple[TableEntry, int]:
    """Writes the neighbors of one part's chunks, row for row.

    Args:
        neighbors: Neighbors of its chunks, and perhaps of others, sorted by query.
        first_id: Id of the part's first chunk.
        embeddings: The part's embeddings; chunks without one have no neighbors.
        k: Number of neighbors of a chunk.
        path: Path of the neighbors file, relative to the folder.
        folder: Folder that it is written to.

    Returns:
        The file, and the number of chunks with an embedding that have fewer than k neighbors.
    """
    table = contract("neighbors")
    short = 0
    with folder.writing(path) as temporary:
        with TableWriter(temporary, table.schema(k=k), table.batch_rows) as writer:
            for start in range(0, embeddings.rows, _BLOCK_ROWS):
                stop = min(start + _BLOCK_ROWS, embeddings.rows)
                ids = [first_id + start, first_id + stop]
                pairs = slice(*np.searchsorted(neighbors.queries, ids))
                near = nearest_of_pairs(
                    neighbors.queries[pairs] - ids[0],
                    neighbors.ids[pairs],
                    neighbors.distances[pairs],
                    stop - start,
                    k,
                )
                embedded = is_embedded(embeddings.read("vector", start, stop))
                short += int((near[0][embedded, -1] < 0).sum())
                writer.append({"ids": near[0], "distances": near[1]})
        return describe(temporary, path, writer.rows), short
