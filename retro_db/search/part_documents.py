"""The documents of parts, and the chunks that the search must not find for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retro_db.manifest.parts import Part
from retro_db.reader.opening import read_documents
from retro_db.search.searching import IdRanges
from retro_db.store.folder import Folder

_BLOCK_QUERIES = 256


@dataclass(frozen=True)
class Documents:
    """The documents of one part that have chunks, in order.

    Attributes:
        starts: int64 [D], first chunk of each document, counted from the part's first chunk.
        counts: int64 [D], number of chunks of each document.
        exclude: For each document, the ranges of chunk ids that its chunks must not find.
    """

    starts: np.ndarray
    counts: np.ndarray
    exclude: Sequence[IdRanges]

    def blocks(self) -> Iterator[tuple[int, int, IdRanges]]:
        """Yields query rows, start and stop, and the ranges of ids that they must not find."""
        documents = zip(self.starts.tolist(), self.counts.tolist(), self.exclude, strict=True)
        for first, count, exclude in documents:
            for start in range(first, first + count, _BLOCK_QUERIES):
                yield start, min(start + _BLOCK_QUERIES, first + count), exclude


def load_documents(folder: Folder, part: Part) -> Documents:
    """Loads a part's documents that have chunks.

    Args:
        folder: The database.
        part: A part of it.

    Returns:
        The documents; each excludes its own chunks.

    Raises:
        DamagedFileError: The documents file is missing.
    """
    table = read_documents(folder, part.documents, part.rows)
    counts = table["chunk_count"].to_numpy()
    starts, counts = table["first_chunk"].to_numpy()[counts > 0], counts[counts > 0]
    firsts = starts + part.first_id
    ranges = zip(firsts.tolist(), (firsts + counts).tolist(), strict=True)
    return Documents(starts, counts, [(own_range,) for own_range in ranges])


def load_queries(
    folder: Folder, part: Part, parts: Sequence[Part], named: Sequence[str]
) -> Documents:
    """Loads documents of a query corpus, which must not find database documents with the same id.

    Args:
        folder: The database.
        part: A part of the query corpus.
        parts: All parts of the database.
        named: Sources of the database whose document ids are compared: those for which both sides
            configure the field of the id. Ids made of positions in files agree by chance.

    Returns:
        The documents; each excludes the chunks of its namesakes.

    Raises:
        DamagedFileError: A documents file is missing.
    """
    sources = pa.array(named, pa.string())
    table = read_documents(folder, part.documents, part.rows)
    table = table.filter(pc.greater(table["chunk_count"], 0))
    namesakes: dict[str, list[tuple[int, int]]] = {}
    for other in parts if named else ():
        others = read_documents(folder, other.documents, other.rows)
        others = others.filter(pc.is_in(others["source"], value_set=sources))
        others = others.filter(pc.is_in(others["id"], value_set=table["id"].combine_chunks()))
        for row in others.to_pylist():
            first = other.first_id + row["first_chunk"]
            ranges = namesakes.setdefault(row["id"], [])
            ranges.append((first, first + row["chunk_count"]))
    exclude = [tuple(namesakes.get(name, ())) for name in table["id"].to_pylist()]
    starts, counts = table["first_chunk"].to_numpy(), table["chunk_count"].to_numpy()
    return Documents(starts, counts, exclude)
