"""Divides large files at line ends, frames, row groups or documents into ranges to read separately."""

from __future__ import annotations

import io
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.corpus.compression import MAGIC_BYTES, compression_of
from retro_db.corpus.formats.megatron import open_index
from retro_db.corpus.listing import InputFile
from retro_db.corpus.pieces import Piece, Range
from retro_db.corpus.streams import arrow_file, open_raw

# https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md
_SEEK_MAGIC = 0x8F92EAB1
_SEEK_FOOTER = struct.Struct("<IBI")
_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MAGIC = 0x184D2A5E


_Weighted = tuple[Range, int]


def split_file(file: InputFile, kind: str, size: int) -> list[Piece]:
    """Divides a file into ranges of about `size` bytes if its format allows it.

    Plain JSON lines are divided at any byte, each line belonging to the range in which it begins;
    zstd ones at their frames, if they have a seek table; Parquet at row groups, token files of
    Megatron at documents. All other files stay whole.

    Args:
        file: File to divide.
        kind: Format of the file.
        size: Size of a piece, in bytes of the file.

    Returns:
        Pieces in order, which together are the file.
    """
    ranges: Sequence[_Weighted] = ()
    if file.bytes > size and kind in _RANGES:
        try:
            with open_raw(file) as raw:
                ranges = _RANGES[kind](raw, file, size)
        except (OSError, ValueError, pa.ArrowException):
            # A damaged file stays whole: reading it will count its bad records.
            ranges = ()
    if len(ranges) < 2:
        return [Piece(file, file.bytes)]
    done = [0, *itertools.accumulate(weight for _, weight in ranges)]
    ends = [file.bytes * weight // max(done[-1], 1) for weight in done]
    return [
        Piece(file, end - begin, piece_range)
        for (piece_range, _), (begin, end) in zip(ranges, pairwise(ends), strict=True)
    ]


def _line_ranges(raw: io.BufferedReader, file: InputFile, size: int) -> list[_Weighted]:
    kind = compression_of(file.name, raw.peek(MAGIC_BYTES))
    if kind == "zstd":
        return _frame_ranges(raw, file, size)
    if kind is not None:
        return []
    bounds = _even(file.bytes, math.ceil(file.bytes / size))
    # The byte before the range shows whether a line begins with it.
    return [
        (Range(begin, end, max(begin - 1, 0), max(begin - 1, 0)), end - begin)
        for begin, end in pairwise(bounds)
    ]


def _frame_ranges(raw: io.BufferedReader, file: InputFile, size: int) -> list[_Weighted]:
    """Ranges at frames, each read from the frame before it, whose last byte shows if a line begins."""
    table = _seek_table(raw, file.bytes)
    if table is None:
        return []
    packed, unpacked = (np.concatenate([[0], np.cumsum(column)]) for column in table.T)
    cuts = [0]
    for frame in range(1, len(table)):
        if packed[frame] - packed[cuts[-1]] >= size and unpacked[frame] > unpacked[cuts[-1]]:
            cuts.append(frame)
    ranges = []
    for cut, end in pairwise([*cuts, len(table)]):
        # The last frame that begins before the byte before; frames may be empty.
        start = max(int(np.searchsorted(unpacked, unpacked[cut], side="left")) - 1, 0)
        frames = Range(
            begin=int(unpacked[cut]),
            end=int(unpacked[end]),
            file_offset=int(packed[start]),
            offset=int(unpacked[start]),
        )
        ranges.append((frames, int(packed[end] - packed[cut])))
    return ranges


def _seek_table(raw: io.BufferedReader, size: int) -> np.ndarray | None:
    """Compressed and decompressed bytes of every frame, int64 [f, 2]; None if the file has no table.

    Raises:
        ValueError: The table does not fit the file.
    """
    if size < _SEEK_FOOTER.size + _SKIPPABLE.size:
        return None
    raw.seek(size - _SEEK_FOOTER.size)
    frames, descriptor, magic = _SEEK_FOOTER.unpack(raw.read(_SEEK_FOOTER.size))
    if magic != _SEEK_MAGIC or frames == 0:
        return None
    words = 3 if descriptor & 0x80 else 2  # with checksums or without
    body = frames * words * 4 + _SEEK_FOOTER.size
    raw.seek(size - body - _SKIPPABLE.size)
    if _SKIPPABLE.unpack(raw.read(_SKIPPABLE.size)) != (_SKIPPABLE_MAGIC, body):
        raise ValueError("the seek table does not fit the file")
    entries = np.frombuffer(raw.read(body - _SEEK_FOOTER.size), "<u4").reshape(frames, words)
    table = entries[:, :2].astype(np.int64)
    if table[:, 0].sum() + body + _SKIPPABLE.size != size:
        raise ValueError("the seek table does not fit the frames")
    return table


def _row_group_ranges(raw: io.BufferedReader, file: InputFile, size: int) -> list[_Weighted]:
    metadata = pq.ParquetFile(arrow_file(raw, file.bytes)).metadata
    weights = [
        metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)
    ]
    return _by_weight(np.array(weights), math.ceil(file.bytes / size))


def _document_ranges(raw: io.BufferedReader, file: InputFile, size: int) -> list[_Weighted]:
    index = open_index(file)
    return _by_weight(np.diff(index.bounds), math.ceil(file.bytes / size))


def _by_weight(weights: np.ndarray, count: int) -> list[_Weighted]:
    """Consecutive units as at most `count` ranges of about equal weight."""
    done = np.concatenate([[0], np.cumsum(weights)])
    targets = _even(int(done[-1]), count)[1:-1]
    cuts = np.unique([0, *np.searchsorted(done, targets, side="left"), len(weights)])
    return [
        (Range(int(begin), int(end)), int(done[end] - done[begin])) for begin, end in pairwise(cuts)
    ]


def _even(total: int, count: int) -> list[int]:
    """Bounds of `count` ranges of about equal length from 0 to `total`."""
    return [total * number // count for number in range(count + 1)]


_RANGES: dict[str, Callable[[io.BufferedReader, InputFile, int], list[_Weighted]]] = {
    "jsonl": _line_ranges,
    "parquet": _row_group_ranges,
    "megatron": _document_ranges,
}
