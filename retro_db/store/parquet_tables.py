"""Parquet tables, read strictly: no file, whatever its headers say, takes more memory than allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retro_db.store.tables import decoding

# A table may take this many times its file's bytes, and this many bytes more: a table of documents that
# differ only in their first chunk was seen to take 80 times its file's bytes.
MOST_EXPANSION = 256
ALWAYS_ALLOWED = 64 << 20


def read_parquet(path: Path, schema: pa.Schema, rows: int, where: str) -> pa.Table:
    """Reads a whole table.

    Strings are read as dictionaries and become plain once their size is known: a file can repeat one long
    string in every row at the cost of a few bytes.

    Args:
        path: Local file.
        schema: Schema that the file must have.
        rows: Number of rows that it must have.
        where: The file's name, for error messages.

    Returns:
        The table; strings are valid UTF-8.

    Raises:
        DamagedFileError: The file is damaged, not a Parquet file, has another schema or number of rows,
            or would take more memory than `MOST_EXPANSION` times its size and `ALWAYS_ALLOWED`.
    """
    with decoding(where):
        most = ALWAYS_ALLOWED + MOST_EXPANSION * path.stat().st_size
        metadata = pq.read_metadata(path)
        _check(metadata, schema, rows, most)
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        groups, plain_bytes = [], 0
        with pq.ParquetFile(
            path, metadata=metadata, read_dictionary=texts, page_checksum_verification=True
        ) as file:
            for number in range(metadata.num_row_groups):
                group = file.read_row_group(number)
                group.validate(full=True)
                plain_bytes += _plain_bytes(group)
                _allow(plain_bytes, most)
                groups.append(group.cast(schema))
        table = pa.concat_tables(groups) if groups else schema.empty_table()
        if table.num_rows != rows:
            raise ValueError(f"has {table.num_rows} rows, the manifest says {rows}")
    return table


def _check(metadata: pq.FileMetaData, schema: pa.Schema, rows: int, most: int) -> None:
    """Checks schema, rows and sizes, all that the metadata says, before anything is decoded."""
    actual = metadata.schema.to_arrow_schema()
    if not actual.equals(schema):
        raise ValueError(f"holds {actual.to_string()} instead of {schema.to_string()}")
    if metadata.num_rows != rows:
        raise ValueError(f"has {metadata.num_rows} rows, the manifest says {rows}")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if any(min(group.num_rows, group.total_byte_size) < 0 for group in groups):
        raise ValueError("a row group has a negative size")
    _allow(sum(group.total_byte_size for group in groups), most)
    _allow(rows * sum(_fixed_bytes(field.type) for field in schema), most)


def _allow(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"takes {size} bytes, more than {most} for a file of this size")


def _plain_bytes(group: pa.Table) -> int:
    """Bytes that a group takes without dictionaries."""
    total = 0
    for column in group.columns:
        total += group.num_rows * _fixed_bytes(column.type)
        if pa.types.is_dictionary(column.type):
            for chunk in column.chunks:
                lengths = pc.binary_length(chunk.dictionary).to_numpy(zero_copy_only=False)
                uses = np.bincount(chunk.indices.to_numpy(), minlength=len(lengths))
                total += int((uses * lengths.astype(np.int64)).sum())
    return total


def _fixed_bytes(kind: pa.DataType) -> int:
    """Bytes of a row that do not depend on its value: a number, or a string's offset."""
    return 4 if pa.types.is_string(kind) or pa.types.is_dictionary(kind) else kind.bit_width // 8
