"""A database on an object store: a server on this machine that speaks S3."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import s3fs
import torch

import retro_db
from retro_db import RetroDataset
from retro_db.corpus.listing import Listing
from retro_db.errors import DamagedFileError, InputError, OwnershipLostError
from retro_db.manifest.sealing import read_manifest
from retro_db.reader.database import Database
from retro_db.store import copied, leases
from retro_db.store.fence import Fence
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.ownership import owning
from retro_db.store.records import StageRecords
from retro_db.verify import verify_database
from retro_db_pipelines.commands.cli import run
from support.processes import Command
from support.projects import Project, make_project
from support.stores import free_port, running, shorten_leases
from support.texts import python_sources

BUCKET = "databases"


MANY = 10_000
# Ten thousand objects are there from the start: to put them one by one takes a minute.
SERVE = f"""
import sys
from moto.s3.models import s3_backends
from moto.server import main
held = s3_backends["123456789012"]["aws"]
held.create_bucket("many", "us-east-1")
for number in range({MANY}):
    held.put_object("many", f"db/chunks/part-{{number:07d}}-0000.arrow", b"chunks")
main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Request:
    """As the server's log tells it."""

    method: str
    bucket: str
    key: str
    query: str


@dataclass
class Server:
    """A server with an empty bucket, which logs every request before it answers."""

    log: Path

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[Request]]:
        """The requests of the block, once it is over."""
        found: list[Request] = []
        before = self.log.stat().st_size
        yield found
        text = self.log.read_bytes()[before:].decode()
        for method, target in re.findall(r"(GET|HEAD|PUT|POST|DELETE) (/\S*) HTTP/", text):
            path, _, query = target.partition("?")
            bucket, _, key = unquote(path).lstrip("/").partition("/")
            found.append(Request(method, bucket, key, query))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server; its address and credentials are in the environment."""
    port = free_port()
    command = [sys.executable, "-c", SERVE, "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("server") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "anyone")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with running(command, log, lambda: urllib.request.urlopen(address, timeout=5).close()):
            # One that talked to an earlier server, in this process, would go on to do so.
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().mkdir(BUCKET)
            yield Server(log)


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder of its own, whose leases are over soon."""
    shorten_leases(monkeypatch)
    return Folder(f"s3://{BUCKET}/{uuid.uuid4().hex}/db")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A database on a local disk: some shards, a few of them in several parts."""
    folder = tmp_path_factory.mktemp("local")
    texts = python_sources(16)
    settings = {"shard_size": 3000, "part_rows": 10}
    project = make_project(folder, texts, chunk=settings, split={"validation": 0.2})
    write_files(folder / "corpus", texts[:12])
    write_files(folder / "later", texts[12:])
    project.settings["corpus"] = [{"name": "test", "paths": [str(folder / "corpus" / "*.txt")]}]
    assert project.build() == 0
    return project


def write_files(folder: Path, texts: list[str]) -> None:
    """A file of each text's beginning."""
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:02d}.txt").write_text(text[:1200], "utf-8")


def put(source: Path, url: str) -> None:
    """Copies a folder to the store."""
    s3fs.S3FileSystem().put(f"{source}/", f"{url}/", recursive=True)


def tables(requests: list[Request], *methods: str) -> list[str]:
    """Keys of files of a database's tables that were asked for, each as often as it was."""
    return [
        one.key
        for one in requests
        if one.method in methods and re.search(r"/part-\d+-\d+\.\w+$", one.key)
    ]


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
    monkeypatch.setattr(leases, "_renew", lambda *arguments: None)
    elsewhere = dataclasses.replace(leases.this_process(), machine="another", pid=1)
    monkeypatch.setattr(leases, "this_process", lambda: elsewhere)
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


class Overtaken:
    """A fence whose owner sleeps behind its look at the lease, while a rival writes."""

    def __init__(self, fence: Fence, rival: Folder, data: bytes | None) -> None:
        self.owner = fence.owner
        self._fence = fence
        self._rival = rival
        self._data = data

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        with self._fence.passing():
            if self._data is None:
                self._rival.remove("manifest.json")
            else:
                self._rival.write("manifest.json", self._data)
            yield

    def stands(self) -> bool:
        return self._fence.stands()


@pytest.mark.parametrize("before", [None, b"an earlier one"])
@pytest.mark.parametrize("rivals", [None, b"the rival's"])
def test_a_driver_that_slept_replaces_no_manifest(
    store: Folder, before: bytes | None, rivals: bytes | None
) -> None:
    if before:
        store.write("manifest.json", before)
    with owning(store) as owned:
        assert owned.fence is not None
        owned.watch("manifest.json")
        owned.fence = Overtaken(owned.fence, store, rivals)
        if before is None and rivals is None:
            owned.write("manifest.json", b"late")
            assert store.read("manifest.json") == b"late", "nobody has written"
            return
        with pytest.raises(OwnershipLostError, match="another build has written or removed it"):
            owned.write("manifest.json", b"late")
    assert store.exists("manifest.json") == (rivals is not None)
    if rivals:
        assert store.read("manifest.json") == rivals


def test_a_manifest_that_is_watched_is_written_as_often_as_its_owner_likes(store: Folder) -> None:
    store.write("manifest.json", b"1")
    with owning(store) as owned:
        owned.watch("manifest.json")
        owned.write("manifest.json", b"2")
        owned.write("manifest.json", b"3")
        owned.remove("manifest.json")
        owned.write("manifest.json", b"4")
    assert store.read("manifest.json") == b"4"


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


def test_a_build_equals_the_local_one(
    local: Project, store: Folder, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a corpus on the store, and killed while two workers embed."""
    monkeypatch.chdir(tmp_path)  # for the log
    corpus = store.url.removesuffix("db") + "corpus"
    put(local.folder / "corpus", corpus)
    remote = Project(tmp_path, local.texts, local.settings | {"output": store.url})
    remote.settings["corpus"] = [{"name": "test", "paths": [f"{corpus}/*.txt"]}]
    with Command("build", str(remote.config), "--workers", "2") as process:
        try:
            end = time.monotonic() + 120
            while len(store.list("state/records/embed")) < 2:
                assert process.poll() is None, "it has ended"
                assert time.monotonic() < end, "nothing was embedded"
                time.sleep(0.02)
        finally:
            process.kill()
    done = [file.path for stage in ("chunk", "embed") for file in committed(store, stage)]
    assert any(path.startswith("embeddings/") for path in done)
    with server.counting() as requests:
        assert remote.build() == 0
    key = store.locate().removeprefix(f"{BUCKET}/")
    written = {path.removeprefix(f"{key}/") for path in tables(requests, "PUT", "POST", "DELETE")}
    assert written, "something was left to do"
    assert not written & set(done), "what was committed is not done again"
    check_same(local, store)
    assert verify_database(store.url).problems == []
    with server.counting() as requests:
        assert remote.build() == 0
    assert tables(requests, "GET", "HEAD", "PUT", "POST", "DELETE") == [], "it is up to date"
    listed = retro_db.open(store.url).manifest.files
    store.remove(listed[0].path)
    with server.counting() as requests:
        assert remote.build() == 0
    assert tables(requests, "HEAD") == [], "what is there is known from listings"
    check_same(local, store)


def test_keys_are_read_once_at_home_and_once_for_visits(
    store: Folder, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server counts it: every slice of a partition's keys is asked for twice, and by itself."""
    monkeypatch.chdir(tmp_path)  # for the log
    settings = {"chunk": {"part_rows": 100}, "index": {"key": "IVF7,SQ8"}}
    project = make_project(tmp_path, python_sources(40), **settings)
    remote = Project(tmp_path, project.texts, project.settings | {"output": store.url})
    with server.counting() as requests:
        assert remote.build("--set", "neighbors.partitions=4") == 0
    routed = [request for request in requests if "/state/join/routed/" in request.key]
    spans = {request.key for request in routed if request.method == "PUT"}
    assert len(spans) > 3
    asked = Counter(request.key for request in routed if request.method == "GET")
    assert asked == dict.fromkeys(spans, 2 * 4)


def test_a_build_that_slept_beyond_its_lease_changes_nothing_more(
    local: Project, store: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rival = Project(tmp_path, local.texts, local.settings | {"output": store.url})
    config = str(rival.config)
    with Command("build", config, "--set", "neighbors.k=3") as sleeper:
        end = time.monotonic() + 120
        while not store.exists("state/records/chunk.jsonl"):
            assert sleeper.poll() is None, "it has ended"
            assert time.monotonic() < end, "nothing was cut"
            time.sleep(0.02)
        sleeper.send_signal(signal.SIGSTOP)
        assert run(["build", config]) == 0
        sleeper.send_signal(signal.SIGCONT)
        _, message = sleeper.communicate(timeout=120)
        assert sleeper.wait() == 3
    assert "another build has taken over" in message or "sign of its driver" in message
    assert message.count("\n") == 1
    check_same(local, store)
    assert verify_database(store.url).problems == []


def committed(store: Folder, stage: str) -> list[FileEntry]:
    """Files of the shards of a stage that are done."""
    return [file for record in StageRecords(store, stage).load().values() for file in record.files]


def check_same(local: Project, store: Folder) -> None:
    """The same files with the same bytes."""
    files = local.files()
    for name, data in files.items():
        assert store.read(name) == data, name
    listed = [entry.path for entry in read_manifest(store).files]
    kept = [name for name in files if name.endswith("manifest.json")]
    assert set(files) >= {*listed, *kept}


def test_a_database_is_updated_as_the_local_one(
    local: Project, store: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(local.output, store.url)
    shutil.copytree(local.output, tmp_path / "db")
    later = [{"name": "later", "paths": [str(local.folder / "later" / "*.txt")]}]
    settings = local.settings | {"corpus": later}
    here = Project(tmp_path, local.texts, settings | {"output": str(tmp_path / "db")})
    there = Project(tmp_path, local.texts, settings | {"output": store.url})
    (tmp_path / "list").write_text("07.txt\n")
    for one in (here, there):
        assert one.build("--append") == 0
        assert run(["remove", one.settings["output"], "--documents", str(tmp_path / "list")]) == 0
    check_same(here, store)
    assert retro_db.open(store.url).manifest.generation == 3
    assert verify_database(store.url).problems == []


def test_verify_finds_damage_behind_good_copies(
    local: Project, store: Folder, server: Server
) -> None:
    put(local.output, store.url)
    database = retro_db.open(store.url)
    assert len(database.chunks[:]) == len(database)
    path = database.manifest.tables.chunks[0].path
    content = bytearray(store.read(path))
    content[-20] ^= 1
    store.write(path, bytes(content))
    [problem] = verify_database(store.url).problems
    assert problem == f"{path}: its bytes are not those that were written"
    assert run(["verify", store.url]) == 1


def test_a_corpus_is_listed_as_it_is_now(store: Folder) -> None:
    store.write("a.txt", b"first")
    paths = [f"{store.url}/*.txt"]
    assert [file.name for file in Listing("db").files(paths, "corpus")] == ["a.txt"]
    command = "import s3fs, sys; s3fs.S3FileSystem().pipe(sys.argv[1], b'second')"
    subprocess.run([sys.executable, "-c", command, f"{store.locate()}/b.txt"], check=True)
    assert [file.name for file in Listing("db").files(paths, "corpus")] == ["a.txt", "b.txt"]


def test_ten_thousand_objects_are_listed_by_the_page(server: Server) -> None:
    folder = Folder("s3://many/db")
    names = [f"part-{number:07d}-0000.arrow" for number in range(MANY)]
    entries = [FileEntry(f"chunks/{name}", 6, "") for name in names]
    with server.counting() as requests:
        assert folder.list("chunks") == names
    assert len(requests) == MANY / 1000
    entries[7] = FileEntry(entries[7].path, 7, "")
    entries.append(FileEntry("chunks/part-9999999-0000.arrow", 6, ""))
    with server.counting() as requests:
        assert folder.missing(entries) == {entries[7].path, entries[-1].path}
    assert len(requests) == MANY / 1000
    assert {one.method for one in requests} == {"GET"}


def arrow_files(database: Database) -> list[FileEntry]:
    """What its columns are in."""
    tables = database.tables
    return [*tables.chunks, *tables.neighbors, *tables.embeddings]


def rows(database: Database) -> list[np.ndarray]:
    """Everything that a database says of its chunks, in a scattered order."""
    ids = np.random.default_rng(0).permutation(len(database))
    return [
        database.chunks[ids],
        database.chunks.lengths(ids),
        database.chunks.documents(ids),
        database.chunks.values(ids),
        database.neighbors[ids],
        database.neighbors.distances(ids),
        database.embeddings[ids],
    ]


def check_rows(database: Database, local: Project) -> None:
    """The same as of the local database."""
    for found, expected in zip(rows(database), rows(local.open()), strict=True):
        assert np.array_equal(found, expected)
    assert database.documents.equals(local.open().documents)


def copies(cache: Path) -> dict[str, int]:
    """Bytes of every copy by name, those on their way included; claims are sparse."""
    found = {}
    for path in cache.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_size
    return {name: size for name, size in found.items() if size and "-get-" not in name}


def largest(database: Database) -> int:
    """Bytes of the largest file of its tables."""
    return max(entry.bytes for entry in (*arrow_files(database), *database.tables.documents))


@pytest.fixture
def remote(local: Project, store: Folder) -> str:
    """The URL of the same database on the store."""
    put(local.output, store.url)
    return store.url


def test_rows_are_the_local_ones_with_a_cold_and_a_warm_cache(
    local: Project, remote: str, server: Server, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with server.counting() as requests:
        database = retro_db.open(remote, cache=cache)
        assert not cache.exists(), "nothing is fetched before it is read"
        check_rows(database, local)
    fetched = tables(requests, "GET")
    assert len(fetched) == len(set(fetched)), "each file once"
    assert len(fetched) == len([*arrow_files(database), *database.tables.documents])
    assert sum(copies(cache).values()) == sum(
        entry.bytes for entry in (*arrow_files(database), *database.tables.documents)
    )
    with server.counting() as requests:
        check_rows(pickle.loads(pickle.dumps(database)), local)  # noqa: S301 - our own
        check_rows(retro_db.open(remote, cache=cache), local)
    assert tables(requests, "GET", "HEAD") == []
    assert {one.key.rsplit("/")[-1] for one in requests if one.key} == {"manifest.json"}


@pytest.mark.parametrize(("context", "roomy"), [("fork", True), ("spawn", True), ("fork", False)])
def test_workers_share_a_cache(
    local: Project, remote: str, server: Server, tmp_path: Path, context: str, roomy: bool
) -> None:
    """After this process has used the connections, and opened some files, that workers cannot go on with."""
    cache, size = tmp_path / "cache", largest(local.open())
    database = retro_db.open(remote, cache=cache, cache_bytes=None if roomy else size)
    dataset = RetroDataset(database, seq_len=128, k=2)
    expected = RetroDataset(local.open(), seq_len=128, k=2)
    assert np.array_equal(dataset[0]["tokens"], expected[0]["tokens"])
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, num_workers=2, multiprocessing_context=context
    )
    place = 0
    with server.counting() as requests:
        for batch in loader:
            for row in range(len(batch["tokens"])):
                for name, value in expected[place].items():
                    assert np.array_equal(batch[name][row].numpy(), value), name
                place += 1
            assert roomy or sum(copies(cache).values()) <= size
    assert place == len(expected)
    most = max(Counter(tables(requests, "GET")).values())
    assert most == 1 if roomy else most > 1


def test_a_cache_for_a_single_file_serves_all(local: Project, remote: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    size = largest(local.open())
    database = retro_db.open(remote, cache=cache, cache_bytes=size)
    check_rows(database, local)
    assert 0 < sum(copies(cache).values()) <= size
    rows(database)
    mapped = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if str(cache) in line
    ]
    assert not [line for line in mapped if line.endswith("(deleted)")], "their bytes are free, too"
    small = retro_db.open(remote, cache=tmp_path / "small", cache_bytes=size - 1)
    with pytest.raises(InputError, match=rf"cache_bytes: .* has {size:,} bytes .* give it more"):
        check_rows(small, local)
    assert sum(copies(tmp_path / "small").values()) < size
    with pytest.raises(InputError, match="cache_bytes: 'much' is not a size"):
        retro_db.open(remote, cache_bytes="much")


def test_the_least_recently_used_copy_leaves(
    local: Project,
    remote: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copied, "_LOOK_SECONDS", 0.0)
    entries = local.open().tables.chunks
    firsts = np.cumsum([0, *(entry.rows for entry in entries)])[:3]
    sizes = [entry.bytes for entry in entries[:3]]
    other = tmp_path / "other-file"
    other.write_bytes(b"of somebody else")
    limit = sum(sizes) - 1
    database = retro_db.open(remote, cache=tmp_path, cache_bytes=f"{limit} B")
    for number in (0, 1, 0, 2):
        assert len(database.chunks[[firsts[number]]])
    with server.counting() as requests:
        assert len(database.chunks[[firsts[0], firsts[2]]])
    assert tables(requests, "GET") == []
    with server.counting() as requests:
        assert len(database.chunks[[firsts[1]]])
    assert [key.rsplit("/")[-1] for key in tables(requests, "GET")] == [
        entries[1].path.rsplit("/")[-1]
    ]
    assert other.read_bytes() == b"of somebody else"


def test_a_copy_with_other_bytes_is_fetched_again(
    local: Project, remote: str, server: Server, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    database = retro_db.open(remote, cache=cache)
    check_rows(database, local)
    for name, size in copies(cache).items():
        with (cache / name).open("r+b") as file:
            file.seek(size // 2)
            file.write(b"damaged!")
    check_rows(retro_db.open(remote, cache=cache), local)
    for name in copies(cache):
        os.truncate(cache / name, 100)
    with server.counting() as requests:
        check_rows(retro_db.open(remote, cache=cache), local)
    assert Counter(tables(requests, "GET")).most_common(1)[0][1] == 1
    for name in copies(cache):
        os.utime(cache / name)
    with server.counting() as requests:
        check_rows(retro_db.open(remote, cache=cache), local)
    assert tables(requests, "GET") == [], "those that were only touched are still right"


def test_a_file_with_other_bytes_is_refused_by_name(
    remote: str, store: Folder, tmp_path: Path
) -> None:
    database = retro_db.open(remote, cache=tmp_path / "cache")
    path = database.tables.chunks[0].path
    content = store.read(path)
    store.write(path, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match=f"{path}: its bytes are not those"):
        database.chunks[0]
    store.write(path, content * 2)
    with pytest.raises(DamagedFileError, match=f"{path} has {2 * len(content)} bytes"):
        database.chunks[0]
    store.remove(path)
    with pytest.raises(DamagedFileError, match=f"{path} is missing"):
        database.chunks[0]
    assert copies(tmp_path / "cache") == {}
    store.write(path, content)
    assert len(database.chunks[0]) == 64


# Gets half of a file and then nothing more.
STALLED = """
import fsspec, s3fs, sys, time
import retro_db

class Stalled(s3fs.S3FileSystem):
    def get_file(self, source, target, **options):
        with open(target, "wb") as file:
            file.write(self.cat_file(source)[:500])
        print("half", flush=True)
        time.sleep(600)

fsspec.register_implementation("s3", Stalled, clobber=True)
retro_db.open(sys.argv[1], cache=sys.argv[2]).chunks[int(sys.argv[3])]
"""


def test_a_kill_while_fetching_leaves_nothing(local: Project, remote: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    last = len(local.open()) - 1
    for row in ("0", str(last)):
        command = [sys.executable, "-c", STALLED, remote, str(cache), row]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"half\n"
            process.kill()
    assert [name for name in copies(cache) if "tmp" in name], "half of a file is there"
    database = retro_db.open(remote, cache=cache, cache_bytes=largest(local.open()))
    assert np.array_equal(database.chunks[0], local.open().chunks[0])
    [copy] = copies(cache).items()
    assert copy[1] == database.tables.chunks[0].bytes
    check_rows(database, local)


def test_search_by_text_on_the_store(
    local: Project, remote: str, server: Server, tmp_path: Path
) -> None:
    texts = ["read a file", "sort a list"]
    cache = tmp_path / "cache"
    expected = retro_db.Retriever(local.open()).search(texts, k=3)
    for _ in range(2):
        with server.counting() as requests:
            found = retro_db.Retriever(retro_db.open(remote, cache=cache)).search(texts, k=3)
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one, other)
    assert not [one for one in requests if "faissindex" in one.key or tables([one], "GET", "HEAD")]
