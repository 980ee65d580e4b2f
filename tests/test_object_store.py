"""A database on an object store: a server on this machine that speaks S3."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
from conftest import Project, make_project, python_sources

import retro_db
from retro_db.errors import InputError, OwnershipLostError
from retro_db.store import ownership
from retro_db.store.folder import Folder
from retro_db.store.ownership import owning
from retro_db.verify import verify_database

BUCKET = "databases"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of the server, with an empty bucket; credentials are in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "anyone")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                wait_for(address)
                s3fs.S3FileSystem().mkdir(BUCKET)
                yield address
            finally:
                process.send_signal(signal.SIGKILL)


def wait_for(address: str) -> None:
    """Until the server answers."""
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310 - http, as given above
                return
        except OSError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder of its own, whose leases are over soon."""
    monkeypatch.setattr(ownership, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(ownership, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(ownership, "_LOOK_SECONDS", 0.2)
    return Folder(f"s3://{BUCKET}/{uuid.uuid4().hex}/db")


def test_one_build_at_a_time(store: Folder) -> None:
    with owning(store) as first:
        with pytest.raises(InputError, match="another build is at work"), owning(store):
            pass
        first.write("a", b"first")
    with owning(store) as second:
        with pytest.raises(OwnershipLostError):
            first.write("a", b"late")
        with pytest.raises(OwnershipLostError):
            first.remove("a")
        second.write("a", b"second")
    assert store.read("a") == b"second"
    assert store.list("state/leases") == ["00000002.json"]


def test_a_silent_lease_is_taken_over(store: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_renew", lambda *arguments: None)
    elsewhere = dataclasses.replace(ownership._myself(), machine="another", pid=1)
    monkeypatch.setattr(ownership, "_myself", lambda: elsewhere)
    with owning(store) as silent:
        assert silent.fence is not None
        assert silent.fence.stands()
        start = time.monotonic()
        with owning(store) as now:
            assert time.monotonic() - start > 3, "a rival waits three times as long as workers do"
            with pytest.raises(OwnershipLostError):
                silent.write("a", b"late")
            assert not silent.fence.stands()
            now.write("a", b"now")
    assert store.read("a") == b"now"


def test_of_two_that_create_one_wins(store: Folder) -> None:
    store.create("a", b"first")
    with pytest.raises(FileExistsError):
        store.create("a", b"second")
    assert store.read("a") == b"first"


def fail_half_way(store: Folder, name: str) -> None:
    with store.writing(name) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError


def test_a_write_that_fails_leaves_what_was_there(store: Folder) -> None:
    store.write("a", b"whole")
    for name in ("a", "b"):
        with pytest.raises(ZeroDivisionError):
            fail_half_way(store, name)
    assert store.sizes() == {"a": 5}


def test_uploads_that_were_never_completed_are_swept(store: Folder) -> None:
    fs = s3fs.S3FileSystem()
    path = store.locate("chunks/part").removeprefix(f"{BUCKET}/")
    for key in (path, "others/part"):
        fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)
    with owning(store) as owned:
        owned.sweep()
    left = [upload["Key"] for upload in fs.list_multipart_uploads(BUCKET)]
    assert path not in left
    assert "others/part" in left, "of nobody's business"


def test_a_build_equals_the_local_one(store: Folder, tmp_path: Path, monkeypatch: Any) -> None:
    local = make_project(tmp_path / "local", python_sources(12), chunk={"part_rows": 50})
    assert local.build() == 0
    remote = Project(local.folder, local.texts, local.settings | {"output": store.url})
    monkeypatch.chdir(tmp_path)  # for the log
    assert remote.build() == 0
    files = local.files()
    for name, data in files.items():
        assert store.read(name) == data, name
    listed = retro_db.open(store.url).manifest.files
    assert sorted(files) == sorted([*(entry.path for entry in listed), "manifest.json"])
    assert verify_database(store.url).problems == []
    store.remove(listed[0].path)
    assert remote.build() == 0
    assert store.read(listed[0].path) == files[listed[0].path]
