"""Reads documents from files. A bad record becomes a reject: it is counted, never lost silently."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from retro_db.config import FilesConfig
from retro_db.corpus.documents import Document, Reject
from retro_db.corpus.formats import READERS
from retro_db.corpus.formats.raw import BadRecord, RawRecord, absent_field
from retro_db.corpus.pieces import Piece
from retro_db.corpus.sharding import Shard
from retro_db.corpus.streams import open_raw

_DAMAGE = (EOFError, OSError, ValueError, lzma.LZMAError, pa.ArrowException, OverflowError)


def is_one_document(kind: str, source: FilesConfig) -> bool:
    """Whether each file of a source is one document: text without a separator.

    Args:
        kind: Format of the files.
        source: Settings: the separator.
    """
    return kind == "text" and source.separator is None


def read_shard(
    shard: Shard, source: FilesConfig, report: Callable[[int], None] = lambda count: None
) -> Iterator[Document | Reject]:
    """All records of a shard, in order, before any choice by `fraction`.

    Args:
        shard: Shard to read.
        source: Settings: fields of text and id, separator, largest document.
        report: Called with the number of bytes of the files read since the last call.

    Returns:
        Documents, and a reject in place of each bad record.

    Raises:
        CorpusError: A file vanished or cannot be opened.
        MemoryError: A record is larger than the memory.
    """
    for piece in shard.pieces:
        for offset, record in _records(piece, shard.format, source, report):
            yield _document(piece.file.name, offset, record, source, shard.format)


def _records(
    piece: Piece, kind: str, source: FilesConfig, report: Callable[[int], None]
) -> Iterator[tuple[int, RawRecord]]:
    """Records of a piece with their offsets; damage to the file ends them with a `BadRecord`."""
    file = piece.file
    if file.bytes == 0:
        yield 0, BadRecord("empty file")
        return
    offset = piece.range.begin if piece.range else 0
    try:
        with open_raw(file, report) as raw:
            for offset, record in READERS[kind](raw, piece, source):
                yield offset, record
    except MemoryError as error:
        reason = f"{file.name} at {offset}: {error or 'a record'}"
        raise MemoryError(f"{reason}; max_document can leave it out") from error
    except _DAMAGE as error:
        yield offset, BadRecord("damaged file", " ".join(str(error).split())[:300])


def _document(
    file: str, offset: int, record: RawRecord, source: FilesConfig, kind: str
) -> Document | Reject:
    if isinstance(record, BadRecord):
        return Reject(file, offset, record.reason, record.detail, record.count)
    position = file if is_one_document(kind, source) else f"{file}:{offset}"
    if isinstance(record, np.ndarray):
        return Document(file, offset, position, record.tobytes(), tokens=record)
    if not isinstance(record, dict):
        detail = f"a {type(record).__name__}; write one object a line"
        return Reject(file, offset, "not an object", detail)
    text = (
        record[source.text]
        if source.text in record
        else absent_field("no text", "text", source.text, record)
    )
    if isinstance(text, BadRecord):
        return Reject(file, offset, text.reason, text.detail)
    if text is None:
        return Reject(file, offset, "no text", f"field {source.text!r} is null")
    if not isinstance(text, str):
        return Reject(
            file,
            offset,
            "text is no string",
            f"field {source.text!r} is a {type(text).__name__}",
        )
    # A character takes at most four bytes: most texts are measured without encoding them.
    limit = source.max_document
    if len(text) > limit or (4 * len(text) > limit and len(text.encode()) > limit):
        return Reject(file, offset, "too long", "more bytes than max_document")
    if source.id is None:
        return Document(file, offset, position, text, text)
    document_id = (
        record[source.id] if source.id in record else absent_field("no id", "id", source.id, record)
    )
    if isinstance(document_id, BadRecord):
        return Reject(file, offset, document_id.reason, document_id.detail)
    if not isinstance(document_id, str | int) or isinstance(document_id, bool):
        kind = type(document_id).__name__
        return Reject(
            file, offset, "no id", f"field {source.id!r} is a {kind}, not a name or number"
        )
    return Document(file, offset, str(document_id), str(document_id), text)
