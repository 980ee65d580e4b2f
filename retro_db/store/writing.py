"""Writes tables: Arrow IPC in equal batches, or Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class TableWriter:
    """Streams columns into one file, in batches of equal size at constant memory.

    The format follows the file's contract: `.parquet` or Arrow IPC.

    Args:
        path: A new local file.
        schema: Schema of the table. Fixed-size lists are given as arrays [rows, size].
        batch_rows: Rows of every batch but the last.
        parquet: Whether to write Parquet instead of Arrow IPC.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, batch_rows: int, *, parquet: bool = False
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
        arrays = [to_arrow(columns[field.name], field.type) for field in self._schema]
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


def to_arrow(values: np.ndarray | pa.Array | list[str], kind: pa.DataType) -> pa.Array:
    """A column of an Arrow type; of fixed-size lists, from an array [rows, size]."""
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(values, type=kind)
