"""Corpora stored as tokens: the .bin and .idx files of Megatron-LM's IndexedDataset."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retro_db.config import FilesConfig
from retro_db.corpus.formats.raw import DAMAGED, BadRecord, RawRecord
from retro_db.corpus.listing import InputFile
from retro_db.corpus.pieces import Piece
from retro_db.corpus.streams import Content, open_raw

# megatron/core/datasets/indexed_dataset.py: magic, version, code of the token type, counts of
# sequences and of document bounds; then sizes int32, byte offsets int64, document bounds int64.
HEADER = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
TOKEN_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


@dataclass(frozen=True)
class TokenIndex:
    """Positions of the documents in a .bin file.

    Attributes:
        token_type: Type of the stored tokens: little-endian integers.
        bounds: Bytes at which documents begin, and the end: int64 [D + 1].
    """

    token_type: np.dtype
    bounds: np.ndarray

    @property
    def documents(self) -> int:
        """Number of documents in the file."""
        return len(self.bounds) - 1


def open_index(file: InputFile) -> TokenIndex:
    """Reads the .idx file beside a .bin file.

    Args:
        file: The .bin file, with its .idx file.

    Returns:
        Positions of the documents.

    Raises:
        CorpusError: The .idx file does not exist.
        ValueError: The .idx file is damaged.
    """
    assert file.index is not None  # noqa: S101 - `select_files` gives it to every .bin file
    with open_raw(file.index) as raw:
        return parse_index(raw.read())


def parse_index(data: bytes) -> TokenIndex:
    """Reads the content of an .idx file.

    Args:
        data: Bytes of the whole file.

    Returns:
        Positions of the documents.

    Raises:
        ValueError: The content is damaged.
    """
    if len(data) < HEADER.size:
        raise ValueError(".idx: cut off in its header")
    magic, version, code, sequences, bounds = HEADER.unpack_from(data)
    if magic != MAGIC or version != 1:
        raise ValueError(".idx: not an index of Megatron's version 1")
    if code not in TOKEN_TYPES:
        raise ValueError(f".idx: tokens of the type {code} are no integers")
    if len(data) < HEADER.size + sequences * 12 + bounds * 8 or not bounds:
        raise ValueError(".idx: cut off")
    token_type = np.dtype(TOKEN_TYPES[code])
    sizes = np.frombuffer(data, "<i4", sequences, HEADER.size).astype(np.int64)
    starts = np.frombuffer(data, "<i8", sequences, HEADER.size + sequences * 4)
    of_document = np.frombuffer(data, "<i8", bounds, HEADER.size + sequences * 12)
    ends = starts + sizes * token_type.itemsize
    if (sizes < 0).any() or not np.array_equal(
        starts, np.concatenate([[0], ends[:-1]])[:sequences]
    ):
        raise ValueError(".idx: its sequences do not follow one another")
    if of_document[0] != 0 or of_document[-1] != sequences or (np.diff(of_document) < 0).any():
        raise ValueError(".idx: its documents do not tile the sequences")
    total = int(ends[-1]) if sequences else 0
    return TokenIndex(token_type, np.append(starts, total)[of_document])


def read_records(
    raw: Content, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, RawRecord]]:
    """Yields the documents of a range as arrays of token ids, each with its number."""
    index = open_index(piece.file)
    first, last = (piece.range.begin, piece.range.end) if piece.range else (0, index.documents)
    raw.seek(int(index.bounds[first]))
    for number in range(first, last):
        size = int(index.bounds[number + 1] - index.bounds[number])
        if size > source.max_document:
            yield number, BadRecord("too long", "more bytes of tokens than max_document")
            raw.seek(int(index.bounds[number + 1]))
            continue
        data = raw.read(size)
        if len(data) < size:
            yield number, BadRecord(DAMAGED, "the .bin file is cut off", last - number)
            return
        yield number, np.frombuffer(data, index.token_type)
