"""Pieces of files, each read without the others."""

from __future__ import annotations

from dataclasses import dataclass

from retro_db.corpus.listing import InputFile


@dataclass(frozen=True)
class Range:
    """A range of a file that is read without the rest, in bytes of lines, row groups or documents.

    Attributes:
        begin: First unit: a byte of the decompressed lines, a row group or a document.
        end: Unit after the last.
        file_offset: For lines: byte of the file from which it can be read, at or before the byte
            `begin` - 1 of the lines.
        offset: Byte of the decompressed lines at `file_offset`.
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
