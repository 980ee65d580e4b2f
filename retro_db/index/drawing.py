"""Chunks drawn by hashing their ids: some train the index, and it is tuned with others.

Each part's task writes those of its part, so that tuning does not read all embeddings, and training neither,
where it needs less than an eighth of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retro_db.hashing import fractions_of
from retro_db.index.part_embeddings import in_training_split
from retro_db.index.structure import widen
from retro_db.manifest.parts import Part, contents_of
from retro_db.reader.opening import open_files, read_documents
from retro_db.store.contracts import contract
from retro_db.store.embedded import is_embedded
from retro_db.store.folder import Folder, TableEntry
from retro_db.store.serialize import digest, to_json
from retro_db.store.slices import Slice, SlicedFile, column, read_slice, writing_slices

# Expected by hashing; a somewhat smaller sample still has the thousand that a bound of 0.3% needs.
QUERIES = 1200
# A larger share of the embeddings is not worth a copy.
_LARGEST_COPY = 1 / 8
_POINTS, _QUERIES = 0, 1
# Folder of the files.
DRAWN = "state/drawn"


@dataclass(frozen=True)
class Drawing:
    """Which chunks are drawn.

    A chunk is drawn if the hash of its id, a number in [0, 1), lies below a share: what a smaller share
    would draw is always among it.

    Attributes:
        dimension: d of the embeddings.
        points: Share of the training split's chunks that are drawn for training, rounded up; 0 if training
            reads the embeddings themselves.
        queries: Share of all chunks that are drawn for tuning.
        seed: Seed of the hashes.
    """

    dimension: int
    points: float
    queries: float
    seed: int

    @classmethod
    def of(cls, dimension: int, *, points: float, chunks: int, seed: int) -> Drawing:
        """What training and tuning need.

        The exact share of points is known only when all chunks are embedded, and so up to an eighth more is
        drawn.

        Args:
            dimension: d of the embeddings.
            points: Share of the training split's chunks that train the index; 0 if it is trained already.
            chunks: Number of all chunks.
            seed: Seed of the hashes.
        """
        mantissa, exponent = math.frexp(points)
        share = math.ldexp(math.ceil(16 * mantissa), exponent - 4)
        queries = min(1.0, QUERIES / max(chunks, 1))
        return cls(dimension, share if share <= _LARGEST_COPY else 0.0, queries, seed)


@dataclass(frozen=True)
class Drawn:
    """What was drawn from one part.

    Attributes:
        drawing: What was to be drawn.
        sliced: File of the chunks, a slice for training and one for tuning.
    """

    drawing: Drawing
    sliced: SlicedFile

    @property
    def points(self) -> Slice:
        """The slice of chunks that train the index."""
        return self.sliced.at(_POINTS)

    @property
    def queries(self) -> Slice:
        """The slice of chunks that the index is tuned with."""
        return self.sliced.at(_QUERIES)


def drawn_path(part: Part, drawing: Drawing) -> str:
    """Path of what is drawn from an embedded part: another one for other contents.

    So no record of earlier contents comes to vouch for these.
    """
    key = digest([to_json(drawing), part.first_id, *contents_of(part)])[:16]
    return contract("drawn").path.format(shard=part.shard, part=part.number, key=key)


class Drawer:
    """Takes the drawn chunks of one part from its embeddings, as they pass.

    Args:
        part: A part; it need not be embedded yet.
        home: Folder of its files.
        drawing: Which chunks are drawn.
    """

    def __init__(self, part: Part, home: Folder, drawing: Drawing) -> None:
        table = read_documents(home, part.documents, part.rows)
        counts = table["chunk_count"].to_numpy().astype(np.int64)
        starts = part.first_id + table["first_chunk"].to_numpy().astype(np.int64)
        ids = part.first_id + np.arange(part.rows)
        chosen = (
            in_training_split(table) & (fractions_of(ids, drawing.seed) < drawing.points),
            fractions_of(ids, drawing.seed + 1) < drawing.queries,
        )
        self._part = part
        self._drawing = drawing
        self._starts, self._counts = starts[counts > 0], counts[counts > 0]
        self._rows = [np.flatnonzero(rows) for rows in chosen]
        self._schema = contract("drawn").schema(dimension=drawing.dimension)
        self._batches: list[list[dict[str, np.ndarray]]] = [[], []]

    def wants(self, start: int, stop: int) -> bool:
        """Whether any of the rows start to stop - 1 is drawn."""
        return any(
            np.searchsorted(rows, stop) > np.searchsorted(rows, start) for rows in self._rows
        )

    def take(self, start: int, embeddings: np.ndarray) -> None:
        """Takes what is drawn and has an embedding from consecutive rows.

        Args:
            start: Number of the first row in the part, a multiple of the table's batches.
            embeddings: float16 [n, d].
        """
        # The file is the same, however many rows pass at a time.
        for window in range(start, start + len(embeddings), contract("drawn").batch_rows):
            stop = window + contract("drawn").batch_rows
            self._take(window, embeddings[window - start : stop - start])

    def _take(self, start: int, embeddings: np.ndarray) -> None:
        for rows, batches in zip(self._rows, self._batches, strict=True):
            first, end = np.searchsorted(rows, [start, start + len(embeddings)])
            vectors = embeddings[rows[first:end] - start]
            embedded = is_embedded(vectors)
            if embedded.any():
                ids = self._part.first_id + rows[first:end][embedded]
                documents = np.searchsorted(self._starts, ids, side="right") - 1
                firsts = self._starts[documents]
                ends = firsts + self._counts[documents]
                columns = {"id": ids, "first": firsts, "end": ends, "vector": vectors[embedded]}
                batches.append(columns)

    def write(self, folder: Folder, embeddings: TableEntry) -> Drawn:
        """Writes what was taken.

        Args:
            folder: Folder that is written to.
            embeddings: File of the embeddings that passed.
        """
        path = drawn_path(replace(self._part, embeddings=embeddings), self._drawing)
        written: list[SlicedFile] = []
        with writing_slices(folder, path, self._schema, written) as writer:
            for batches in self._batches:
                writer.begin()
                for columns in batches:
                    writer.write(columns)
        return Drawn(self._drawing, written[0])


def draw_part(part: Part, home: Folder, folder: Folder, drawing: Drawing) -> Drawn:
    """Writes the chunks of one part that are drawn and have an embedding.

    Args:
        part: An embedded part.
        home: Folder of its files.
        folder: Folder that is written to.
        drawing: Which chunks are drawn.

    Raises:
        DamagedFileError: A file of the part is missing or damaged.
    """
    drawer = Drawer(part, home, drawing)
    # A part without any is not even opened, which would fetch it from an object store.
    if drawer.wants(0, part.rows):
        parameters: dict[str, str | int] = {"dimension": drawing.dimension}
        [embeddings] = open_files(home, [part.keys_file], "embeddings", parameters)
        for start in range(0, part.rows, embeddings.batch_rows):
            stop = min(start + embeddings.batch_rows, part.rows)
            if drawer.wants(start, stop):
                drawer.take(start, embeddings.read("vector", start, stop))
    return drawer.write(folder, part.keys_file)


class DrawnPoints:
    """Embeddings that were drawn for training, by part.

    Args:
        folder: Folder that they were written to.
        drawn: What was drawn from every part, in order.
    """

    def __init__(self, folder: Folder, drawn: Sequence[Drawn]) -> None:
        self._folder = folder
        self._drawn = drawn

    def read(self, share: float, seed: int) -> Iterator[np.ndarray]:
        """Yields the embeddings of chunks whose hash lies below a share: float16 [n, d], by id."""
        for part in self._drawn:
            schema = contract("drawn").schema(dimension=part.drawing.dimension)
            for batch in read_slice(self._folder, part.points, schema):
                yield column(batch, "vector")[fractions_of(column(batch, "id"), seed) < share]


def read_queries(folder: Folder, drawn: Sequence[Drawn]) -> tuple[np.ndarray, np.ndarray]:
    """Reads what was drawn for tuning.

    Args:
        folder: Folder that it was written to.
        drawn: What was drawn from every part, in order; at least one.

    Returns:
        Queries float32 [q, d], and the ids of each query's own document, first and end, int64 [q, 2].
    """
    dimension = drawn[0].drawing.dimension
    schema = contract("drawn").schema(dimension=dimension)
    vectors, own = [np.empty((0, dimension), np.float32)], [np.empty((0, 2), np.int64)]
    for part in drawn:
        for batch in read_slice(folder, part.queries, schema):
            vectors.append(widen(column(batch, "vector")))
            own.append(np.stack([column(batch, "first"), column(batch, "end")], axis=1))
    return np.concatenate(vectors), np.concatenate(own)
