"""Chunks as people read them: what was asked for, and what was found near it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

import retro_db
from retro_db.database import Database
from retro_db.errors import InputError
from retro_db.retriever import Retriever
from retro_db.serialize import to_json
from retro_db.tokenizer import Tokenizer

from .console import Console, printable

# Shorter words are in every text.
_WORD = re.compile(r"\w{3,}")
_INDENT = 3


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


def show_near_text(
    url: str, text: str, k: int, encoder: str | None, as_json: bool, console: Console
) -> None:
    """The chunks nearest to a text."""
    database = retro_db.open(url)
    ids, distances = Retriever(database, encoder).search([text], k)
    found = passages(database, ids[0][ids[0] >= 0], distances[0], text)
    if as_json:
        console.show_json({"text": text, "neighbors": [to_json(passage) for passage in found]})
        return
    for rank, passage in enumerate(found, 1):
        show_passage(console, f"{rank}.", passage)
    if not found:
        console.say("no neighbors: the text has no word that the encoder knows")


def show_near_chunk(url: str, chunk: int, k: int, as_json: bool, console: Console) -> None:
    """A chunk and its stored neighbors.

    Raises:
        InputError: There is no such chunk.
    """
    database = retro_db.open(url)
    if not 0 <= chunk < len(database):
        raise InputError(f"--chunk {chunk}: ids go from 0 to {len(database) - 1}")
    [asked], found = with_neighbors(database, chunk, k)
    if as_json:
        shown = {"chunk": to_json(asked), "neighbors": [to_json(passage) for passage in found]}
        console.show_json(shown)
        return
    show_passage(console, "Asked for:", asked)
    for rank, passage in enumerate(found, 1):
        show_passage(console, f"{rank}.", passage)
    if not found:
        console.say("no neighbors are stored for it")


def with_neighbors(database: Database, chunk: int, k: int) -> tuple[list[Passage], list[Passage]]:
    """A chunk, and the first k of its stored neighbors."""
    asked = passages(database, np.array([chunk]))
    ids = database.neighbors[[chunk]][0, :k]
    distances = database.neighbors.distances([chunk])[0, :k]
    there = ids >= 0
    like = f"{asked[0].text} {asked[0].continuation}"
    return asked, passages(database, ids[there], distances[there], like)


def passages(
    database: Database, ids: np.ndarray, distances: np.ndarray | None = None, like: str = ""
) -> list[Passage]:
    """Chunks as text, with their continuations and where they are from.

    Args:
        database: Where they are.
        ids: int64 [n].
        distances: float32 [n], if they are neighbors of something.
        like: What was asked for.
    """
    tokenizer = Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)
    table = database.documents.take(database.chunks.documents(ids))
    own, following = _texts(database, tokenizer, ids)
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


def _texts(
    database: Database, tokenizer: Tokenizer, ids: np.ndarray
) -> tuple[list[str], list[str]]:
    """Text of chunks and of their continuations, without padding."""
    m = database.manifest.chunk.tokens
    values, lengths = database.chunks.values_and_lengths(ids)
    own = [row[:length] for row, length in zip(values[:, :m], lengths[:, 0], strict=True)]
    after = [row[:length] for row, length in zip(values[:, m:], lengths[:, 1], strict=True)]
    return tokenizer.decode(own), tokenizer.decode(after)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def show_passage(console: Console, mark: str, passage: Passage) -> None:
    """One chunk, its origin and its continuation; on a terminal within its width, shared words marked."""
    distance = "" if passage.distance is None else f", distance {passage.distance:g}"
    origin = escape(printable(f"{passage.source}/{passage.document}"))
    heading = f"[bold]{mark}[/bold] chunk {passage.id:,} of {origin}{distance}"
    console.rich.print(heading, soft_wrap=not console.is_terminal)
    _show_text(console, passage.text, "cyan", passage.shared)
    if passage.continuation:
        _show_text(console, f"... {passage.continuation}", "dim", passage.shared)


def _show_text(console: Console, text: str, style: str, shared: Iterable[str]) -> None:
    line = printable(" ".join(text.split()))
    if not console.is_terminal:
        console.say(" " * _INDENT + line)
        return
    shown, marked = Text(line, style), set(shared)
    for word in _WORD.finditer(line):
        if word[0].lower() in marked:
            shown.stylize("bold not dim yellow", *word.span())
    console.rich.print(Padding(shown, (0, 0, 0, _INDENT)), soft_wrap=False)
