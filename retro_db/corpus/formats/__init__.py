"""One module for each format of a corpus: what it reads is registered here.

A new format needs its module, an entry in `READERS`, its suffixes in `SUFFIXES`, its name in the setting
`corpus.format`, and, if its files can be read in ranges, a function in `splitting`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from retro_db.config import FilesConfig
from retro_db.corpus.formats import arrow, jsonl, megatron, parquet, text
from retro_db.corpus.formats.raw import RawRecord
from retro_db.corpus.pieces import Piece
from retro_db.corpus.streams import Content


class Reader(Protocol):
    """A function `read_records`, as every module of `formats` has it."""

    def __call__(
        self, raw: Content, piece: Piece, source: FilesConfig, /
    ) -> Iterator[tuple[int, RawRecord]]:
        """Yields the records of a piece, each with its offset, as in `Document`.

        Args:
            raw: File, at its first byte. Formats that may be compressed get the content instead, from the
                byte `offset` of the piece's range on.
            piece: Piece of the file to read.
            source: Settings: fields of text and id, separator, largest document.
        """


READERS: dict[str, Reader] = {
    "jsonl": jsonl.read_records,
    "text": text.read_records,
    "parquet": parquet.read_records,
    "arrow": arrow.read_records,
    "megatron": megatron.read_records,
}

# Formats whose files may be compressed as a whole.
COMPRESSIBLE = ("jsonl", "text")

# Formats that are inferred from the end of a file name.
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".py": "text",
    ".bin": "megatron",
    ".idx": "megatron",
}
