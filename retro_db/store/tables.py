"""Arrow IPC files in equal batches, read through NumPy views."""

from __future__ import annotations

import abc
import contextlib
import functools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retro_db.errors import DamagedFileError
from retro_db.store.ipc_header import batch_offsets, is_compressed

# All errors that Arrow and NumPy raise for a damaged file, including sizes that no memory holds.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, struct.error)
_SHOWN = 300
# Arrow pads every buffer of a file to a multiple of this.
_ALIGNMENT = 8


class TableFile(abc.ABC):
    """Part of an Arrow table, in one file: every column of a batch is a NumPy view.

    Args:
        schema: Schema that the file must have.
        rows: Number of rows that it must have.
        batch_rows: Rows of every batch but the last.
    """

    def __init__(self, schema: pa.Schema, rows: int, batch_rows: int) -> None:
        self.schema = schema
        self.rows = rows
        self.batch_rows = batch_rows

    @abc.abstractmethod
    def view(self, column: str, batch: int) -> np.ndarray:
        """One batch's column: [rows] or, for fixed-size lists, [rows, size]; read-only.

        Args:
            column: Name of the column.
            batch: Number of the record batch.

        Returns:
            [rows] or [rows, size], of the column's type.

        Raises:
            DamagedFileError: The batch cannot be decoded, is compressed, has null values or another
                number of rows.
        """

    @abc.abstractmethod
    def mapped(self) -> IpcFile:
        """The file in this process's memory, for as long as the caller keeps it.

        Raises:
            DamagedFileError: The file is missing, is not the listed one, or cannot be decoded.
        """

    def read(self, column: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start to stop of a column, copied if they span batches.

        Args:
            column: Name of the column.
            start: First row.
            stop: One after the last row; by default the end of the file.

        Returns:
            [stop - start] or [stop - start, size]; a read-only view if all rows lie in one batch.

        Raises:
            DamagedFileError: A batch cannot be decoded.
        """
        stop = self.rows if stop is None else min(stop, self.rows)
        pieces = []
        for batch in range(start // self.batch_rows, -(-stop // self.batch_rows)):
            base = batch * self.batch_rows
            pieces.append(self.view(column, batch)[max(start - base, 0) : stop - base])
        if not pieces:
            return to_numpy(pa.array([], self.schema.field(column).type))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class IpcFile(TableFile):
    """One Arrow IPC file, memory-mapped; every column of a batch is a NumPy view.

    Attributes:
        address: Address of its first byte in this process's memory.

    Args:
        path: Local file.
        schema: Schema that the file must have.
        rows: Number of rows that it must have.
        batch_rows: Rows of every batch but the last.
        where: The file's name, for error messages; by default its path.

    Raises:
        DamagedFileError: The file is not an Arrow file, or has another schema or number of batches.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, rows: int, batch_rows: int, where: str = ""
    ) -> None:
        super().__init__(schema, rows, batch_rows)
        self._where = where or str(path)
        with decoding(f"{self._where}: not a readable Arrow file"):
            source = pa.memory_map(str(path)).read_buffer()
            self._file = memoryview(source)
            self._bytes = np.frombuffer(source, np.uint8)
            self._reader = pa.ipc.open_file(source)
            self._offsets = batch_offsets(self._file)
            actual = self._reader.schema
            if not actual.equals(schema):
                raise ValueError(f"holds {actual.to_string()} instead of {schema.to_string()}")
        expected = -(-rows // batch_rows)
        if len(self._offsets) != expected:
            raise DamagedFileError(
                f"{self._where}: {len(self._offsets)} batches instead of {expected}; run verify"
            )
        self._columns = {field.name: ColumnLayout.of(field.type) for field in schema}
        # The batch that was viewed last: its columns are mostly viewed one after another.
        self._viewed: dict[int, dict[str, int]] = {}
        self.address: int = self._bytes.ctypes.data

    def mapped(self) -> IpcFile:
        """Returns the file itself: it is mapped already."""
        return self

    def view(self, column: str, batch: int) -> np.ndarray:
        """One batch's column, from the memory map; arguments and errors are those of `TableFile.view`."""
        kind = self._columns[column]
        viewed = self._viewed  # another thread may replace it meanwhile
        if batch not in viewed:
            viewed = self._viewed = {batch: self.starts(batch)}
        start = viewed[batch][column]
        rows = min(self.batch_rows, self.rows - batch * self.batch_rows)
        data = self._bytes[start : start + rows * kind.bytes].view(kind.type)
        return data.reshape(rows, *kind.shape)

    def starts(self, batch: int) -> dict[str, int]:
        """Offsets in the file at which the columns of a batch begin, checked to end within the file.

        Raises:
            DamagedFileError: The batch cannot be decoded.
        """
        expected = min(self.batch_rows, self.rows - batch * self.batch_rows)
        with decoding(f"{self._where}: batch {batch}"):
            if is_compressed(self._file, self._offsets[batch]):
                raise ValueError("is compressed")
            data = self._reader.get_batch(batch)
            data.validate()
            if data.num_rows != expected:
                raise ValueError(f"has {data.num_rows} rows instead of {expected}")
            starts = {}
            for name, kind in self._columns.items():
                start = to_numpy(data.column(name)).ctypes.data - self.address
                if not 0 <= start <= len(self._file) - expected * kind.bytes:
                    raise ValueError(f"{name} does not lie in the file")
                if start % kind.unit:
                    raise ValueError(f"{name} does not begin at a multiple of {_ALIGNMENT} bytes")
                starts[name] = start
        return starts


@dataclass(frozen=True)
class ColumnLayout:
    """How the rows of a column lie in a file.

    Attributes:
        type: Type of a row's values.
        shape: Shape of a row.
        bytes: Size of a row.
        unit: Number of bytes that divides both the offset of every row and its size.
    """

    type: np.dtype[Any]
    shape: tuple[int, ...]
    bytes: int
    unit: int

    @classmethod
    @functools.cache
    def of(cls, kind: pa.DataType) -> ColumnLayout:
        """Layout of a column of an Arrow type."""
        empty = to_numpy(pa.array([], kind))
        size = empty.dtype.itemsize * math.prod(empty.shape[1:])
        return cls(empty.dtype, empty.shape[1:], size, math.gcd(size, _ALIGNMENT))


@contextlib.contextmanager
def decoding(where: str) -> Iterator[None]:
    """Turns every error that damaged bytes can cause into one of ours.

    Args:
        where: Beginning of the message.

    Raises:
        DamagedFileError: Decoding failed.
    """
    try:
        yield
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
        raise DamagedFileError(f"{where}: {reason}; run verify") from error


def to_numpy(array: pa.Array) -> np.ndarray:
    """A view of a column that was validated, whose buffers are as long as its rows need; a copy of bits."""
    if array.null_count:
        raise ValueError("has null values")
    if pa.types.is_fixed_size_list(array.type):
        items = array.flatten().to_numpy(zero_copy_only=True)
        return items.reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=not pa.types.is_boolean(array.type))
