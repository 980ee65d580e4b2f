"""JSON lines: one object a line."""

from __future__ import annotations

import io
from collections.abc import Iterator

import orjson

from retro_db.config import FilesConfig
from retro_db.corpus.formats.raw import BOM, BadRecord, RawRecord
from retro_db.corpus.pieces import Piece
from retro_db.corpus.streams import BLOCK, decompressed

# A character of text takes up to six bytes in JSON, but the longest escapes are of characters that
# take two bytes or more: three bytes for one are enough for any text. The slack is for other fields.
_JSON_FACTOR = 3
_JSON_SLACK = 1 << 20
# What orjson says of the machine, not of the line.
_NO_MEMORY = "Not enough memory"
# First lines of JSON that is laid out for people.
_BEGINNINGS = (b"[", b"{")


def read_records(
    raw: io.BufferedReader, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, RawRecord]]:
    """Yields the lines of a piece as JSON values, each with the offset of its first byte."""
    begin, end, offset = 0, None, 0
    if piece.range is not None:
        raw.seek(piece.range.file_offset)
        begin, end, offset = piece.range.begin, piece.range.end, piece.range.offset
    limit = _JSON_FACTOR * source.max_document + _JSON_SLACK
    with decompressed(raw, piece.file.name) as stream:
        if begin > 0:
            # The line around the byte before belongs to the range before.
            _skip(stream, begin - 1 - offset)
            offset = begin - 1 + _skip_line(stream)
        elif not stream.peek(1):
            yield 0, BadRecord("empty file")
        while end is None or offset < end:
            line = stream.readline(limit)
            if not line:
                return
            size = len(line)
            if size == limit and not line.endswith(b"\n"):
                size += _skip_line(stream)
                yield offset, BadRecord("too long", "the line is much longer than max_document")
            elif line := (line.removeprefix(BOM) if offset == 0 else line).strip():
                yield offset, _parse(line)
            offset += size


def _parse(line: bytes) -> RawRecord:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if str(error).startswith(_NO_MEMORY):
            raise MemoryError(f"a line of {len(line):,} bytes") from error
        if line in _BEGINNINGS:
            return BadRecord("not JSON", "it goes on over several lines; write one object a line")
        return BadRecord("not JSON", str(error))


def _skip(stream: io.BufferedReader, count: int) -> None:
    while count > 0 and (block := stream.read(min(count, BLOCK))):
        count -= len(block)


def _skip_line(stream: io.BufferedReader) -> int:
    """Reads to the end of a line and returns the number of bytes read."""
    count = 0
    while block := stream.readline(BLOCK):
        count += len(block)
        if block.endswith(b"\n"):
            break
    return count
