"""Pieces of files that are read apart from one another."""

from __future__ import annotations

from dataclasses import dataclass

from retro_db.corpus.listing import InputFile


@dataclass(frozen=True)
class Range:
    """A part of a file that is read apart from the rest.

    Attributes:
        begin: First unit: bytes of the decompressed lines, row groups or documents.
        end: Unit after the last.
        file_offset: For lines: a place in the file at or before the byte `begin` - 1, from which it
            can be read.
        offset: The byte of the decompressed lines that stands there.
    """

    begin: int
    end: int
    file_offset: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Piece:
    """A file, or a range of one; `bytes` is its share of the file's size."""

    file: InputFile
    bytes: int
    range: Range | None = None
