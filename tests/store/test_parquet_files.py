"""Parquet files of somebody who means harm."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retro_db.errors import DamagedFileError
from retro_db.store.parquet_tables import read_parquet

TEXTS = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("n", pa.int64(), nullable=False)]
)


def write_parquet(path: Path, ids: Any, numbers: Any, **options: Any) -> Path:
    table = pa.Table.from_arrays([pa.array(ids, pa.string()), pa.array(numbers)], schema=TEXTS)
    pq.write_table(table, path, **({"compression": "zstd"} | options))
    return path


def test_parquet_is_read_whole(tmp_path: Path) -> None:
    ids = [f"ünïcode {number % 7}" for number in range(1000)]
    path = write_parquet(tmp_path / "a", ids, range(1000), row_group_size=300)
    table = read_parquet(path, TEXTS, 1000, "a")
    assert table.schema.equals(TEXTS)
    assert table.to_pydict() == {"id": ids, "n": list(range(1000))}
    path = write_parquet(tmp_path / "b", [], pa.array([], pa.int64()))
    assert read_parquet(path, TEXTS, 0, "b").num_rows == 0


def test_parquet_of_other_columns_or_rows_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a", ["x", "y"], [1, 2])
    for schema in (
        TEXTS.append(pa.field("more", pa.int64())),
        pa.schema([TEXTS.field(0)]),
        pa.schema([TEXTS.field(1), TEXTS.field(0)]),
        pa.schema([TEXTS.field(0), pa.field("n", pa.int32(), nullable=False)]),
    ):
        with pytest.raises(DamagedFileError, match="a: holds"):
            read_parquet(path, schema, 2, "a")
    with pytest.raises(DamagedFileError, match="has 2 rows, the manifest says 3"):
        read_parquet(path, TEXTS, 3, "a")


def test_parquet_bombs_are_refused_before_they_burst(tmp_path: Path) -> None:
    rows = 2_000_000
    letters = pa.array(["x" * 1_000_000])
    bomb = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), letters)
    table = pa.Table.from_arrays(
        [bomb, pa.array(np.zeros(rows, np.int64))],
        schema=TEXTS.set(0, pa.field("id", bomb.type, nullable=False)),
    )
    pq.write_table(table, tmp_path / "a", compression="zstd", store_schema=False)
    assert (tmp_path / "a").stat().st_size < 1_000_000
    with pytest.raises(DamagedFileError, match=r"takes \d{13} bytes"):
        read_parquet(tmp_path / "a", TEXTS, rows, "a")
    # One that its metadata tell of: nothing is decoded.
    path = write_parquet(tmp_path / "b", ["x" * 100_000_000], [1], use_dictionary=False)
    before = pa.total_allocated_bytes()
    with pytest.raises(DamagedFileError, match=r"takes 10\d{7} bytes"):
        read_parquet(path, TEXTS, 1, "b")
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_checksums_of_pages_are_verified(tmp_path: Path) -> None:
    ids = [os.urandom(8).hex() for _ in range(1000)]
    path = write_parquet(
        tmp_path / "a",
        ids,
        range(1000),
        compression=None,
        use_dictionary=False,
        write_page_checksum=True,
    )
    raw = bytearray(path.read_bytes())
    place = raw.index(ids[500].encode())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedFileError, match=r"(?i)crc"):
        read_parquet(path, TEXTS, 1000, "a")
    raw[place] = 0xFF
    path = write_parquet(tmp_path / "b", ids, range(1000), compression=None, use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(ids[500].encode(), b"\xff" * 16))
    with pytest.raises(DamagedFileError, match=r"(?i)utf"):
        read_parquet(path, TEXTS, 1000, "b")
