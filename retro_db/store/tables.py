"""Tables as files: Arrow IPC in equal batches read through NumPy views, and Parquet."""

from __future__ import annotations

import abc
import contextlib
import functools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.errors import DamagedFileError
from retro_db.store.ipc_header import batch_offsets, is_compressed

# All that Arrow and NumPy raise where a file is not what it says: sizes that no memory holds, too.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, struct.error)
_SHOWN = 300
# Arrow pads every buffer of a file to a multiple of it.
_ALIGNMENT = 8
# Beyond every address of a process, and what NumPy can count.
_MEMORY, _LARGEST = 1 << 48, 1 << 62


class TableWriter:
    """Streams columns into one file, in batches of equal size at constant memory.

    The format follows the file's contract: `.parquet` or Arrow IPC.

    Args:
        path: A new local file.
        schema: Of the table. Fixed-size lists are given as arrays [rows, size].
        batch_rows: Rows of every batch but the last.
        parquet: Whether to write Parquet instead of Arrow IPC.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, batch_rows: int, parquet: bool = False
    ) -> None:
        self.rows = 0
        self._schema = schema
        self._batch_rows = batch_rows
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._sink = (
            pq.ParquetWriter(path, schema, compression="zstd")
            if parquet
            else pa.ipc.new_file(str(path), schema)
        )

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._pending_rows:
            self._flush(self._pending_rows)
        self._sink.close()

    def append(self, columns: Mapping[str, np.ndarray | list[str]]) -> None:
        """Adds rows: one array or list of equal length for every column of the schema."""
        arrays = [_to_arrow(columns[field.name], field.type) for field in self._schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self.rows += batch.num_rows
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        while self._pending_rows >= self._batch_rows:
            self._flush(self._batch_rows)

    def _flush(self, rows: int) -> None:
        """Writes the first `rows` pending rows as one batch."""
        table = pa.Table.from_batches(self._pending, self._schema)
        head = table.slice(0, rows).combine_chunks()
        if isinstance(self._sink, pq.ParquetWriter):
            self._sink.write_table(head, row_group_size=rows)
        else:
            self._sink.write_batch(head.to_batches()[0])
        self._pending = table.slice(rows).to_batches()
        self._pending_rows -= rows


def _to_arrow(values: np.ndarray | list[str], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(values, type=kind)


class TableFile(abc.ABC):
    """Part of an Arrow table, in one file: every column of a batch is a NumPy view.

    Args:
        schema: What the file must hold.
        rows: How many rows it must hold.
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
            DamagedFileError: It is missing, is not what is listed, or cannot be decoded.
        """

    def read(self, column: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start to stop of a column, copied where they span batches.

        Args:
            column: Name of the column.
            start: First row.
            stop: One after the last row; the end where left out.

        Returns:
            [stop - start] or [stop - start, size]; read-only where it is a view.

        Raises:
            DamagedFileError: A batch cannot be decoded.
        """
        stop = self.rows if stop is None else min(stop, self.rows)
        pieces = []
        for batch in range(start // self.batch_rows, -(-stop // self.batch_rows)):
            base = batch * self.batch_rows
            pieces.append(self.view(column, batch)[max(start - base, 0) : stop - base])
        if not pieces:
            return _to_numpy(pa.array([], self.schema.field(column).type))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class IpcFile(TableFile):
    """One Arrow IPC file, memory-mapped; every column of a batch is a NumPy view.

    Attributes:
        address: Of its first byte in this process's memory.

    Args:
        path: Local file.
        schema: What the file must hold.
        rows: How many rows it must hold.
        batch_rows: Rows of every batch but the last.
        where: The file's name, for error messages; its path where left out.

    Raises:
        DamagedFileError: The file is no Arrow file, or holds something else.
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
            found = self._reader.schema
            if not found.equals(schema):
                raise ValueError(f"holds {found.to_string()} instead of {schema.to_string()}")
        expected = -(-rows // batch_rows)
        if len(self._offsets) != expected:
            raise DamagedFileError(
                f"{self._where}: {len(self._offsets)} batches instead of {expected}; run verify"
            )
        self._columns = {field.name: _Column.of(field.type) for field in schema}
        # The batch that was viewed last: its columns are mostly viewed one after the other.
        self._viewed: dict[int, dict[str, int]] = {}
        self.address: int = self._bytes.ctypes.data

    def mapped(self) -> IpcFile:
        """Itself."""
        return self

    def view(self, column: str, batch: int) -> np.ndarray:
        """As every table file's: from the memory map."""
        kind = self._columns[column]
        viewed = self._viewed  # which another thread may replace meanwhile
        if batch not in viewed:
            viewed = self._viewed = {batch: self.starts(batch)}
        start = viewed[batch][column]
        rows = min(self.batch_rows, self.rows - batch * self.batch_rows)
        data = self._bytes[start : start + rows * kind.bytes].view(kind.type)
        return data.reshape(rows, *kind.shape)

    def starts(self, batch: int) -> dict[str, int]:
        """Where in the file the columns of a batch begin, none of which reaches beyond it.

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
                start = _to_numpy(data.column(name)).ctypes.data - self.address
                if not 0 <= start <= len(self._file) - expected * kind.bytes:
                    raise ValueError(f"{name} does not lie in the file")
                if start % kind.unit:
                    raise ValueError(f"{name} does not begin at a multiple of {_ALIGNMENT} bytes")
                starts[name] = start
        return starts


@dataclass(frozen=True)
class _Column:
    """How the rows of a column lie in a file.

    Attributes:
        type: Of a row's values.
        shape: Of a row.
        bytes: Of a row.
        unit: What both a row's place in the file and its length are multiples of, in bytes.
    """

    type: np.dtype[Any]
    shape: tuple[int, ...]
    bytes: int
    unit: int

    @classmethod
    @functools.cache
    def of(cls, kind: pa.DataType) -> _Column:
        """That of a column of an Arrow type."""
        empty = _to_numpy(pa.array([], kind))
        size = empty.dtype.itemsize * math.prod(empty.shape[1:])
        return cls(empty.dtype, empty.shape[1:], size, math.gcd(size, _ALIGNMENT))


@contextlib.contextmanager
def decoding(where: str) -> Iterator[None]:
    """Makes one error of all those that bytes which are not what they should be can cause.

    Args:
        where: Begins the message.

    Raises:
        DamagedFileError: In place of them.
    """
    try:
        yield
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
        raise DamagedFileError(f"{where}: {reason}; run verify") from error


def _to_numpy(array: pa.Array) -> np.ndarray:
    """A view of a column that is valid: its buffers are as long as its rows need."""
    if array.null_count:
        raise ValueError("has null values")
    if pa.types.is_fixed_size_list(array.type):
        items = array.flatten().to_numpy(zero_copy_only=True)
        return items.reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=True)


@dataclass(frozen=True)
class Rows:
    """Rows of a table, wherever their files are.

    Attributes:
        shape: Of the ids that were asked for.
        batches: Number of each row's batch among those of all files, int64 [n].
        places: Of the rows in their batches, int64 [n].
        last: bool [n], whether a row is the last one of its file.
        origins: Address of each row's file, int64 [n].
        maps: The files, which stay in memory as long as this.
    """

    shape: tuple[int, ...]
    batches: np.ndarray
    places: np.ndarray
    last: np.ndarray
    origins: np.ndarray
    maps: list[IpcFile]


class Table:
    """All files of an Arrow table, addressed by global row.

    Rows are gathered from all files at once, by their addresses in this process's memory: one file after
    the other, a batch out of thousands of files would take a hundred times as long.

    Args:
        files: In the manifest's order, all with as many rows in a batch.
        schema: Theirs; needed where there may be none.
    """

    def __init__(self, files: Sequence[TableFile], schema: pa.Schema | None = None) -> None:
        self.files = files
        rows = np.array([file.rows for file in files], np.int64)
        self._batch_rows = files[0].batch_rows if files else 1
        self._first_rows = np.cumsum([0, *rows], dtype=np.int64)
        self._first_batches = np.cumsum([0, *-(-rows // self._batch_rows)], dtype=np.int64)
        fields = schema or files[0].schema
        self._columns = {field.name: _Column.of(field.type) for field in fields}
        # Where the columns of the batches that were decoded begin in their files: int64 [batches].
        batches = int(self._first_batches[-1])
        self._starts = {name: np.zeros(batches, np.int64) for name in self._columns}
        self._decoded = np.zeros(batches, bool)

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def column(self, name: str) -> ColumnReader:
        """One of its columns."""
        return ColumnReader(self, name)

    def rows(self, ids: np.ndarray | list[int] | int) -> Rows:
        """Finds rows by global id.

        Args:
            ids: Integers [n], of another shape, or a single one.

        Raises:
            IndexError: An id is no integer, negative or too large; -1 marks a missing neighbor, not a row.
            DamagedFileError: A file is missing, is not what is listed, or cannot be decoded.
        """
        given = np.asarray(ids)
        if given.size and given.dtype.kind not in "iu":
            raise IndexError(f"row ids must be integers, not {given.dtype}")
        wanted = given.astype(np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(
                f"row ids must be in [0, {len(self)}), got {wanted.min()} to {wanted.max()}"
            )
        files = np.searchsorted(self._first_rows, wanted, side="right") - 1
        batches, places = np.divmod(wanted - self._first_rows[files], self._batch_rows)
        batches += self._first_batches[files]
        addresses = np.zeros(len(self.files), np.int64)
        addresses[files] = 1
        maps = {
            number: self.files[number].mapped() for number in np.flatnonzero(addresses).tolist()
        }
        for number, mapped in maps.items():
            addresses[number] = mapped.address
        if not self._decoded.all():
            self._decode(batches, files, maps)
        last = wanted + 1 == self._first_rows[files + 1]
        return Rows(given.shape, batches, places, last, addresses[files], [*maps.values()])

    def _decode(self, batches: np.ndarray, files: np.ndarray, maps: dict[int, IpcFile]) -> None:
        """Finds out where the columns of batches begin that nobody has read yet."""
        new = ~self._decoded[batches]
        found, first = np.unique(batches[new], return_index=True)
        for batch, file in zip(found.tolist(), files[new][first].tolist(), strict=True):
            starts = maps[file].starts(batch - int(self._first_batches[file]))
            for name, start in starts.items():
                self._starts[name][batch] = start
            self._decoded[batch] = True

    def take(self, column: str, rows: Rows) -> np.ndarray:
        """Rows of a column: a new array of the ids' shape, then the column's."""
        kind = self._columns[column]
        found = self._gather(column, 1, rows.origins, rows.batches, rows.places)
        return found.view(kind.type).reshape(*rows.shape, *kind.shape)

    def take_pairs(self, column: str, rows: Rows) -> np.ndarray:
        """Each row with the one after it in its file: the ids' shape, 2, the column's.

        Zeros follow a file's last row.
        """
        kind = self._columns[column]
        # What follows the last row of a batch does not lie behind it: there, the one before is read too.
        ends = rows.places == self._batch_rows - 1
        ends |= rows.last
        places = rows.places - ends
        if places.min(initial=0) < 0:
            return self._take_both(column, rows)
        found = self._gather(column, 2, rows.origins, rows.batches, places)
        if ends.any():
            halves = found.view(np.dtype((np.void, kind.bytes))).reshape(-1, 2)
            halves[ends, 0] = halves[ends, 1]
            halves[ends, 1] = np.void(kind.bytes)
            ends &= ~rows.last
            next_batches = rows.batches[ends] + 1
            halves[ends, 1] = self._gather(column, 1, rows.origins[ends], next_batches, 0)
        return found.view(kind.type).reshape(*rows.shape, 2, *kind.shape)

    def _take_both(self, column: str, rows: Rows) -> np.ndarray:
        """Pairs of which some are in batches of a single row."""
        kind = self._columns[column]
        halves = np.zeros((len(rows.places), 2), np.dtype((np.void, kind.bytes)))
        halves[:, 0] = self._gather(column, 1, rows.origins, rows.batches, rows.places)
        more = ~rows.last
        turned, places = np.divmod(rows.places[more] + 1, self._batch_rows)
        batches = rows.batches[more] + turned
        halves[more, 1] = self._gather(column, 1, rows.origins[more], batches, places)
        return halves.view(kind.type).reshape(*rows.shape, 2, *kind.shape)

    def _gather(
        self,
        column: str,
        width: int,
        origins: np.ndarray,
        batches: np.ndarray,
        places: np.ndarray | int,
    ) -> np.ndarray:
        """So many rows from each one on, all of one batch, as void items [n]."""
        kind = self._columns[column]
        at = places * kind.bytes + origins
        at += self._starts[column][batches]
        at //= kind.unit
        at -= 1
        return _memory(width * kind.bytes, kind.unit)[at]


@functools.cache
def _memory(size: int, unit: int) -> np.ndarray:
    """This process's memory as an array of void items of a size, of which item i begins at (i + 1) * unit.

    NumPy gathers single items several times as fast as rows of an array. No item may be looked at whose bytes
    are not known to be there.
    """
    count = min(_MEMORY // unit - size, _LARGEST // size)
    described = {
        "data": (unit, True),
        "shape": (count,),
        "strides": (unit,),
        "typestr": f"|V{size}",
    }
    return np.asarray(SimpleNamespace(__array_interface__=described | {"version": 3}))


class ColumnReader:
    """One column of a table, addressed by global row.

    Args:
        table: Which table.
        column: Name of the column.
    """

    def __init__(self, table: Table, column: str) -> None:
        self._table = table
        self._column = column

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Rows by global id, in the order asked for.

        Args:
            ids: Integers [n], of another shape, a single one, or a slice.

        Returns:
            A new array: the ids' shape, then the column's.

        Raises:
            IndexError: An id is no integer, negative or too large; -1 marks a missing neighbor, not a row.
            DamagedFileError: A file is missing, is not what is listed, or cannot be decoded.
        """
        if isinstance(ids, slice):
            ids = np.arange(*ids.indices(len(self)))
        return self._table.take(self._column, self._table.rows(ids))
