"""Prints chunks and their neighbors, for `retro-db query`."""

from __future__ import annotations

from collections.abc import Collection

from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

import retro_db
from retro_db.errors import InputError
from retro_db.printing import printable
from retro_db.search.passages import Passage, Passages, marked
from retro_db.store.serialize import to_json

from ..engine.console import Console

_INDENT = 3


def show_near_text(
    url: str, text: str, k: int, encoder: str | None, console: Console, *, as_json: bool
) -> None:
    """The chunks nearest to a text."""
    # Imports torch and transformers, which takes seconds.
    from retro_db.search.retriever import Retriever

    database = retro_db.open(url)
    ids, distances = Retriever(database, encoder).search([text], k)
    neighbors = Passages(database).of(ids[0][ids[0] >= 0], distances[0], text)
    if as_json:
        console.show_json({"text": text, "neighbors": [to_json(passage) for passage in neighbors]})
        return
    for rank, passage in enumerate(neighbors, 1):
        show_passage(console, f"{rank}.", passage)
    if not neighbors:
        console.say(
            "no neighbors: nothing is left to be found, or the encoder knows no word of the text"
        )


def show_near_chunk(url: str, chunk: int, k: int, console: Console, *, as_json: bool) -> None:
    """A chunk and its stored neighbors.

    Raises:
        InputError: The database has no such chunk.
    """
    database = retro_db.open(url)
    if not 0 <= chunk < len(database):
        raise InputError(f"--chunk {chunk}: ids go from 0 to {len(database) - 1}")
    asked, neighbors = Passages(database).with_neighbors(chunk, k)
    if as_json:
        shown = {"chunk": to_json(asked), "neighbors": [to_json(passage) for passage in neighbors]}
        console.show_json(shown)
        return
    show_passage(console, "Asked for:", asked)
    for rank, passage in enumerate(neighbors, 1):
        show_passage(console, f"{rank}.", passage)
    if not neighbors:
        console.say("no neighbors are stored for it")


def show_passage(console: Console, mark: str, passage: Passage) -> None:
    """One chunk, its origin and its continuation; on a terminal within its width, shared words marked."""
    distance = "" if passage.distance is None else f", distance {passage.distance:g}"
    origin = escape(printable(f"{passage.source}/{passage.document}"))
    heading = f"[bold]{mark}[/bold] chunk {passage.id:,} of {origin}{distance}"
    console.rich.print(heading, soft_wrap=not console.is_terminal)
    _show_text(console, passage.text, "cyan", passage.shared)
    if passage.continuation:
        _show_text(console, f"... {passage.continuation}", "dim", passage.shared)


def _show_text(console: Console, text: str, style: str, shared: Collection[str]) -> None:
    line = printable(" ".join(text.split()))
    if not console.is_terminal:
        console.say(" " * _INDENT + line)
        return
    shown = Text(style=style)
    for piece, is_shared in marked(line, shared):
        shown.append(piece, "bold not dim yellow" if is_shared else None)
    console.rich.print(Padding(shown, (0, 0, 0, _INDENT)), soft_wrap=False)
