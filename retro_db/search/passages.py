"""Chunks as people read them: a query and its neighbors as text; needs the extra `build`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from retro_db.reader.database import Database
from retro_db.tokens.tokenizer import Tokenizer

# Shorter words occur in every text.
_WORD = re.compile(r"\w{3,}")


@dataclass(frozen=True)
class Passage:
    """One chunk as text.

    Attributes:
        id: Global chunk id.
        distance: Squared L2 distance to the query; None without a query.
        source: Name of the chunk's corpus.
        document: Id of the chunk's document.
        text: The chunk's own text.
        continuation: The text of the document's next chunk; empty after the last.
        shared: Words of three letters or more that the chunk or its continuation has in common with the
            query, in lower case.
    """

    id: int
    distance: float | None
    source: str
    document: str
    text: str
    continuation: str
    shared: list[str]


class Passages:
    """Chunks of a database as text.

    Args:
        database: The database.

    Raises:
        DamagedFileError: The database's tokenizer is missing or damaged.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tokenizer = Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)

    def of(
        self, ids: np.ndarray, distances: np.ndarray | None = None, like: str = ""
    ) -> list[Passage]:
        """Reads chunks with their continuations, and names their sources and documents.

        Args:
            ids: int64 [n].
            distances: float32 [n], the chunks' distances to a query; None without a query.
            like: Text of the query.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        table = self._database.documents_at(self._database.chunks.documents(ids))
        texts, continuations = self._values(ids)
        query_words = _words(like)
        return [
            Passage(
                id=int(ids[row]),
                distance=None if distances is None else round(float(distances[row]), 4),
                source=table["source"][row].as_py(),
                document=table["id"][row].as_py(),
                text=texts[row],
                continuation=continuations[row],
                shared=sorted(query_words & _words(f"{texts[row]} {continuations[row]}")),
            )
            for row in range(len(ids))
        ]

    def with_neighbors(self, chunk: int, k: int) -> tuple[Passage, list[Passage]]:
        """Reads a chunk, and the first k of its stored neighbors."""
        [query] = self.of(np.array([chunk]))
        neighbors = self._database.neighbors
        ids, distances = neighbors[[chunk]][0, :k], neighbors.distances([chunk])[0, :k]
        filled = ids >= 0
        like = f"{query.text} {query.continuation}"
        return query, self.of(ids[filled], distances[filled], like)

    def texts(self, ids: np.ndarray) -> list[str]:
        """Decodes chunks without their continuations.

        Args:
            ids: int64 [n].
        """
        chunks, lengths = self._database.chunks[ids], self._database.chunks.lengths(ids)
        return self._tokenizer.decode(
            [row[:length] for row, length in zip(chunks, lengths, strict=True)]
        )

    def _values(self, ids: np.ndarray) -> tuple[list[str], list[str]]:
        """Decodes chunks and their continuations, without padding."""
        m = self._database.manifest.chunk.tokens
        values, lengths = self._database.chunks.values_and_lengths(ids)
        chunks = [row[:length] for row, length in zip(values[:, :m], lengths[:, 0], strict=True)]
        following = [row[:length] for row, length in zip(values[:, m:], lengths[:, 1], strict=True)]
        return self._tokenizer.decode(chunks), self._tokenizer.decode(following)


def marked(text: str, shared: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Divides a text into pieces, and says which of them are shared words; joined, they are the text."""
    end = 0
    for word in _WORD.finditer(text):
        if word[0].lower() in shared:
            yield text[end : word.start()], False
            yield word[0], True
            end = word.end()
    yield text[end:], False


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
