"""Files of slices: what one task hands to many, each of which reads its slice and nothing else.

A slice is an Arrow stream of its own, and the streams of a file lie one behind the other: reading one is a
seek and a sequential read, from a local disk by the memory map. Where each begins is kept in the completion
record of the task that wrote the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.store.packing import pack_numbers, unpack_numbers
from retro_db.store.tables import decoding, to_numpy
from retro_db.store.writing import to_arrow


@dataclass(frozen=True)
class SlicedFile:
    """A file of slices.

    Attributes:
        file: The file.
        offsets: Packed numbers: where each slice begins, and the size of the file. Equal ones mean that a
            slice is empty.
    """

    file: FileEntry
    offsets: str

    def at(self, number: int) -> Slice:
        """One of its slices."""
        start, stop = unpack_numbers(self.offsets)[number : number + 2].tolist()
        return Slice(self.file.path, start, stop)

    @property
    def count(self) -> int:
        """Number of its slices, empty ones too."""
        return len(unpack_numbers(self.offsets)) - 1


@dataclass(frozen=True)
class Slice:
    """Bytes of a file that are an Arrow stream of their own; none if it is empty.

    Attributes:
        path: Path of the file.
        start: First byte.
        stop: One after the last byte.
    """

    path: str
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        """Size of the slice."""
        return self.stop - self.start


class SliceWriter:
    """Writes slices one after another, each in any number of batches.

    Args:
        stream: The file.
        schema: Schema of the slices.

    Attributes:
        offsets: Where each slice begins.
    """

    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self.offsets: list[int] = []
        self._stream = stream
        self._schema = schema
        self._writer: pa.RecordBatchStreamWriter | None = None

    def begin(self) -> None:
        """Begins the next slice, which stays empty if nothing is written to it."""
        self.end()
        self.offsets.append(self._stream.tell())

    def write(self, columns: Mapping[str, np.ndarray | pa.Array]) -> None:
        """Writes one batch to the present slice: a column for every field of the schema."""
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._stream, self._schema)
        arrays = [to_arrow(columns[field.name], field.type) for field in self._schema]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def end(self) -> None:
        """Ends the present slice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@contextmanager
def writing_slices(
    folder: Folder, path: str, schema: pa.Schema, written: list[SlicedFile]
) -> Iterator[SliceWriter]:
    """A file of slices, which takes its name when the block ends.

    Args:
        folder: Folder that it is written to.
        path: Path of the file, relative to the folder.
        schema: Schema of the slices.
        written: Gets the file when it is complete.
    """
    with folder.writing(path) as temporary:
        with temporary.open("wb") as stream:
            writer = SliceWriter(stream, schema)
            yield writer
            writer.end()
            offsets = [*writer.offsets, stream.tell()]
        written.append(SlicedFile(describe(temporary, path), pack_numbers(offsets)))


def read_slice(folder: Folder, piece: Slice, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a slice, from a local disk without copying them.

    Args:
        folder: Folder that the file lies in.
        piece: The slice.
        schema: Schema that it must have.

    Raises:
        DamagedFileError: The file is missing, or the slice cannot be decoded.
    """
    if not piece.bytes:
        return
    where = f"{folder.url}: {piece.path}, bytes {piece.start:,} to {piece.stop:,}"
    with _streaming(folder, piece) as stream, decoding(f"{where}: not a readable slice"):
        if folder.is_local:
            source = pa.memory_map(str(folder.local(piece.path)))
            source.seek(piece.start)
            reader = pa.ipc.open_stream(source.read_buffer(piece.bytes))
        else:
            reader = pa.ipc.open_stream(stream)
        if not reader.schema.equals(schema):
            raise ValueError(f"holds {reader.schema} instead of {schema}")
        for batch in reader:
            batch.validate()
            yield batch


def _streaming(folder: Folder, piece: Slice) -> AbstractContextManager[BinaryIO]:
    if folder.is_local:
        return folder.streaming(piece.path)
    return folder.streaming_range(piece.path, piece.start, piece.stop)


def slices_of(files: Sequence[SlicedFile], number: int) -> list[Slice]:
    """The slices with a number that hold anything."""
    return [piece for file in files if (piece := file.at(number)).bytes]


def column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column as an array, [n] or [n, size] for fixed-size lists, without copying it."""
    return to_numpy(batch.column(name))
