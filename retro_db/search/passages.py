"""Chunks as people read them: what was asked for, and what was found near it; needs the extra `build`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from retro_db.reader.database import Database
from retro_db.tokens.tokenizer import Tokenizer

# Shorter words are in every text.
_WORD = re.compile(r"\w{3,}")


@dataclass(frozen=True)
class Passage:
    """One chunk.

    Attributes:
        id: Global chunk id.
        distance: Squared L2 distance to what was asked for; None where nothing was.
        source: Name of its corpus.
        document: Id of its document.
        text: Its own text.
        continuation: The text of the next chunk of its document; empty after the last.
        shared: Words of three letters or more that it or its continuation has in common with what was asked
            for, in lower case.
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
        database: Where they are.

    Raises:
        DamagedFileError: Its tokenizer is missing or damaged.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tokenizer = Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)

    def of(
        self, ids: np.ndarray, distances: np.ndarray | None = None, like: str = ""
    ) -> list[Passage]:
        """Chunks with their continuations and where they are from.

        Args:
            ids: int64 [n].
            distances: float32 [n], if they are neighbors of something.
            like: What was asked for.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        table = self._database.documents_at(self._database.chunks.documents(ids))
        own, following = self._texts(ids)
        asked = _words(like)
        return [
            Passage(
                id=int(ids[row]),
                distance=None if distances is None else round(float(distances[row]), 4),
                source=table["source"][row].as_py(),
                document=table["id"][row].as_py(),
                text=own[row],
                continuation=following[row],
                shared=sorted(asked & _words(f"{own[row]} {following[row]}")),
            )
            for row in range(len(ids))
        ]

    def with_neighbors(self, chunk: int, k: int) -> tuple[Passage, list[Passage]]:
        """A chunk, and the first k of its stored neighbors."""
        [asked] = self.of(np.array([chunk]))
        neighbors = self._database.neighbors
        ids, distances = neighbors[[chunk]][0, :k], neighbors.distances([chunk])[0, :k]
        there = ids >= 0
        like = f"{asked.text} {asked.continuation}"
        return asked, self.of(ids[there], distances[there], like)

    def _texts(self, ids: np.ndarray) -> tuple[list[str], list[str]]:
        """Text of chunks and of their continuations, without padding."""
        m = self._database.manifest.chunk.tokens
        values, lengths = self._database.chunks.values_and_lengths(ids)
        own = [row[:length] for row, length in zip(values[:, :m], lengths[:, 0], strict=True)]
        after = [row[:length] for row, length in zip(values[:, m:], lengths[:, 1], strict=True)]
        return self._tokenizer.decode(own), self._tokenizer.decode(after)


def marked(text: str, shared: Collection[str]) -> Iterator[tuple[str, bool]]:
    """A text in pieces that join to it, and which of them are shared words."""
    end = 0
    for word in _WORD.finditer(text):
        if word[0].lower() in shared:
            yield text[end : word.start()], False
            yield word[0], True
            end = word.end()
    yield text[end:], False


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
