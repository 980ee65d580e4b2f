"""Files, tables, records and the manifest: written whole, read strictly."""

from __future__ import annotations

import json
import pickle
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

import retro_db
from retro_db.errors import DamagedFileError, DatabaseError, ManifestError, UnsupportedVersionError
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry, describe
from retro_db.store.gathering import Table
from retro_db.store.records import Record, StageRecords
from retro_db.store.serialize import DecodeError, digest, from_json, to_json
from retro_db.store.tables import IpcFile
from retro_db.store.writing import TableWriter
from retro_db_pipelines.commands.cli import run
from support.places import ROOT
from support.projects import Project

SCHEMAS = ROOT / "schemas"
SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field(
            "pair", pa.list_(pa.field("item", pa.uint16(), nullable=False), 2), nullable=False
        ),
    ]
)


def write(path: Path, rows: int, pieces: list[int], batch_rows: int) -> np.ndarray:
    """Rows 0 to rows - 1, appended in pieces of the given sizes, again and again."""
    pair = np.arange(2 * rows, dtype=np.uint16).reshape(rows, 2)
    with TableWriter(path, SCHEMA, batch_rows) as writer:
        start, turn = 0, 0
        while start < rows:
            stop = min(start + pieces[turn % len(pieces)], rows)
            writer.append({"row": np.arange(start, stop), "pair": pair[start:stop]})
            start, turn = stop, turn + 1
    return pair


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=4),
    st.lists(st.integers(1, 50), min_size=1, max_size=3),
    st.integers(1, 40),
    st.data(),
)
def test_tables_give_back_their_rows(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    pieces: list[int],
    batch_rows: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("table")
    files, expected = [], []
    for number, rows in enumerate(sizes):
        path = folder / f"{number}.arrow"
        expected.append(write(path, rows, pieces, batch_rows))
        files.append(IpcFile(path, SCHEMA, rows, batch_rows))
    whole = np.concatenate(expected)
    table = Table(files)
    column = table.column("pair")
    assert len(column) == len(whole)
    assert np.array_equal(column[:], whole)
    if len(whole):
        ids = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=60))
        assert np.array_equal(column[ids], whole[ids].reshape(-1, 2))
        # A file's last row has zeros behind it.
        behind = [np.append(part[1:], np.zeros_like(part[:1]), axis=0) for part in expected]
        pairs = np.stack([whole, np.concatenate(behind)], axis=1)
        # Opened anew, so that no batch was read before.
        opened = Table(files)
        assert np.array_equal(
            opened.take_pairs("pair", opened.rows(ids)), pairs[ids].reshape(-1, 2, 2)
        )
        start = data.draw(st.integers(0, sizes[-1]))
        stop = data.draw(st.integers(start, sizes[-1]))
        assert np.array_equal(files[-1].read("pair", start, stop), expected[-1][start:stop])
    with pytest.raises(IndexError):
        column[[len(whole)]]
    with pytest.raises(IndexError):
        column[[-1]]


@pytest.mark.parametrize("batch_rows", [1, 4])
def test_a_row_is_followed_by_one_in_a_batch_that_was_not_read(
    tmp_path: Path, batch_rows: int
) -> None:
    pair = write(tmp_path / "a", 11, [11], batch_rows)
    for row in range(10):
        table = Table([IpcFile(tmp_path / "a", SCHEMA, 11, batch_rows)])
        [both] = table.take_pairs("pair", table.rows([row]))
        assert np.array_equal(both, pair[row : row + 2])


def test_a_table_without_files_has_no_rows() -> None:
    table = Table([], SCHEMA)
    assert len(table) == 0
    assert table.column("pair")[:].shape == (0, 2)
    assert table.column("row")[[]].shape == (0,)
    assert table.take_pairs("pair", table.rows([])).shape == (0, 2, 2)
    with pytest.raises(IndexError):
        table.column("row")[[0]]


def test_bytes_do_not_depend_on_how_rows_were_appended(tmp_path: Path) -> None:
    write(tmp_path / "a", 1000, [1000], 64)
    write(tmp_path / "b", 1000, [7, 130, 1], 64)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", 100, [100], 64)
    other = pa.schema([pa.field("row", pa.int32())])
    with pytest.raises(DamagedFileError, match="instead of"):
        IpcFile(tmp_path / "a", other, 100, 64)
    with pytest.raises(DamagedFileError, match="batches"):
        IpcFile(tmp_path / "a", SCHEMA, 1000, 64)
    with pytest.raises(DamagedFileError, match="rows"):
        IpcFile(tmp_path / "a", SCHEMA, 99, 64).read("row")
    (tmp_path / "a").write_bytes(b"ARROW1 and nothing else")
    with pytest.raises(DamagedFileError, match="not a readable Arrow file"):
        IpcFile(tmp_path / "a", SCHEMA, 100, 64)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "db"))
    folder.write("a/file", b"old")

    def fail() -> None:
        with folder.writing("a/file") as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert folder.read("a/file") == b"old"
    assert folder.list("a") == ["file"]


def test_a_folder_may_be_an_object_store() -> None:
    folder = pickle.loads(pickle.dumps(Folder("memory://bucket/db")))  # noqa: S301 - our own
    folder.write("a/file", b"content")
    assert folder.read("a/file") == b"content"
    assert folder.list("a") == ["file"]
    assert folder.size("a/file") == 7
    assert folder.size("a/none") is None
    assert folder.local("a/file").read_bytes() == b"content"
    folder.remove("a")
    assert not folder.exists("a/file")


class SlowStore(MemoryFileSystem):
    """Files arrive in two halves."""

    protocol = "slow"
    store: ClassVar[dict[str, Any]] = {}

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        content = self.cat_file(rpath)
        with open(lpath, "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(0.2)
            file.write(content[len(content) // 2 :])


def test_copies_of_remote_files_are_whole_and_stay() -> None:
    fsspec.register_implementation("slow", SlowStore, clobber=True)
    folder = Folder(f"slow://{uuid.uuid4().hex}")
    folder.write("a/file.bin", b"first " * 1000)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: folder.local("a/file.bin").read_bytes(), range(4)))
    assert set(found) == {b"first " * 1000}
    before = folder.local("a/file.bin")
    folder.write("a/file.bin", b"other " * 1000)
    assert folder.local("a/file.bin").read_bytes() == b"other " * 1000
    assert before.read_bytes() == b"first " * 1000
    with pytest.raises(DamagedFileError, match="a/none is missing"):
        folder.local("a/none")


def test_records_survive_compaction(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    records = StageRecords(folder, "chunk")
    first = Record("a", {"code": "f1"}, [FileEntry("chunks/a", 1, "s", 2)], {"x": 1}, 0.5)
    second = Record("b", {"code": "f2"}, [], {}, 1.0)
    records.commit(first)
    records.keep_only([first])
    records.commit(second)
    assert records.load() == {"a": first, "b": second}
    folder.write("state/records/chunk/c.json", b'{"name": "c"')
    assert sorted(records.load()) == ["a", "b"], "a torn record is no record"


def test_records_of_more_than_a_gigabyte_are_read(tmp_path: Path) -> None:
    """As hundreds of thousands of parts have; lines that are no records, of holes, stand in for most."""
    records = StageRecords(Folder(str(tmp_path)), "encode")
    kept = [Record(name, {}, [], {}, 1.0) for name in ("first", "last")]
    records.keep_only(kept)
    path = tmp_path / "state" / "records" / "encode.jsonl"
    first, last = path.read_bytes().splitlines(keepends=True)
    with path.open("wb") as file:
        file.write(first)
        for end in range(1 << 20, 1_100_000_000, 1 << 20):  # each line at once no text
            file.seek(end)
            file.write(b"\n\xff")
        file.write(b"\n" + last)
    assert list(records.load().values()) == kept


@pytest.mark.parametrize("table", ["chunks", "documents", "embeddings", "neighbors"])
def test_every_table_written_meets_its_contract(small: Project, table: str) -> None:
    database = small.open()
    agreed = json.loads((SCHEMAS / f"{table}.json").read_text())
    expected = contract(table).schema(**database.parameters)
    assert [column["name"] for column in agreed["columns"]] == expected.names
    for entry in getattr(database.manifest.tables, table):
        path = small.output / entry.path
        if agreed["format"] == "parquet":
            assert pq.read_schema(path).equals(expected)
            assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
        else:
            reader = pa.ipc.open_file(path)
            assert reader.schema.equals(expected)
            sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
            assert all(size == agreed["batch_rows"] for size in sizes[:-1])
            assert sum(sizes) == entry.rows
            assert agreed["compression"] is None


def test_the_manifest_meets_its_schema(small: Project) -> None:
    data = json.loads((small.output / "manifest.json").read_text())
    schema = json.loads((SCHEMAS / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(data, schema)
    data["counts"]["chunks"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)


def test_the_manifest_lists_every_file_with_its_checksum(small: Project) -> None:
    manifest = small.open().manifest
    others = {"manifest.json", "README.md"}
    assert {entry.path for entry in manifest.files} == set(small.files()) - others
    for entry in manifest.files:
        assert describe(small.output / entry.path, entry.path, entry.rows) == entry


def edited(project: Project, target: Path, **changes: Any) -> str:
    """A copy of the database whose manifest says something else, sealed again."""
    shutil.copytree(project.output, target)
    data = json.loads((target / "manifest.json").read_text()) | changes
    del data["sha256"]
    data["sha256"] = digest(data)
    text = json.dumps(data, indent=1, sort_keys=True)
    (target / "manifest.json").write_text(text + "\n")
    return str(target)


def test_databases_of_format_1_0_are_read_and_verified(small: Project, tmp_path: Path) -> None:
    data = json.loads((small.output / "manifest.json").read_text())
    del data["tables"]["dropped"]
    for source in data["sources"]:
        del source["dropped_by"], source["rejected_by"]
    old = edited(
        small, tmp_path / "old", version="1.0", tables=data["tables"], sources=data["sources"]
    )
    assert retro_db.open(old).manifest.version == "1.0"
    assert run(["verify", old]) == 0
    assert run(["inspect", old]) == 0


def test_damaged_manifests_are_refused(small: Project, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedVersionError, match=r"2\.0"):
        retro_db.open(edited(small, tmp_path / "a", version="2.0"))
    with pytest.raises(ManifestError, match="unknown field"):
        retro_db.open(edited(small, tmp_path / "b", extra=1))
    with pytest.raises(ManifestError, match="counts: expected an object"):
        retro_db.open(edited(small, tmp_path / "c", counts=[]))
    shutil.copytree(small.output, tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    path.write_text(path.read_text().replace('"documents"', '"documemts"', 1))
    with pytest.raises(ManifestError, match="sha256"):
        retro_db.open(str(tmp_path / "d"))
    path.write_text("{")
    with pytest.raises(ManifestError, match="not valid JSON"):
        retro_db.open(str(tmp_path / "d"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "swap"])
@pytest.mark.parametrize("table", ["chunks", "documents", "embeddings", "neighbors", "index"])
def test_verify_finds_damage(small: Project, tmp_path: Path, table: str, damage: str) -> None:
    shutil.copytree(small.output, tmp_path / "db")
    first, second, *_ = sorted((tmp_path / "db" / table).iterdir())
    data = first.read_bytes()
    if damage == "flip":
        first.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    elif damage == "truncate":
        first.write_bytes(data[: len(data) // 2])
    elif damage == "remove":
        first.unlink()
    elif damage == "add":
        shutil.copy(first, first.with_name("part-9999999-0000.arrow"))
    else:
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    assert run(["verify", str(tmp_path / "db")]) == 1


def test_damaged_files_are_refused_by_name(small: Project, tmp_path: Path) -> None:
    shutil.copytree(small.output, tmp_path / "db")
    path = tmp_path / "db" / "chunks" / "part-0000000-0000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    database = retro_db.open(str(tmp_path / "db"))
    with pytest.raises(DamagedFileError, match="part-0000000-0000"):
        database.chunks[0]
    path.unlink()
    with pytest.raises(DatabaseError, match="missing"):
        retro_db.open(str(tmp_path / "db")).chunks[0]


def test_json_is_decoded_strictly() -> None:
    good = {"path": "a", "bytes": 1, "sha256": "s", "rows": None}
    assert from_json(FileEntry, good) == FileEntry("a", 1, "s", None)
    for change, message in (
        ({"bytes": "1"}, "bytes: expected int, found str"),
        ({"bytes": True}, "bytes: expected int, found bool"),
        ({"bytes": 1.0}, "bytes: expected int, found float"),
        ({"more": 1}, "more: unknown field"),
    ):
        with pytest.raises(DecodeError, match=message):
            from_json(FileEntry, good | change)
    with pytest.raises(DecodeError, match="path: missing"):
        from_json(FileEntry, {"bytes": 1, "sha256": "s"})


def test_entries_of_tables_have_rows_and_equal_those_in_records() -> None:
    table = {"path": "a", "bytes": 1, "sha256": "s", "rows": 2}
    entry = from_json(TableEntry, table)
    assert to_json(entry) == table
    assert entry == from_json(FileEntry, table)
    assert hash(entry) == hash(from_json(FileEntry, table))
    assert isinstance(entry.below("queries/asked"), TableEntry)
    with pytest.raises(DecodeError, match=r"x\.rows: expected int, found null"):
        from_json(TableEntry, table | {"rows": None}, "x")
    with pytest.raises(DecodeError, match=r"x\.rows: missing"):
        from_json(TableEntry, {"path": "a", "bytes": 1, "sha256": "s"}, "x")
