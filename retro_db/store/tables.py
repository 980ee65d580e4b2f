"""Tables as files: Arrow IPC in equal batches read through NumPy views, and Parquet."""

from __future__ import annotations

import abc
import contextlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.errors import DamagedFileError
from retro_db.store.ipc_header import batch_offsets, is_compressed

# All that Arrow and NumPy raise where a file is not what it says: sizes that no memory holds, too.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, struct.error)
_SHOWN = 300


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
        self._batches: dict[int, dict[str, np.ndarray]] = {}
        with decoding(f"{self._where}: not a readable Arrow file"):
            source = pa.memory_map(str(path))
            self._file = memoryview(source.read_buffer())
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

    def view(self, column: str, batch: int) -> np.ndarray:
        """As every table file's: from the memory map."""
        if batch not in self._batches:
            self._batches[batch] = self._decode(batch)
        return self._batches[batch][column]

    def _decode(self, batch: int) -> dict[str, np.ndarray]:
        """Views of a batch's columns, none of which reaches beyond the file."""
        expected = min(self.batch_rows, self.rows - batch * self.batch_rows)
        with decoding(f"{self._where}: batch {batch}"):
            if is_compressed(self._file, self._offsets[batch]):
                raise ValueError("is compressed")
            data = self._reader.get_batch(batch)
            data.validate()
            if data.num_rows != expected:
                raise ValueError(f"has {data.num_rows} rows instead of {expected}")
            return {name: _to_numpy(data.column(name)) for name in self.schema.names}


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


class ColumnReader:
    """One column over all files of a table, addressed by global row.

    Args:
        files: In the manifest's order.
        column: Name of the column.
    """

    def __init__(self, files: Sequence[TableFile], column: str) -> None:
        self.files = files
        self._column = column
        self._starts = np.concatenate(
            [[0], np.cumsum([file.rows for file in files], dtype=np.int64)]
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Rows by global id, in the order asked for.

        Args:
            ids: Integers [n], of another shape, a single one, or a slice.

        Returns:
            A new array: the ids' shape, then the column's.

        Raises:
            IndexError: An id is no integer, negative or too large; -1 marks a missing neighbor, not a row.
        """
        if isinstance(ids, slice):
            start, stop, step = ids.indices(len(self))
            return self[np.arange(start, stop, step)]
        given = np.asarray(ids)
        if given.size and given.dtype.kind not in "iu":
            raise IndexError(f"row ids must be integers, not {given.dtype}")
        wanted = given.astype(np.int64)
        if wanted.ndim != 1:
            flat = self[wanted.reshape(-1)]
            return flat.reshape(*wanted.shape, *flat.shape[1:])
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(
                f"row ids must be in [0, {len(self)}), got {wanted.min()} to {wanted.max()}"
            )
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        file_of = np.searchsorted(self._starts, ordered, side="right") - 1
        out: np.ndarray | None = None
        position = 0
        while position < len(ordered):
            file = self.files[file_of[position]]
            base = self._starts[file_of[position]]
            batch = int(ordered[position] - base) // file.batch_rows
            first = base + batch * file.batch_rows
            end = int(np.searchsorted(ordered, min(first + file.batch_rows, base + file.rows)))
            view = file.view(self._column, batch)
            if out is None:
                out = np.empty((len(ordered), *view.shape[1:]), view.dtype)
            out[order[position:end]] = view[ordered[position:end] - first]
            position = end
        return out if out is not None else self._empty()

    def _empty(self) -> np.ndarray:
        if not self.files:
            return np.empty(0)
        return self.files[0].read(self._column, 0, 0).copy()
