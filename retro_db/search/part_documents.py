"""The documents of parts, and the chunks that each of them must not find."""

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
    """Documents of one part: those with chunks, in order.

    Attributes:
        starts: int64 [D], first chunk of each, counted from the part's first.
        counts: int64 [D], chunks of each.
        exclude: For each, the ranges of chunk ids that its chunks must not find.
    """

    starts: np.ndarray
    counts: np.ndarray
    exclude: Sequence[IdRanges]

    def blocks(self) -> Iterator[tuple[int, int, IdRanges]]:
        """Query rows start to stop, and what they must not find."""
        held = zip(self.starts.tolist(), self.counts.tolist(), self.exclude, strict=True)
        for first, count, exclude in held:
            for start in range(first, first + count, _BLOCK_QUERIES):
                yield start, min(start + _BLOCK_QUERIES, first + count), exclude


def load_documents(folder: Folder, part: Part) -> Documents:
    """The part's documents that have chunks.

    Args:
        folder: The database.
        part: Which part.

    Returns:
        Where each document's chunks are; each excludes itself.

    Raises:
        DamagedFileError: The documents file is missing.
    """
    table = read_documents(folder, part.documents, part.rows)
    counts = table["chunk_count"].to_numpy()
    starts, counts = table["first_chunk"].to_numpy()[counts > 0], counts[counts > 0]
    firsts = starts + part.first_id
    own = zip(firsts.tolist(), (firsts + counts).tolist(), strict=True)
    return Documents(starts, counts, [(ids,) for ids in own])


def load_queries(
    folder: Folder, part: Part, parts: Sequence[Part], named: Sequence[str]
) -> Documents:
    """Documents of a query corpus, which must not find documents of the database with their own id.

    Args:
        folder: The database.
        part: Which part of the query corpus.
        parts: All parts of the database.
        named: Sources of the database whose ids can be the queries' own: where both say which field
            names a document. Ids made of places in files agree by chance.

    Returns:
        Where each document's chunks are; each excludes the chunks of its namesakes.

    Raises:
        DamagedFileError: A documents file is missing.
    """
    wanted = pa.array(named, pa.string())
    table = read_documents(folder, part.documents, part.rows)
    table = table.filter(pc.greater(table["chunk_count"], 0))
    namesakes: dict[str, list[tuple[int, int]]] = {}
    for other in parts if named else ():
        held = read_documents(folder, other.documents, other.rows)
        held = held.filter(pc.is_in(held["source"], value_set=wanted))
        held = held.filter(pc.is_in(held["id"], value_set=table["id"].combine_chunks()))
        for row in held.to_pylist():
            first = other.first_id + row["first_chunk"]
            ranges = namesakes.setdefault(row["id"], [])
            ranges.append((first, first + row["chunk_count"]))
    exclude = [tuple(namesakes.get(name, ())) for name in table["id"].to_pylist()]
    starts, counts = table["first_chunk"].to_numpy(), table["chunk_count"].to_numpy()
    return Documents(starts, counts, exclude)
