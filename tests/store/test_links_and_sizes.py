"""Files that are links, pipes or of another size than the manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

import retro_db
from retro_db.errors import DamagedFileError, InputError, ManifestError
from retro_db.search.retriever import LOCATIONS, Retriever
from retro_db.store.cache import Cache
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.records import StageRecords
from retro_db.tokens.tokenizer import Tokenizer
from retro_db.verify import verify_database
from support.hostile import manifest_of
from support.mutations import nested


def refuses(db: Path, table: str, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        getattr(retro_db.open(str(db)), table)


def test_links_that_lead_out_are_refused(db: Path, tmp_path: Path) -> None:
    [entry] = manifest_of(db)["tables"]["chunks"]
    outside = tmp_path / "outside"
    shutil.move(db / "chunks", outside)
    (db / "chunks").symlink_to(outside)
    refuses(db, "chunks", "behind a link")
    assert f"{entry['path']}: lies outside, behind a link" in verify_database(str(db)).problems
    (db / "chunks").unlink()
    (db / "chunks").mkdir()
    (db / entry["path"]).symlink_to(outside / Path(entry["path"]).name)
    refuses(db, "chunks", "behind a link")
    (db / entry["path"]).unlink()
    shutil.move(outside / Path(entry["path"]).name, db / "elsewhere")
    (db / entry["path"]).symlink_to(db / "elsewhere")
    (tmp_path / "named").symlink_to(db)
    assert len(retro_db.open(str(tmp_path / "named")).chunks[:]) == entry["rows"]


def test_a_manifest_behind_a_link_is_refused(db: Path, tmp_path: Path) -> None:
    shutil.move(db / "manifest.json", tmp_path / "outside.json")
    (db / "manifest.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ManifestError, match=r"behind a link.*restore it"):
        retro_db.open(str(db))


def test_links_in_a_circle_pipes_and_folders_are_no_files(db: Path) -> None:
    [entry] = manifest_of(db)["tables"]["documents"]
    path = db / entry["path"]
    path.unlink()
    path.symlink_to(path)
    refuses(db, "documents", "missing")
    path.unlink()
    os.mkfifo(path)
    refuses(db, "documents", "missing")
    path.unlink()
    path.mkdir()
    refuses(db, "documents", "missing")


@pytest.mark.parametrize("table", ["chunks", "documents", "neighbors", "embeddings"])
def test_files_of_another_size_are_not_read(db: Path, table: str) -> None:
    [entry] = manifest_of(db)["tables"][table]
    with (db / entry["path"]).open("ab") as file:
        file.write(b"\0")
    refuses(db, table, f"{entry['bytes'] + 1} bytes")


def test_an_index_or_tokenizer_of_another_size_is_not_read(db: Path) -> None:
    database = retro_db.open(str(db))
    assert len(Retriever(database).search(["whales"])[0]) == 1
    assert Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)
    for listed in (database.manifest.index_files, database.manifest.tokenizer_files):
        with (db / listed[-1].path).open("ab") as file:
            file.write(b" ")
    with pytest.raises(DamagedFileError, match=r"partition.* bytes"):
        Retriever(database)
    with pytest.raises(DamagedFileError, match=r"tokenizer.* bytes"):
        Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)


def test_a_remote_file_of_another_size_is_not_fetched(tmp_path: Path) -> None:
    folder = Folder(f"memory://{tmp_path.name}", cache=Cache(str(tmp_path / "cache")))
    entry = FileEntry("a/file", 7, hashlib.sha256(b"content").hexdigest())
    folder.write("a/file", b"contents")
    with pytest.raises(DamagedFileError, match="8 bytes"):
        folder.verified(entry)
    folder.write("a/file", b"content")
    assert folder.verified(entry).read_bytes() == b"content"


@pytest.mark.parametrize("sha256", ["", "../../../escaped", "/escaped", "\ud800"])
def test_what_a_manifest_says_of_a_remote_file_leads_nowhere(tmp_path: Path, sha256: str) -> None:
    folder = Folder(f"memory://{tmp_path.name}", cache=Cache(str(tmp_path / "deep" / "cache")))
    folder.write("a/file", b"content")
    with pytest.raises(DamagedFileError, match="a/file: its bytes are not those"):
        folder.verified(FileEntry("a/file", 7, sha256))
    [left] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left.name == ".retro-db-lock"


@pytest.mark.parametrize("raw", [b"[]", b"{", b'{"encoder": 1}', b"\xff", b"[" * 10_000])
def test_hostile_locations_are_refused(db: Path, raw: bytes) -> None:
    (db / LOCATIONS).write_bytes(raw)
    with pytest.raises(InputError, match="give --encoder"):
        Retriever(retro_db.open(str(db)))


def test_hostile_records_count_as_missing(db: Path) -> None:
    path = db / "state" / "records" / "chunk.jsonl"
    [good] = StageRecords(Folder(str(db)), "chunk").load().values()
    line = json.loads(path.read_bytes())
    for change in (
        {"name": 1},
        {"files": [{"path": "../../x", "bytes": 1, "sha256": "", "rows": 1}]},
        {"files": [{"path": "chunks/x", "bytes": -1, "sha256": "", "rows": 1}]},
        {"files": [{"path": "chunks/x", "bytes": 1, "sha256": "", "rows": 1 << 70}]},
        {"result": {"a": nested(200)}},
        {"seconds": 10**400},
    ):
        raw = json.dumps(line | change).encode()
        path.write_bytes(b"\n".join([raw, b"[" * 5000, b"\xff", b'{"name":1,"name":1}']))
        assert StageRecords(Folder(str(db)), "chunk").load() == {}
    path.unlink()
    os.mkfifo(path)
    folder = db / "state" / "records" / "chunk"
    (folder / "folder.json").mkdir(parents=True)
    (folder / "good.json").write_text(json.dumps(line))
    assert StageRecords(Folder(str(db)), "chunk").load() == {good.name: good}
