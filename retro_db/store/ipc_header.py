"""The headers of an Arrow file, read before Arrow acts on them.

Arrow decompresses a batch while it decodes it, however large it gets: so whether it is compressed has to be
known before. The headers are FlatBuffers; an offset in them that points outside the file raises an error.
"""

from __future__ import annotations

import struct

import numpy as np

_TAIL = 10  # the footer's length and the magic bytes
_CONTINUATION = -1
_BLOCK = np.dtype([("offset", "<i8"), ("header", "<i4"), ("padding", "<i4"), ("body", "<i8")])
# Numbers of fields in Arrow's File.fbs and Message.fbs.
_FOOTER_DICTIONARIES, _FOOTER_BATCHES = 2, 3
_MESSAGE_HEADER = 2
_BATCH_COMPRESSION = 3


def batch_offsets(file: memoryview) -> list[int]:
    """Offsets of the batches of an Arrow file.

    Args:
        file: The whole file.

    Returns:
        The offset of each batch's header.

    Raises:
        ValueError: A header points outside the file, or the file has dictionaries.
        struct.error: A header points outside the file.
    """
    footer = len(file) - _TAIL - _number(file, len(file) - _TAIL, "<i")
    table = _follow(file, footer)
    if len(_blocks(file, table, _FOOTER_DICTIONARIES)):
        raise ValueError("it has dictionaries")
    return _blocks(file, table, _FOOTER_BATCHES)["offset"].tolist()


def is_compressed(file: memoryview, offset: int) -> bool:
    """Whether a batch's header says that its buffers are compressed.

    Args:
        file: The whole file.
        offset: Offset of the batch's header.

    Raises:
        ValueError: The header points outside the file.
        struct.error: The header points outside the file.
    """
    marked = _number(file, offset, "<i") == _CONTINUATION
    message = _follow(file, offset + (8 if marked else 4))
    header = _field(file, message, _MESSAGE_HEADER)
    return header is None or _field(file, _follow(file, header), _BATCH_COMPRESSION) is not None


def _blocks(file: memoryview, table: int, number: int) -> np.ndarray:
    """A vector of blocks in the footer."""
    field = _field(file, table, number)
    if field is None:
        return np.empty(0, _BLOCK)
    vector = _follow(file, field)
    return np.frombuffer(file, _BLOCK, _number(file, vector, "<I"), vector + 4)


def _field(file: memoryview, table: int, number: int) -> int | None:
    """Offset of a table's field; None if it is not set."""
    described = table - _number(file, table, "<i")
    entry = 4 + 2 * number
    if entry >= _number(file, described, "<H"):
        return None
    return table + place if (place := _number(file, described + entry, "<H")) else None


def _follow(file: memoryview, place: int) -> int:
    return place + _number(file, place, "<I")


def _number(file: memoryview, place: int, kind: str) -> int:
    if place < 0:
        raise ValueError("a header points outside the file")
    return int(struct.unpack_from(kind, file, place)[0])
