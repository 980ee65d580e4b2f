"""Documents out of files. A bad record is returned as such: counted, never lost in silence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from retro_db.config import SourceConfig
from retro_db.corpus.planning import COMPRESSIONS, InputFile, Shard
from retro_db.errors import CorpusError


@dataclass(frozen=True)
class Document:
    """One text. `id` is its own, or its place in the corpus; `identity` decides hashed choices."""

    id: str
    text: str
    identity: str | bytes


@dataclass(frozen=True)
class Reject:
    """A record that cannot be used: the file, the line or row in it (from 1), and why."""

    file: str
    position: int
    reason: str


def read_shard(shard: Shard, source: SourceConfig) -> Iterator[Document | Reject]:
    """All records of a shard, in order, before any choice by `fraction`.

    Args:
        shard: Which files, and their format.
        source: Which fields hold text and id, and how long a document may be.

    Returns:
        Documents, and in the place of each bad record what is wrong with it.

    Raises:
        CorpusError: A file vanished or cannot be opened.
    """
    for file in shard.files:
        for position, record in _records(file, shard.format, source):
            yield _document(file, position, record, source, shard.format)


def _document(
    file: InputFile, position: int, record: Any, source: SourceConfig, kind: str
) -> Document | Reject:
    if isinstance(record, _Bad):
        return Reject(file.name, position, record.reason)
    if not isinstance(record, dict):
        return Reject(file.name, position, f"is a {type(record).__name__}, not an object")
    text = record.get(source.text)
    if not isinstance(text, str):
        found = "missing" if source.text not in record else f"a {type(text).__name__}, not a string"
        return Reject(file.name, position, f"field {source.text!r} is {found}")
    if len(text) * 4 > source.max_document and len(text.encode()) > source.max_document:
        return Reject(file.name, position, "longer than max_document")
    if source.id is None:
        place = file.name if kind == "text" else f"{file.name}:{position}"
        return Document(place, text, text)
    own = record.get(source.id)
    if not isinstance(own, str | int):
        return Reject(file.name, position, f"field {source.id!r} (id) is missing or no name")
    return Document(str(own), text, str(own))


@dataclass(frozen=True)
class _Bad:
    reason: str


def _records(file: InputFile, kind: str, source: SourceConfig) -> Iterator[tuple[int, Any]]:
    """Positions from 1 and raw records, or what is wrong with them."""
    position = 0
    try:
        with _open(file) as stream:
            for record in _READERS[kind](stream, source):
                position += 1
                yield position, record
    except FileNotFoundError as error:
        raise CorpusError(
            f"{file.url}: vanished since the build was planned; restore it"
        ) from error
    except PermissionError as error:
        raise CorpusError(f"{file.url}: no permission to read it; grant it") from error
    except _DAMAGE as error:
        # The system's own errors have a number; what decompressors raise has none.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield position + 1, _Bad(f"the file is damaged from here on: {error}")


_DAMAGE = (
    EOFError,
    OSError,
    UnicodeDecodeError,
    lzma.LZMAError,
    pa.ArrowException,
    zlib.error,
    zstandard.ZstdError,
)


def _open(file: InputFile) -> IO[bytes]:
    raw = fsspec.open(file.url, "rb").open()
    compression = COMPRESSIONS.get(os.path.splitext(file.name)[1])
    if compression == "zstd":
        # One file may hold many frames; the default reader stops after the first.
        reader = zstandard.ZstdDecompressor().stream_reader(
            raw, read_across_frames=True, closefd=True
        )
        return io.BufferedReader(reader, 1 << 20)
    if compression == "gzip":
        return gzip.open(raw, "rb")
    if compression == "bz2":
        return bz2.open(raw, "rb")
    if compression == "xz":
        return lzma.open(raw, "rb")
    return raw


def _read_jsonl(stream: IO[bytes], source: SourceConfig) -> Iterator[Any]:
    for line in stream:
        if not line.strip():
            continue
        try:
            yield orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield _Bad(f"not valid JSON: {error}")


def _read_text(stream: IO[bytes], source: SourceConfig) -> Iterator[Any]:
    try:
        yield {source.text: stream.read().decode("utf-8")}
    except UnicodeDecodeError as error:
        yield _Bad(f"not valid UTF-8: {error.reason} at byte {error.start}")


def _read_parquet(stream: IO[bytes], source: SourceConfig) -> Iterator[Any]:
    table = pq.ParquetFile(stream)
    columns = _columns(table.schema_arrow, source)
    for batch in table.iter_batches(batch_size=1024, columns=columns):
        yield from batch.to_pylist()


def _read_arrow(stream: IO[bytes], source: SourceConfig) -> Iterator[Any]:
    reader = pa.ipc.open_file(pa.PythonFile(stream, "r"))
    columns = _columns(reader.schema, source)
    for number in range(reader.num_record_batches):
        yield from reader.get_batch(number).select(columns).to_pylist()


def _columns(schema: pa.Schema, source: SourceConfig) -> list[str]:
    wanted = [source.text] if source.id is None else [source.text, source.id]
    return [name for name in wanted if name in schema.names]


_READERS = {
    "jsonl": _read_jsonl,
    "text": _read_text,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
