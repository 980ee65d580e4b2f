"""What the page's script shows of the map: chunks and their neighbors, as JSON in the page."""

from __future__ import annotations

import json

from markupsafe import Markup

from retro_db.printing import printable
from retro_db.report.chunk_map import ChunkMap
from retro_db.search.passages import Passage

# Bytes of one text in the page, with its escapes, and of a name: a page of 4,000 texts stays below 3 MB.
_TEXT_BYTES, _NAME_BYTES = 400, 80


def map_texts(chunk_map: ChunkMap) -> Markup:
    """Returns the content of a script element: the texts by chunk, and every chunk's neighbors.

    Sources and documents are named by their place in `names`, distances are rounded to four digits.
    """
    names: dict[str, int] = {}
    chunks = {
        chunk: _entry(passage, names) for chunk, passage in sorted(chunk_map.passages.items())
    }
    near = {
        chunk.id: [[neighbor, float(f"{distance:.4g}")] for neighbor, distance in found]
        for chunk, found in zip(chunk_map.chunks, chunk_map.near, strict=True)
    }
    return Markup(_json({"names": list(names), "chunks": chunks, "near": near}))  # noqa: S704 - escaped


def _entry(passage: Passage, names: dict[str, int]) -> list[int | str]:
    """One chunk: place of its document's name, and its text."""
    name = f"{_cut(passage.source, _NAME_BYTES)}/{_cut(passage.document, _NAME_BYTES)}"
    return [names.setdefault(name, len(names)), _cut(passage.text, _TEXT_BYTES)]


def _cut(text: str, size: int) -> str:
    """Returns the beginning of a text on one line that takes no more bytes in the page."""
    line = printable(" ".join(text.split()))
    left = size
    for place, character in enumerate(line):
        left -= len(_json(character).encode("utf-8", "replace")) - 2  # without the quotation marks
        if left < 0:
            return f"{line[:place]}…"
    return line


def _json(value: object) -> str:
    """JSON in which no element begins or ends."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("&", "\\u0026").replace(">", "\\u003e")
