"""Arrow files of somebody who means harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_db.errors import DamagedFileError
from retro_db.store.tables import IpcFile
from retro_db.store.writing import TableWriter

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field(
            "pair", pa.list_(pa.field("item", pa.uint16(), nullable=False), 2), nullable=False
        ),
    ]
)
ROWS, BATCH_ROWS = 30, 16


@pytest.fixture(scope="module")
def arrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrow") / "a.arrow"
    with TableWriter(path, SCHEMA, BATCH_ROWS) as writer:
        pairs = np.arange(2 * ROWS, dtype=np.uint16).reshape(ROWS, 2)
        writer.append({"row": np.arange(ROWS), "pair": pairs})
    return path


def write_arrow(path: Path, batch: pa.RecordBatch, **options: Any) -> Path:
    with pa.ipc.new_file(
        str(path), batch.schema, options=pa.ipc.IpcWriteOptions(**options)
    ) as writer:
        writer.write_batch(batch)
    return path


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_no_view_reaches_beyond_an_arrow_file(arrow: Path, data: st.DataObject) -> None:
    raw = bytearray(arrow.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        value = data.draw(
            st.sampled_from([0, 1, 255, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
        )
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        new = (value % (1 << 8 * width)).to_bytes(width, "little")
        raw[place : place + width] = new[: len(raw) - place]
    path = arrow.with_name("mutated.arrow")
    path.unlink(missing_ok=True)
    path.write_bytes(raw)
    try:
        file = IpcFile(path, SCHEMA, ROWS, BATCH_ROWS)
        rows, pairs = file.read("row"), file.read("pair")
    except DamagedFileError:
        return
    assert (rows.shape, pairs.shape) == ((ROWS,), (ROWS, 2))
    assert rows.tobytes()
    assert pairs.tobytes()


@pytest.mark.parametrize("kind", ["zstd", "lz4"])
def test_compressed_batches_are_not_decompressed(tmp_path: Path, kind: str) -> None:
    rows = 4_000_000
    zeros = pa.FixedSizeListArray.from_arrays(
        np.zeros(2 * rows, np.uint16), type=SCHEMA.field(1).type
    )
    batch = pa.RecordBatch.from_arrays([pa.array(np.zeros(rows, np.int64)), zeros], schema=SCHEMA)
    path = write_arrow(tmp_path / "a", batch, compression=kind)
    del zeros, batch
    assert path.stat().st_size < 1_000_000
    file, before = IpcFile(path, SCHEMA, rows, rows), pa.total_allocated_bytes()
    with pytest.raises(DamagedFileError, match="compressed"):
        file.read("row")
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_nulls_and_dictionaries_are_refused(tmp_path: Path) -> None:
    pairs = pa.FixedSizeListArray.from_arrays(np.zeros(4, np.uint16), type=SCHEMA.field(1).type)
    items = pa.array([1, None, 2, 3], pa.uint16())
    for columns in (
        [pa.array([1, None]), pairs],
        [pa.array([1, 2]), pa.FixedSizeListArray.from_arrays(items, type=SCHEMA.field(1).type)],
        [pa.array([1, 2]), pa.array([[1, 2], None], SCHEMA.field(1).type)],
    ):
        path = write_arrow(tmp_path / "a", pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
        file = IpcFile(path, SCHEMA, 2, 16)
        with pytest.raises(DamagedFileError):
            file.read("row"), file.read("pair")
    named = pa.RecordBatch.from_pydict({"a": pa.array(["x"]).dictionary_encode()})
    with pytest.raises(DamagedFileError, match="dictionaries"):
        IpcFile(write_arrow(tmp_path / "b", named), named.schema, 1, 16)
