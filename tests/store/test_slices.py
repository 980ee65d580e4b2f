"""Files of slices: each slice is read by itself, whatever the others hold."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_db.errors import DamagedFileError
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder
from retro_db.store.packing import pack_numbers, unpack_numbers
from retro_db.store.slices import Slice, SlicedFile, column, read_slice, slices_of, writing_slices

SCHEMA = contract("near").schema()


def write(folder: Folder, slices: list[list[int]]) -> SlicedFile:
    """A file whose slices have batches of as many rows."""
    written: list[SlicedFile] = []
    with writing_slices(folder, "near.arrows", SCHEMA, written) as writer:
        for number, batches in enumerate(slices):
            writer.begin()
            for rows in batches:
                writer.write(
                    {
                        "query": np.full(rows, number),
                        "id": np.arange(rows),
                        "distance": np.arange(rows, dtype=np.float32) / 3,
                    }
                )
    [file] = written
    return file


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 50), max_size=3), max_size=6), st.booleans())
def test_every_slice_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, slices: list[list[int]], is_local: bool
) -> None:
    place = tmp_path_factory.mktemp("slices")
    folder = Folder(str(place) if is_local else f"memory://{place.name}")
    file = write(folder, slices)
    assert file.count == len(slices)
    for number, batches in enumerate(slices):
        read = list(read_slice(folder, file.at(number), SCHEMA))
        assert [batch.num_rows for batch in read] == batches
        for batch in read:
            assert (column(batch, "query") == number).all()
            assert column(batch, "id").tolist() == list(range(batch.num_rows))
    wanted = [number for number, batches in enumerate(slices) if batches]
    assert [n for n in range(len(slices)) if slices_of([file], n)] == wanted
    if not is_local:
        fsspec.filesystem("memory").rm(f"/{place.name}", recursive=True)


def test_a_slice_that_is_no_stream_is_named(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    file = write(folder, [[3], [4]])
    path = tmp_path / "near.arrows"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DamagedFileError, match=r"near\.arrows, bytes .* not a readable slice"):
        list(read_slice(folder, file.at(1), SCHEMA))
    with pytest.raises(DamagedFileError, match="is missing"):
        list(read_slice(folder, Slice("gone", 0, 9), SCHEMA))


def test_a_slice_of_another_table_is_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    file = write(folder, [[3]])
    with pytest.raises(DamagedFileError, match="holds"):
        list(read_slice(folder, file.at(0), pa.schema([pa.field("query", pa.int32())])))


@given(st.lists(st.integers(-(2**62), 2**62)))
def test_packed_numbers_come_back(numbers: list[int]) -> None:
    assert unpack_numbers(pack_numbers(numbers)).tolist() == numbers
