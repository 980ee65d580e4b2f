"""The chunks of each training sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retro_db.reader.database import Corpus
from retro_db.reader.mapped import mapped_zeros

Packing = Literal["packed", "document"]


@dataclass
class Run:
    """Sequences of one source that follow one another.

    Attributes:
        source: Name of the source.
        first: Number of the first sequence.
        count: Number of the sequences.
    """

    source: str
    first: int
    count: int = 0


@dataclass(frozen=True)
class Located:
    """Chunks of b sequences of l rows each, int64 [b, l] except `present`.

    Attributes:
        ids: Chunk ids; of any chunk if a row has none.
        present: Whether a row has a chunk, bool [b, l].
        documents: Numbers of the rows' documents among the chosen ones, ascending.
        firsts: First chunk of each row's document.
        ends: One after the last chunk of each row's document.
    """

    ids: np.ndarray
    present: np.ndarray
    documents: np.ndarray
    firsts: np.ndarray
    ends: np.ndarray


class Sequences:
    """The chosen documents, laid out in rows of one chunk; every sequence has the same number of rows.

    Packed documents follow one another, and each source begins a new sequence; else each document does.
    The rest of the last sequence is empty rows. The 24 bytes that are noted of a document lie in a
    temporary file that is mapped, so that memory does not grow with the database.

    Args:
        corpus: Corpus of the documents.
        rows: Number of rows of a sequence.
        split: Split whose documents are chosen; None for all documents.
        packing: `packed` if documents share sequences, `document` if not.
    """

    def __init__(self, corpus: Corpus, rows: int, split: str | None, packing: Packing) -> None:
        self.runs: list[Run] = []
        self._rows = rows
        self._packing = packing
        most = sum(entry.rows for entry in corpus.tables.documents)
        table = mapped_zeros(np.int64, 3, most)
        pieces, row = 0, 0
        for source, firsts, counts in chosen_documents(corpus, split):
            row = self._begin(source, row)
            taken = counts if packing == "packed" else -(-counts // rows) * rows
            ends = row + np.cumsum(taken)
            new = slice(pieces, pieces + len(firsts))
            table[:, new] = ends - taken, firsts, counts
            pieces, row = new.stop, int(ends[-1])
            self.runs[-1].count = -(-row // rows) - self.runs[-1].first
        self._starts, self._firsts, self._counts = table[:, :pieces]

    def _begin(self, source: str, row: int) -> int:
        """The row at which the next documents of a source begin."""
        if self.runs and self.runs[-1].source == source:
            return row
        first = -(-row // self._rows)
        self.runs.append(Run(source, first))
        return first * self._rows

    def __len__(self) -> int:
        return self.runs[-1].first + self.runs[-1].count if self.runs else 0

    def locate(self, sequences: np.ndarray) -> Located:
        """The chunks of sequences.

        Args:
            sequences: int64 [b], each in [0, len(self)).
        """
        rows = sequences[:, None] * self._rows + np.arange(self._rows)
        documents = np.searchsorted(self._starts, rows.reshape(-1), side="right") - 1
        documents = documents.reshape(rows.shape)
        firsts, counts = self._firsts[documents], self._counts[documents]
        offsets = rows - self._starts[documents]
        ids = firsts + np.minimum(offsets, counts - 1)
        return Located(ids, offsets < counts, documents, firsts, firsts + counts)


def chosen_documents(
    corpus: Corpus, split: str | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Documents that have chunks and were not removed: source, first chunks and counts, int64 [d] each."""
    base = 0
    for table in corpus.document_parts():
        counts = table["chunk_count"].to_numpy()
        wanted = counts > 0
        if split is not None:
            wanted &= pc.equal(table["split"], split).to_numpy()
        wanted[corpus.removals.documents_among(base, len(table))] = False
        rows = np.flatnonzero(wanted)
        firsts = table["first_chunk"].to_numpy()
        for source, chosen in _of_one_source(table["source"], rows):
            yield source, firsts[chosen], counts[chosen]
        base += len(table)


def _of_one_source(names: pa.ChunkedArray, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Rows that follow one another and have the same name."""
    encoded = names.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()[rows]
    for run in np.split(rows, np.flatnonzero(np.diff(codes)) + 1):
        if len(run):
            yield names[int(run[0])].as_py(), run
