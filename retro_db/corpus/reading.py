"""Documents out of files. A bad record is returned as such: counted, never lost in silence."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import lzma
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.config import FilesConfig
from retro_db.corpus.megatron import open_index
from retro_db.corpus.planning import Shard
from retro_db.corpus.splitting import Piece
from retro_db.corpus.streams import arrow_file, decompressed, open_raw

_BLOCK = 1 << 20
_ROWS = 1024
# A character of text takes up to six bytes in JSON, but the longest escapes are of characters that
# take two bytes or more: three bytes for one is enough for any text. The rest is other fields.
_JSON_FACTOR = 3
_JSON_SLACK = 1 << 20
# A separator, with what it looks at around itself, is found if it is no longer than this.
_SEPARATOR_REACH = 1 << 16
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Document:
    """One document: its text, or the tokens that it was stored as.

    Attributes:
        file: Where it is.
        offset: Where in it: the byte of the decompressed content for JSON lines and text, else the
            row, from 0.
        id: Its own, or its place in the corpus.
        identity: What decides hashed choices: its own id, or its content.
        text: The text; None where it is tokens already.
        tokens: Token ids, integer [t]; None where it is text.
    """

    file: str
    offset: int
    id: str
    identity: str | bytes
    text: str | None = None
    tokens: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Characters of the text, or about as many for its tokens."""
        return len(self.text) if self.text is not None else 4 * len(self.tokens)  # type: ignore[arg-type]

    def with_tokens(self, tokens: np.ndarray) -> Document:
        """The same document with other tokens."""
        return dataclasses.replace(self, tokens=tokens)


@dataclass(frozen=True)
class Reject:
    """Records that cannot be used.

    Attributes:
        file: Where they are.
        offset: Where in it the first is, as for documents.
        reason: One of few, to be counted.
        detail: What exactly is wrong.
        count: How many.
    """

    file: str
    offset: int
    reason: str
    detail: str = ""
    count: int = 1

    def __str__(self) -> str:
        problem = f"{self.reason} ({self.detail})" if self.detail else self.reason
        return f"{self.file} at {self.offset}: {problem}"


class Content:
    """The sha256 of records as they are read: what decides where a file's time of change differs."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the records so far, in hexadecimal."""
        return self._hasher.hexdigest()

    def watch(self, records: Iterable[Document | Reject]) -> Iterator[Document | Reject]:
        """The same records, each hashed as it passes.

        Args:
            records: Of one shard, in order.

        Yields:
            Each of them.
        """
        for record in records:
            if isinstance(record, Reject):
                self._add(repr(record).encode("utf-8", "surrogatepass"))
            else:
                self._add(f"{record.file}\0{record.offset}\0{record.id}".encode(errors="replace"))
                if record.text is None:
                    self._add(np.ascontiguousarray(record.tokens).tobytes())
                else:
                    self._add(record.text.encode("utf-8", "surrogatepass"))
            yield record

    def _add(self, data: bytes) -> None:
        self._hasher.update(len(data).to_bytes(8, "little"))
        self._hasher.update(data)


@dataclass(frozen=True)
class _Bad:
    reason: str
    detail: str = ""
    count: int = 1


_Record = Any
"""A dict with the fields asked for, tokens as an array, or `_Bad`."""


def read_shard(
    shard: Shard, source: FilesConfig, report: Callable[[int], None] = lambda count: None
) -> Iterator[Document | Reject]:
    """All records of a shard, in order, before any choice by `fraction`.

    Args:
        shard: Which pieces of which files, and their format.
        source: Which fields hold text and id, what separates documents, how long one may be.
        report: Told, now and again, how many more bytes of the files were read.

    Returns:
        Documents, and in the place of bad records what is wrong with them.

    Raises:
        CorpusError: A file vanished or cannot be opened.
    """
    for piece in shard.pieces:
        for offset, record in _records(piece, shard.format, source, report):
            yield _document(piece.file.name, offset, record, source, shard.format)


def _records(
    piece: Piece, kind: str, source: FilesConfig, report: Callable[[int], None]
) -> Iterator[tuple[int, _Record]]:
    """Offsets and records of a piece, or what is wrong with them."""
    file = piece.file
    if file.bytes == 0:
        yield 0, _Bad("empty file")
        return
    offset = piece.range.begin if piece.range else 0
    try:
        with open_raw(file.url, report) as raw:
            for offset, record in _READERS[kind](raw, piece, source):
                yield offset, record
    except _DAMAGE as error:
        yield offset, _Bad("damaged file", " ".join(str(error).split())[:300])


_DAMAGE = (EOFError, OSError, ValueError, lzma.LZMAError, pa.ArrowException, OverflowError)


def _document(
    file: str, offset: int, record: _Record, source: FilesConfig, kind: str
) -> Document | Reject:
    if isinstance(record, _Bad):
        return Reject(file, offset, record.reason, record.detail, record.count)
    place = file if kind == "text" and source.separator is None else f"{file}:{offset}"
    if isinstance(record, np.ndarray):
        return Document(file, offset, place, record.tobytes(), tokens=record)
    if not isinstance(record, dict):
        return Reject(file, offset, "not an object", f"a {type(record).__name__}")
    text = record.get(source.text)
    if isinstance(text, _Bad):
        return Reject(file, offset, text.reason, text.detail)
    if text is None:
        return Reject(file, offset, "no text", f"field {source.text!r} is missing or null")
    if not isinstance(text, str):
        return Reject(
            file,
            offset,
            "text is no string",
            f"field {source.text!r} is a {type(text).__name__}",
        )
    # Four bytes a character at most: most texts need not be encoded to be measured.
    limit = source.max_document
    if len(text) > limit or (4 * len(text) > limit and len(text.encode()) > limit):
        return Reject(file, offset, "too long", "more bytes than max_document")
    if source.id is None:
        return Document(file, offset, place, text, text)
    own = record.get(source.id)
    if not isinstance(own, str | int) or isinstance(own, bool):
        return Reject(file, offset, "no id", f"field {source.id!r} is missing or no name")
    return Document(file, offset, str(own), str(own), text)


def _read_jsonl(
    raw: io.BufferedReader, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, _Record]]:
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
            yield 0, _Bad("empty file")
        while end is None or offset < end:
            line = stream.readline(limit)
            if not line:
                return
            size = len(line)
            if size == limit and not line.endswith(b"\n"):
                size += _skip_line(stream)
                yield offset, _Bad("too long", "the line is much longer than max_document")
            elif line := (line.removeprefix(_BOM) if offset == 0 else line).strip():
                yield offset, _parse(line)
            offset += size


def _parse(line: bytes) -> _Record:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _Bad("not JSON", str(error))


def _skip(stream: io.BufferedReader, count: int) -> None:
    while count > 0 and (block := stream.read(min(count, _BLOCK))):
        count -= len(block)


def _skip_line(stream: io.BufferedReader) -> int:
    """Reads to the end of a line and returns how many bytes that were."""
    count = 0
    while block := stream.readline(_BLOCK):
        count += len(block)
        if block.endswith(b"\n"):
            break
    return count


def _read_text(
    raw: io.BufferedReader, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, _Record]]:
    with decompressed(raw, piece.file.name) as stream:
        if not stream.peek(1):
            yield 0, _Bad("empty file")
        elif source.separator is None:
            data = stream.read(source.max_document + 1)
            while len(data) > source.max_document and stream.read(_BLOCK):
                pass  # to the end, where a damaged file shows
            yield 0, {source.text: _decode(data, source.max_document)}
        else:
            pattern = re.compile(source.separator.encode(), re.MULTILINE)
            for offset, data in split_stream(stream, pattern, source.max_document + 1):
                yield offset, {source.text: _decode(data, source.max_document)}


def _decode(data: bytes, limit: int) -> str | _Bad:
    if len(data) > limit:
        return _Bad("too long", "more bytes than max_document")
    try:
        return data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        return _Bad("not UTF-8", f"{error.reason} at byte {error.start} of the document")


def split_stream(
    stream: io.BufferedReader, pattern: re.Pattern[bytes], limit: int
) -> Iterator[tuple[int, bytes]]:
    """Divides a stream at every match of a pattern, at constant memory.

    Args:
        stream: Read to its end.
        pattern: What matches is left out; one that looks ahead and matches nothing cuts without a
            loss. It sees 64 KiB around itself.
        limit: Bytes of a piece that are returned; what is beyond is passed over.

    Returns:
        The offset of every piece and its first `limit` bytes. Pieces of nothing but white space are
        left out.
    """
    buffer, base = b"", 0  # `base` is the offset of the buffer's first byte
    piece, begin = bytearray(), 0
    start = 0  # of the unsearched rest in the buffer
    ended = False
    while not ended:
        block = stream.read(_BLOCK)
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
        kept = max(0, start - _SEPARATOR_REACH)
        buffer, base, start = buffer[kept:], base + kept, start - kept
    if piece.strip():
        yield begin, bytes(piece)


def _read_parquet(
    raw: io.BufferedReader, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, _Record]]:
    # Buffered, so that a large row group is not held in memory.
    table = pq.ParquetFile(
        arrow_file(raw, piece.file.bytes), buffer_size=_BLOCK, page_checksum_verification=True
    )
    columns = _columns(table.schema_arrow, source)
    rows = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    first, last = (piece.range.begin, piece.range.end) if piece.range else (0, len(rows))
    row = sum(rows[:first])
    for group in range(first, last):
        end = row + rows[group]
        try:
            for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns):
                for record in _rows(batch, source):
                    yield row, record
                    row += 1
        except (pa.ArrowException, OSError) as error:
            # The other row groups may be sound.
            yield row, _Bad("damaged file", " ".join(str(error).split())[:300], max(end - row, 1))
        row = end


def _read_arrow(
    raw: io.BufferedReader, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, _Record]]:
    file = arrow_file(raw, piece.file.bytes)
    row = 0
    if raw.peek(6).startswith(b"ARROW1"):
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        reader = pa.ipc.open_stream(file)
        batches = iter(reader)
    columns = _columns(reader.schema, source)
    for batch in batches:
        for record in _rows(batch.select(columns), source):
            yield row, record
            row += 1


def _columns(schema: pa.Schema, source: FilesConfig) -> list[str]:
    wanted = [source.text] if source.id is None else [source.text, source.id]
    return [name for name in wanted if name in schema.names]


def _rows(batch: pa.RecordBatch, source: FilesConfig) -> Iterator[dict[str, Any]]:
    """The rows of a batch, with what is no UTF-8 marked where it stands."""
    columns = [_values(column) for column in batch.columns]
    for number in range(batch.num_rows):
        yield dict(zip(batch.schema.names, (column[number] for column in columns), strict=True))


def _values(column: pa.Array) -> list[Any]:
    """A column as Python values. Arrow does not check that its strings are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column.validate(full=True)
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.large_binary())
    else:
        column.validate(full=True)
        return column.to_pylist()
    column.validate(full=True)
    return [_string(value) for value in column.to_pylist()]


def _string(value: bytes | None) -> str | _Bad | None:
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        return _Bad("not UTF-8", f"{error.reason} at byte {error.start} of the document")


def _read_megatron(
    raw: io.BufferedReader, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, _Record]]:
    index = open_index(piece.file.url)
    first, last = (piece.range.begin, piece.range.end) if piece.range else (0, index.documents)
    raw.seek(int(index.bounds[first]))
    for number in range(first, last):
        size = int(index.bounds[number + 1] - index.bounds[number])
        if size > source.max_document:
            yield number, _Bad("too long", "more bytes of tokens than max_document")
            raw.seek(int(index.bounds[number + 1]))
            continue
        data = raw.read(size)
        if len(data) < size:
            yield number, _Bad("damaged file", "the .bin file is cut off", last - number)
            return
        yield number, np.frombuffer(data, index.token_type)


_READERS: dict[
    str,
    Callable[[io.BufferedReader, Piece, FilesConfig], Iterator[tuple[int, _Record]]],
] = {
    "jsonl": _read_jsonl,
    "text": _read_text,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "megatron": _read_megatron,
}
