"""Manifests of somebody who means harm: refused in one line, whatever they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retro_db
from retro_db.errors import ManifestError, NotADatabaseError
from retro_db.store.entries import check_entry
from retro_db.store.folder import FileEntry
from retro_db.store.serialize import DecodeError, parse_json
from support.hostile import Manifest, manifest_of, seal
from support.mutations import nested


def put(*path: Any) -> Callable[[Manifest], None]:
    """Sets the value at a path, which is its last item."""

    def change(manifest: Manifest) -> None:
        *parents, last, value = path
        held: Any = manifest
        for key in parents:
            held = held[key]
        held[last] = value

    return change


def twice(manifest: Manifest) -> None:
    manifest["tokenizer_files"].append(manifest["tokenizer_files"][0])


def one_file_less(manifest: Manifest) -> None:
    manifest["tables"]["neighbors"] = []


def other_rows(manifest: Manifest) -> None:
    manifest["tables"]["embeddings"][0]["rows"] -= 1


def missing_rows(manifest: Manifest) -> None:
    del manifest["tables"]["chunks"][0]["rows"]


def more_rows_than_bytes(manifest: Manifest) -> None:
    for table in ("chunks", "embeddings", "neighbors"):
        manifest["tables"][table][0]["rows"] = 1 << 40
    manifest["counts"]["chunks"] = 1 << 40


def fine_of_nothing(manifest: Manifest) -> None:
    manifest["tables"]["fine"] = [{**manifest["tables"]["chunks"][0], "path": "fine/a"}]


def two_of_a_name(manifest: Manifest) -> None:
    again = json.loads(json.dumps(manifest["queries"][0]).replace("queries/", "generations/2/"))
    manifest["queries"].append(again)


CHUNKS = ("tables", "chunks", 0)
VIOLATIONS: dict[str, tuple[Callable[[Manifest], None], str]] = {
    **{
        f"path {path!r}": (put(*CHUNKS, "path", path), r"tables\.chunks\[0\]\.path")
        for path in [
            *(
                "",
                ".",
                "..",
                "/etc/passwd",
                "a//b",
                "a/./b",
                "a/../../b",
                "a/..",
                "a/",
                "a\\b",
                "a\0b",
            ),
            *(
                "a\nb",
                "a\x7fb",
                "\ud800",
                ".hidden",
                "%2e%2e/a",
                "a/" * 600,
                "a" * 300,
                "~/a",
                "a:b",
            ),
            *("state/x", "report/x", "queries/asked/state/x", "generations/0002/report/x"),
            *("manifest.json", "generations/0001/manifest.json", "state", "report"),
        ]
    },
    "twice": (twice, r"tokenizer_files\[2\]\.path.*twice"),
    "bytes": (put(*CHUNKS, "bytes", -1), r"tables\.chunks\[0\]\.bytes"),
    "many bytes": (put(*CHUNKS, "bytes", 1 << 62), r"tables\.chunks\[0\]\.bytes"),
    "too many bytes": (put(*CHUNKS, "bytes", 1 << 63), r"tables\.chunks\[0\]\.bytes"),
    "rows": (put(*CHUNKS, "rows", -1), r"tables\.chunks\[0\]\.rows"),
    "no rows": (put(*CHUNKS, "rows", None), r"tables\.chunks\[0\]\.rows"),
    "sha256": (put(*CHUNKS, "sha256", "A" * 64), r"tables\.chunks\[0\]\.sha256"),
    "index sha256": (put("index_files", 0, "sha256", ""), r"index_files\[0\]\.sha256"),
    "token type": (put("chunk", "token_type", "uint64"), r"chunk\.token_type"),
    "pad id": (put("chunk", "pad_id", 65_536), r"chunk\.pad_id"),
    "no tokens": (put("chunk", "tokens", 0), r"chunk\.tokens"),
    "tokens": (put("chunk", "tokens", 65_536), r"chunk\.tokens"),
    "dimension": (put("encoder", "dimension", 1 << 20), r"encoder\.dimension"),
    "no dimension": (put("encoder", "dimension", 0), r"encoder\.dimension"),
    "k": (put("neighbors", "k", 1 << 20), r"neighbors\.k"),
    "no k": (put("neighbors", "k", 0), r"neighbors\.k"),
    "partitions": (put("index", "partitions", 7), r"index\.partitions"),
    "negative partitions": (put("index", "partitions", -1), r"index\.partitions"),
    "no index": (put("index_files", []), r"index\.partitions"),
    "one file less": (one_file_less, r"tables\.neighbors"),
    "other rows": (other_rows, r"tables\.embeddings"),
    "missing rows": (missing_rows, r"tables\.chunks\[0\]\.rows: missing"),
    "more rows than bytes": (more_rows_than_bytes, r"tables\.chunks\[0\]\.rows"),
    "fine of nothing": (fine_of_nothing, r"tables\.fine"),
    "chunks": (put("counts", "chunks", 1), r"counts\.chunks"),
    "documents": (put("counts", "documents", 1 << 61), r"counts\.documents"),
    "query documents": (put("queries", 0, "source", "documents", 9), r"queries\[0\]\..*documents"),
    "settings": (put("config", "neighbors", []), r"config\.neighbors"),
    "negative": (put("counts", "tokens", -5), r"counts\.tokens"),
    "query chunks": (put("queries", 0, "source", "chunks", 1), r"queries\[0\]\..*chunks"),
    "query name": (put("queries", 0, "source", "name", "../x"), r"queries\[0\]\.source\.name"),
    "query names": (two_of_a_name, r"queries: two"),
    "generation": (put("generation", 0), "generation"),
    "many generations": (put("generation", 1 << 40), "generation"),
    "deep settings": (put("config", "x", nested(900)), r"config\.x: nested"),
    "deep counts": (put("counts", nested(900)), "counts"),
    "version": (put("version", nested(900)), "version"),
    "weight": (put("sources", 0, "weight", 10**400), r"sources\[0\]\.weight"),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_manifest_must_agree_with_itself(db: Path, violation: str) -> None:
    change, field = VIOLATIONS[violation]
    manifest = manifest_of(db)
    change(manifest)
    seal(db, manifest)
    with pytest.raises(ManifestError, match=f"manifest.json: {field}.*restore it"):
        retro_db.open(str(db))


def test_what_is_no_plain_json_is_refused(db: Path) -> None:
    text = (db / "manifest.json").read_text()
    for raw in (
        b"",
        b"[" * 100_000_000,
        b'{"a":' * 1_000_000,
        b"9" * 100_000,
        text.replace('"generation": 1', '"generation": ' + "9" * 5000).encode(),
        text.replace('"weight": 1.0', '"weight": NaN').encode(),
        text.replace('"weight": 1.0', '"weight": 1e999').encode(),
        text.replace('"generation": 1', '"generation": 1, "generation": 1').encode(),
        text.encode("utf-16"),
        text.encode() + b"\xff",
        text.encode() * 2,
    ):
        (db / "manifest.json").write_bytes(raw)
        with pytest.raises(ManifestError, match=r"not valid JSON.*restore it"):
            retro_db.open(str(db))


def test_a_manifest_is_a_file_of_a_sensible_size(db: Path) -> None:
    os.truncate(db / "manifest.json", 2_000_000_000)
    with pytest.raises(ManifestError, match=r"2000000000 bytes.*restore it"):
        retro_db.open(str(db))
    (db / "manifest.json").unlink()
    os.mkfifo(db / "manifest.json")
    with pytest.raises(NotADatabaseError):
        retro_db.open(str(db))
    (db / "manifest.json").unlink()
    (db / "manifest.json").mkdir()
    with pytest.raises(NotADatabaseError):
        retro_db.open(str(db))


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_older_versions_are_read(db: Path, version: str) -> None:
    manifest = manifest_of(db) | {"version": version}
    del manifest["counts"]["removed_documents"], manifest["counts"]["removed_chunks"]
    for table in ("removed", "renumbered"):
        del manifest["tables"][table], manifest["queries"][0]["tables"][table]
    if version < "1.2":
        del manifest["queries"], manifest["tables"]["fine"]
        del manifest["index"]["ef_search"], manifest["index"]["fine_size"]
    if version < "1.1":
        del manifest["tables"]["dropped"]
        del manifest["sources"][0]["dropped_by"], manifest["sources"][0]["rejected_by"]
    seal(db, manifest)
    database = retro_db.open(str(db))
    assert database.manifest.version == version
    assert len(database.chunks[:]) == len(database)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(["..", ".", "", "a", "chunks", "b.arrow", "/", "\\", "~"])).map(
            "/".join
        ),
    )
)
def test_paths_that_are_taken_stay_below(path: str) -> None:
    try:
        check_entry(FileEntry(path, 1, ""), "x")
    except DecodeError:
        return
    assert os.path.normpath(path) == path
    assert os.path.normpath(f"/db/{path}").startswith("/db/")
    assert path.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(), st.text().map(str.encode), st.integers().map(lambda n: b"%d" % n)))
def test_json_is_parsed_or_refused(raw: bytes) -> None:
    try:
        found = parse_json(raw)
    except DecodeError:
        return
    assert found == json.loads(raw)
