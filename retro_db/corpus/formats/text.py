"""Text files, which hold one document, or several between separators."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace

from retro_db.config import FilesConfig
from retro_db.corpus.compression import BLOCK
from retro_db.corpus.formats.raw import BOM, DAMAGED, BadRecord, RawRecord
from retro_db.corpus.pieces import Piece
from retro_db.corpus.streams import Content

# Longest separator, including its lookahead and lookbehind, that is sure to be found.
_SEPARATOR_REACH = 1 << 16


def read_records(
    stream: Content, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, RawRecord]]:
    """Yields the documents of a text file, each with the offset of its first byte."""
    if not stream.peek(1) and stream.damage is None:
        yield 0, BadRecord("empty file")
    elif source.separator is None:
        data = stream.read(source.max_document + 1)
        while len(data) > source.max_document and stream.read(BLOCK):
            pass  # to the end, as only that shows whether the file is damaged
        if stream.damage is not None:
            yield 0, BadRecord(DAMAGED, stream.damage.detail)
        else:
            yield 0, {source.text: _decode(data, source.max_document)}
    else:
        pattern = re.compile(source.separator.encode(), re.MULTILINE)
        limit = source.max_document
        for offset, record in _documents(stream, pattern, limit + 1):
            if isinstance(record, BadRecord):
                yield offset, record
            else:
                yield offset, {source.text: _decode(record, limit)}


def _documents(
    stream: Content, pattern: re.Pattern[bytes], limit: int
) -> Iterator[tuple[int, bytes | BadRecord]]:
    """The documents between separators; those that damage cut are lost with it."""
    base, lacks_head = 0, False
    while True:
        pieces = split_stream(stream, pattern, limit)
        if lacks_head and (first := next(pieces, None)):
            base += len(first[1])
        last: tuple[int, bytes] | None = None
        for begin, data in pieces:
            if last is not None:
                yield last
            last = base + begin, data
        if stream.damage is None:
            if last is not None:
                yield last
            return
        base = base if last is None else last[0] + len(last[1])
        yield base, BadRecord.lost(replace(stream.damage, lines=0))
        if not stream.resume():
            return
        lacks_head = True


def _decode(data: bytes, limit: int) -> str | BadRecord:
    if len(data) > limit:
        return BadRecord("too long", "more bytes than max_document")
    try:
        return data.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRecord("not UTF-8", f"{error.reason} at byte {error.start} of the document")


def split_stream(
    stream: io.BufferedReader, pattern: re.Pattern[bytes], limit: int
) -> Iterator[tuple[int, bytes]]:
    """Divides a stream at every match of a pattern, in constant memory.

    Args:
        stream: Stream to read to its end.
        pattern: Pattern of the separator, which is dropped; a lookahead alone matches nothing, so that
            nothing is dropped. It sees 64 KiB around itself.
        limit: Largest number of bytes of a piece to return; the rest of it is skipped.

    Returns:
        The offset of every piece and its first `limit` bytes, without pieces of white space alone.
    """
    buffer, base = b"", 0  # `base` is the offset of the buffer's first byte
    piece, begin = bytearray(), 0
    start = 0  # where the unsearched rest of the buffer begins
    ended = False
    while not ended:
        block = stream.read(BLOCK)
        ended = not block
        buffer += block
        trusted = len(buffer) if ended else len(buffer) - _SEPARATOR_REACH
        for match in pattern.finditer(buffer, start):
            if match.start() >= trusted:
                break
            if match.end() == 0 == base:
                continue
            piece += buffer[start : min(match.start(), start + limit - len(piece))]
            if piece.strip():
                yield begin, bytes(piece)
            piece.clear()
            start = match.end()
            begin = base + start
        if trusted > start:
            piece += buffer[start : min(trusted, start + limit - len(piece))]
            start = trusted
        excess = max(0, start - _SEPARATOR_REACH)
        buffer, base, start = buffer[excess:], base + excess, start - excess
    if piece.strip():
        yield begin, bytes(piece)
