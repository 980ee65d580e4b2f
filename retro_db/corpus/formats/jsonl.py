"""JSON lines: one object a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import orjson

from retro_db.config import FilesConfig
from retro_db.corpus.compression import BLOCK, Damage
from retro_db.corpus.formats.raw import BOM, BadRecord, RawRecord
from retro_db.corpus.pieces import Piece
from retro_db.corpus.streams import Content

# A character of text takes up to six bytes in JSON, but the longest escapes are of characters that
# take two bytes or more: three bytes for one are enough for any text. The slack is for other fields.
_JSON_FACTOR = 3
_JSON_SLACK = 1 << 20
# What orjson says of the machine, not of the line.
_NO_MEMORY = "Not enough memory"
# First lines of JSON that is laid out for people.
_BEGINNINGS = (b"[", b"{")


def read_records(
    stream: Content, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, RawRecord]]:
    """Yields the lines of a piece as JSON values, each with the offset of its first byte."""
    offset, end = 0, None
    if piece.range is not None:
        offset, end = piece.range.begin, piece.range.end
    if offset > 0:
        # The line around the byte before belongs to the range before.
        _skip(stream, offset - 1 - piece.range.offset)  # type: ignore[union-attr]
        offset += _skip_line(stream) - 1
    elif not stream.peek(1) and stream.damage is None:
        yield 0, BadRecord("empty file")
    limit = _JSON_FACTOR * source.max_document + _JSON_SLACK
    lacks_head = False
    while end is None or offset < end:
        line = stream.readline(limit)
        size = len(line)
        is_cut = size < limit and not line.endswith(b"\n") and stream.damage is not None
        if size == limit and not line.endswith(b"\n"):
            size += _skip_line(stream)
            yield offset, BadRecord("too long", "the line is much longer than max_document")
        elif line := (line.removeprefix(BOM) if offset == 0 else line).strip():
            record = _parse(line)
            # A part of an object is none: it was lost with the damage beside it.
            if isinstance(record, dict) or not (is_cut or lacks_head):
                yield offset, record
        elif size == 0 and not is_cut:
            return
        offset += size
        lacks_head = is_cut
        if is_cut:
            yield offset, BadRecord.lost(_damage_of(stream, piece))
            if piece.range is not None or not stream.resume():
                return


def _damage_of(stream: Content, piece: Piece) -> Damage:
    """The damage that ended a stream; it reaches to the end of a range, which cannot be found behind it."""
    damage = cast(Damage, stream.damage)
    if piece.range is None:
        return damage
    return replace(damage, bytes=max(piece.bytes - stream.sound, 1), lines=0)


def _parse(line: bytes) -> RawRecord:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if str(error).startswith(_NO_MEMORY):
            raise MemoryError(f"a line of {len(line):,} bytes") from error
        if line in _BEGINNINGS:
            return BadRecord("not JSON", "it goes on over several lines; write one object a line")
        return BadRecord("not JSON", str(error))


def _skip(stream: Content, count: int) -> None:
    while count > 0 and (block := stream.read(min(count, BLOCK))):
        count -= len(block)


def _skip_line(stream: Content) -> int:
    """Reads to the end of a line and returns the number of bytes read."""
    count = 0
    while block := stream.readline(BLOCK):
        count += len(block)
        if block.endswith(b"\n"):
            break
    return count
