"""A database on a server that speaks Google Cloud Storage's language: one writer, and the local bytes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

import retro_db
from retro_db.errors import InputError, OwnershipLostError
from retro_db.store.folder import Folder
from retro_db.store.ownership import owning
from retro_db.verify import verify_database
from retro_db_pipelines.commands.cli import run
from runners.go_programs import built
from support.projects import Project, make_project, remove_documents
from support.stores import free_port, running, shorten_leases
from support.texts import python_sources

MODULE, VERSION = "github.com/fsouza/fake-gcs-server", "1.52.2"
BUCKET = "databases"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The server, with an empty bucket; its address is in the environment."""
    port = str(free_port())
    program = str(built(MODULE, VERSION))
    command = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", port]
    command += ["-backend", "memory", "-public-host", f"127.0.0.1:{port}"]
    log = tmp_path_factory.mktemp("server") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        patch.setenv("FSSPEC_GS", '{"token": "anon"}')
        # It would ask a service that the server does not have.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        with running(command, log, lambda: fsspec.filesystem("gs").mkdir(BUCKET)):
            yield


@pytest.fixture
def store(server: None, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder of its own, whose leases are over soon."""
    shorten_leases(monkeypatch)
    return Folder(f"gs://{BUCKET}/{uuid.uuid4().hex}/db")


def test_one_build_at_a_time(store: Folder) -> None:
    with owning(store) as first:
        with pytest.raises(InputError, match="another build is at work"), owning(store):
            pass
        first.write("a", b"first")
    with owning(store) as second:
        with pytest.raises(OwnershipLostError):
            first.write("a", b"late")
        second.write("a", b"second")
    assert store.read("a") == b"second"


@pytest.mark.parametrize("before", [None, b"an earlier one"])
def test_a_manifest_is_replaced_only_if_it_is_the_one_that_was_seen(
    store: Folder, before: bytes | None
) -> None:
    if before:
        store.write("manifest.json", before)
    with owning(store) as owned:
        owned.watch("manifest.json")
        owned.write("manifest.json", b"1")
        owned.remove("manifest.json")
        owned.write("manifest.json", b"2")
        store.write("manifest.json", b"a rival's")
        with pytest.raises(OwnershipLostError, match="another build has written or removed it"):
            owned.write("manifest.json", b"3")
    assert store.read("manifest.json") == b"a rival's"


def test_a_build_equals_the_local_one(
    store: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for the log
    texts = [text[:2000] for text in python_sources(6)]
    local = make_project(tmp_path / "local", texts, chunk={"part_rows": 20})
    assert local.build() == 0
    remote = Project(local.folder, texts, local.settings | {"output": store.url})
    assert run(["build", str(remote.config)]) == 0
    for path, content in local.files().items():
        assert store.read(path) == content, path
    assert verify_database(store.url).problems == []
    documents = tmp_path / "documents.txt"
    documents.write_text("doc-1\n")
    assert run(["remove", store.url, "--documents", str(documents)]) == 0
    assert remove_documents(local.output, ["doc-1"]) == 0
    assert store.read("manifest.json") == (local.output / "manifest.json").read_bytes()
    assert retro_db.open(store.url).manifest.generation == 2
