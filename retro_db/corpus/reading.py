"""Reads documents from files. A bad record becomes a reject: it is counted, never lost silently."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from retro_db.config import FilesConfig
from retro_db.corpus.compression import Damage
from retro_db.corpus.documents import Document, Reject
from retro_db.corpus.formats import COMPRESSIBLE, READERS
from retro_db.corpus.formats.raw import DAMAGED, BadRecord, RawRecord, absent_field
from retro_db.corpus.pieces import Piece
from retro_db.corpus.sharding import Shard, expansion_of
from retro_db.corpus.streams import decompressed, open_raw
from retro_db.errors import CorpusError

_DAMAGE = (EOFError, OSError, ValueError, pa.ArrowException, OverflowError)
# Bytes of text of a record, where nothing of a damaged source could be read that would tell it.
_RECORD = 1000
# Lines of a damaged stretch that tell more than other files: the first ones take more bytes than others.
_MANY = 50
# Other pieces of a shard that are read to tell it.
_NEIGHBORS = 2


def is_one_document(kind: str, source: FilesConfig) -> bool:
    """Whether each file of a source is one document: text without a separator.

    Args:
        kind: Format of the files.
        source: Settings: the separator.
    """
    return kind == "text" and source.separator is None


def read_shard(
    shard: Shard,
    source: FilesConfig,
    report: Callable[[int], None] = lambda count: None,
    *,
    is_trusted: bool = False,
) -> Iterator[Document | Reject]:
    """All records of a shard, in order, before any choice by `fraction`.

    Args:
        shard: Shard to read.
        source: Settings: fields of text and id, separator, largest document.
        report: Called with the number of bytes of the files read since the last call.
        is_trusted: Whether records are returned before the checksum of what is compressed is known, so
            that the first ones come at once.

    Returns:
        Documents, and a reject in place of bad records. The number of records that damage took is
        estimated from the bytes that it took.

    Raises:
        CorpusError: A file vanished or cannot be opened.
        MemoryError: A record is larger than the memory.
    """
    neighbors = _Neighbors(shard, source)
    for piece in shard.pieces:
        records = _records(
            piece, shard.format, source, report, neighbors.pace, is_trusted=is_trusted
        )
        for offset, record in records:
            yield _document(piece.file.name, offset, record, source, shard.format)


@dataclass(frozen=True)
class _Pace:
    """Records, and the bytes of files that held them."""

    records: int = 0
    bytes: int = 0


@dataclass
class _Neighbors:
    """The other pieces of a shard, which tell how many records damage took where nothing else does."""

    shard: Shard
    source: FilesConfig

    def pace(self, damaged: Piece) -> _Pace:
        """Records a byte of a few other pieces, read as far as they are sound."""
        records, size = 0, 0
        others = [piece for piece in self.shard.pieces if piece != damaged]
        for piece in others[:_NEIGHBORS]:
            with contextlib.suppress(CorpusError):
                count = sum(
                    not isinstance(record, BadRecord)
                    for _, record in _records(
                        piece, self.shard.format, self.source, _ignore, _no_pace, is_trusted=True
                    )
                )
                records += count
                size += piece.bytes if count else 0
        return _Pace(records, size)


def _ignore(count: int) -> None:
    """Reports no bytes: those of the neighbors are reported when their turn comes."""


def _no_pace(damaged: Piece) -> _Pace:
    return _Pace()


def _records(
    piece: Piece,
    kind: str,
    source: FilesConfig,
    report: Callable[[int], None],
    neighbors: Callable[[Piece], _Pace],
    *,
    is_trusted: bool,
) -> Iterator[tuple[int, RawRecord]]:
    """Records of a piece with their offsets; damage to the file ends them with a `BadRecord`."""
    file = piece.file
    if file.bytes == 0:
        yield 0, BadRecord("empty file")
        return
    offset, count = piece.range.begin if piece.range else 0, 0
    try:
        with open_raw(file, report) as raw:
            content = raw
            if kind in COMPRESSIBLE:
                raw.seek(piece.range.file_offset if piece.range else 0)
                content = decompressed(raw, file.name, is_trusted=is_trusted)
            for offset, record in READERS[kind](content, piece, source):
                if isinstance(record, BadRecord):
                    if record.damage is not None:
                        before = _Pace(count, content.sound)
                        lost = _lost(record.damage, before, piece, kind, neighbors)
                        record = replace(record, count=lost)
                    count += record.count
                else:
                    count += 1
                yield offset, record
    except MemoryError as error:
        reason = f"{file.name} at {offset}: {error or 'a record'}"
        raise MemoryError(f"{reason}; max_document can leave it out") from error
    except _DAMAGE as error:
        damage = Damage(" ".join(str(error).split())[:300], piece.bytes)
        lost = _lost(damage, _Pace(), piece, kind, neighbors) - count
        yield offset, BadRecord(DAMAGED, damage.detail, max(lost, 1))


def _lost(
    damage: Damage, before: _Pace, piece: Piece, kind: str, neighbors: Callable[[Piece], _Pace]
) -> int:
    """About how many records a damaged stretch of a file held.

    Args:
        damage: The stretch.
        before: What the file held before it.
        piece: The piece of the file.
        kind: Format of the file.
        neighbors: Tells what other pieces hold.

    Returns:
        As many as the nearest sound stretch would have in as many bytes; at least 1.
    """
    for pace in _paces(damage, before, piece, neighbors):
        if pace.records and pace.bytes:
            return max(1, round(damage.bytes * pace.records / pace.bytes))
    return max(1, damage.bytes * expansion_of(piece.file.name, kind) // _RECORD)


def _paces(
    damage: Damage, before: _Pace, piece: Piece, neighbors: Callable[[Piece], _Pace]
) -> Iterator[_Pace]:
    """Records a byte by what tells them, the best first."""
    within = _Pace(damage.lines, damage.measured)
    if 2 * damage.measured > damage.bytes and not damage.is_noise:
        yield within
    yield before
    if damage.lines > _MANY and not damage.is_noise:
        yield within
    yield neighbors(piece)
    yield within


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
