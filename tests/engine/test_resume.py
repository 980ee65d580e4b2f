"""What a build does again and what it keeps, who may write, and in which order."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import retro_db
from retro_db.errors import DatabaseError, InputError, OwnershipLostError
from retro_db.store.fence import Owner
from retro_db.store.folder import Folder, describe
from retro_db.store.local_lock import FENCE, LOCK, LocalFence
from retro_db.store.ownership import owning
from retro_db.store.records import StageRecords
from retro_db.verify import verify_database
from retro_db_pipelines.builds import folders
from retro_db_pipelines.commands.demo import encoder_folder
from support.disks import failing_disk_at
from support.processes import building, children, is_running
from support.projects import Project, make_project, remove_documents
from support.texts import python_sources

STAGES = (
    *("tokenizer", "chunk", "embed", "draw", "train"),
    *("encode", "assemble", "sample", "truth", "tune"),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two shards, built."""
    folder = tmp_path_factory.mktemp("built")
    project = make_project(folder, [], chunk={"shard_size": 4000})
    (folder / "corpus").mkdir()
    for number, text in enumerate(python_sources(2)):
        (folder / "corpus" / f"{number}.txt").write_text(text, "utf-8")
    project.settings["corpus"] = [{"name": "test", "paths": [str(folder / "corpus" / "*.txt")]}]
    tokenizer = project.settings["tokenizer"]
    assert project.build() == 0
    # With a tokenizer of its own, no stage is redone because another was trained.
    shutil.copytree(project.output / "tokenizer", folder / "tokenizer")
    project.settings["tokenizer"] = {"path": str(folder / "tokenizer")}
    assert tokenizer != project.settings["tokenizer"]
    shutil.rmtree(project.output)
    assert project.build() == 0
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of it, with a corpus of its own and all times as they were."""
    shutil.copytree(built.folder, tmp_path / "copy", dirs_exist_ok=True)
    settings = json.loads(json.dumps(built.settings).replace(str(built.folder), f"{tmp_path}/copy"))
    copied = Project(tmp_path / "copy", built.texts, settings)
    assert copied.build() == 0, "from here on, the files' places and times are known"
    return copied


def stages_run(shown: str) -> list[str]:
    """The stages that a build worked on, in order."""
    words = [line.split()[0] for line in shown.splitlines() if line and not line[0].isspace()]
    return [word for word in words if word in (*STAGES, "inputs", "neighbors")]


def rebuilt(project: Project, capsys: Any, *arguments: str) -> list[str]:
    capsys.readouterr()
    assert project.build(*arguments) == 0
    return stages_run(capsys.readouterr().out)


def test_a_corpus_that_moved_or_has_other_times_is_compared_and_kept(
    project: Project, capsys: Any
) -> None:
    before = project.files()
    os.utime(project.folder / "corpus" / "0.txt", (1, 1))
    assert rebuilt(project, capsys) == ["inputs"]
    assert rebuilt(project, capsys) == [], "the new times are known now"
    (project.folder / "corpus").rename(project.folder / "moved")
    project.settings["corpus"][0]["paths"] = [str(project.folder / "moved" / "*.txt")]
    assert rebuilt(project, capsys) == ["inputs"]
    assert project.files() == before


def test_another_content_of_the_same_size_is_read_again(project: Project, capsys: Any) -> None:
    file = project.folder / "corpus" / "1.txt"
    file.write_text(file.read_text("utf-8").swapcase(), "utf-8")
    chunks = sorted((project.output / "chunks").iterdir())
    before = [chunk.stat().st_mtime_ns for chunk in chunks]
    ran = rebuilt(project, capsys)
    assert ran[:3] == ["inputs", "chunk", "embed"]
    after = [chunk.stat().st_mtime_ns for chunk in chunks]
    assert before[0] == after[0], "the other shard is kept"
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("setting", "stage", "kept"),
    [
        ("neighbors.drop_duplicates=true", "neighbors", STAGES),
        ("index.key=IVF1,SQ8", "train", ("tokenizer", "chunk", "embed")),
        ("encoder.max_length=40", "embed", ("tokenizer", "chunk")),
        ("chunk.tokens=32", "chunk", ("tokenizer",)),
    ],
)
def test_a_dry_run_tells_what_a_build_then_does(
    project: Project, capsys: Any, setting: str, stage: str, kept: tuple[str, ...]
) -> None:
    def everything() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in project.output.rglob("*")}

    before = everything()
    capsys.readouterr()
    assert project.build("--dry-run", "--set", setting) == 0
    shown = capsys.readouterr().out
    assert everything() == before, "nothing is written"
    [line] = [line for line in shown.splitlines() if line.startswith(f"{stage} ")]
    name = setting.split("=")[0]
    assert "changed: " in line
    assert name in line or name.split(".")[0] in line
    assert f"dry run    {stage}" in shown
    ran = rebuilt(project, capsys, "--set", setting, "--overwrite")
    assert ran[0] == stage
    assert not set(ran) & set(kept)


def test_a_dry_run_of_nothing_and_of_everything(project: Project, capsys: Any) -> None:
    capsys.readouterr()
    assert project.build("--dry-run") == 0
    assert "dry run    nothing to do" in capsys.readouterr().out
    os.utime(project.folder / "corpus" / "0.txt", (1, 1))
    assert project.build("--dry-run") == 0
    assert "1 moved or touched" in capsys.readouterr().out
    shutil.rmtree(project.output)
    assert project.build("--dry-run") == 0
    assert "1 not done yet" in capsys.readouterr().out
    assert not project.output.exists()


def test_a_second_build_is_refused_until_the_first_is_dead(tmp_path: Path, capsys: Any) -> None:
    project = make_project(tmp_path, python_sources(30), encoder={"model": str(encoder_folder())})
    with building(project, "embed") as first:
        assert project.build() == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "another build is at work" in message
        assert f"process {first.pid} on " in message
        first.kill()
        first.wait()
        assert project.build() == 0
    assert verify_database(str(project.output)).problems == []


def test_no_worker_outlives_its_driver(tmp_path: Path) -> None:
    encoder = {"model": str(encoder_folder())}
    project = make_project(
        tmp_path, python_sources(60), chunk={"shard_size": 40_000}, encoder=encoder
    )
    with building(project, "embed", "--workers", "2") as driver:
        workers = children(driver.pid)
        assert len(workers) >= 2
        driver.kill()
        driver.wait()
        end = time.monotonic() + 10
        while any(is_running(worker) for worker in workers):
            assert time.monotonic() < end, "a worker lived on for ten seconds"
            time.sleep(0.1)


@contextlib.contextmanager
def holding(folder: Path, forks: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A process that owns a folder until it is killed, and perhaps has a child of the same memory."""
    holder = f"""
import os, time
from retro_db.store.folder import Folder
from retro_db.store.ownership import owning
with owning(Folder({str(folder)!r})):
    if {forks} and os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_forked_child_holds_no_lock(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "db"))
    with holding(tmp_path / "db", forks=True) as process:
        forked = children(process.pid)
        try:
            with pytest.raises(InputError, match="another build"), owning(folder):
                pass
            process.kill()
            process.wait()
            with owning(folder):
                assert any(is_running(child) for child in forked)
        finally:
            for child in forked:
                os.kill(child, signal.SIGKILL)


def test_what_an_earlier_owner_still_writes_takes_no_name(tmp_path: Path) -> None:
    with owning(Folder(str(tmp_path / "db"))) as earlier:
        earlier.write("a", b"earlier")
    with owning(Folder(str(tmp_path / "db"))) as now:
        with pytest.raises(OwnershipLostError):
            earlier.write("a", b"late")
        with pytest.raises(OwnershipLostError):
            earlier.remove("a")
        assert now.read("a") == b"earlier"
        now.write("a", b"now")
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["a", "state"]


def test_a_new_owner_waits_for_a_write_under_way(tmp_path: Path) -> None:
    with owning(Folder(str(tmp_path / "db"))) as earlier:
        assert earlier.fence is not None
        fence = earlier.fence
    taken = threading.Event()

    def take_over() -> None:
        with owning(Folder(str(tmp_path / "db"))):
            taken.set()

    with fence.passing():
        rival = threading.Thread(target=take_over)
        rival.start()
        assert not taken.wait(0.5)
    rival.join(10)
    assert taken.is_set()


def test_a_worker_in_a_container_knows_whether_its_driver_lives(tmp_path: Path) -> None:
    """The driver's number means nothing there, or another process; the host's name may be the same."""
    with holding(tmp_path / "db") as process:
        driver = json.loads((tmp_path / "db" / LOCK).read_bytes())
        owner = Owner(**driver | {"machine": "another", "pid": 1})
        fence = LocalFence(str(tmp_path / "db" / FENCE), str(tmp_path / "db" / LOCK), owner)
        assert fence.stands()
        assert not owner.is_gone
        process.kill()
        process.wait()
        assert not fence.stands()
        assert Owner(**driver).is_gone


def test_stopped_behind_a_manifest_another_build_is_not_taken_for_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.open().manifest.sha256
    with failing_disk_at("state/finished", monkeypatch):
        assert project.build("--set", "neighbors.k=7") == 3
    assert project.open().manifest.neighbors.k == 7
    assert project.build() == 0
    assert project.open().manifest.sha256 == before


def test_a_database_stays_until_its_input_is_known_to_have_changed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (project.folder / "corpus").iterdir():
        os.utime(file, (1, 1))
    with failing_disk_at("records/inputs.jsonl", monkeypatch):
        assert project.build() == 3
    assert len(project.open().chunks)


def test_a_removal_meanwhile_is_not_undone(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    name = project.open().documents["id"][0].as_py()
    real = folders.owned_folder

    def later(folder: Folder) -> Any:
        assert remove_documents(project.output, [name]) == 0
        return real(folder)

    monkeypatch.setattr(folders, "owned_folder", later)
    assert project.build("--set", "neighbors.k=7") == 2
    assert "later generations" in capsys.readouterr().err
    assert len(project.open().removed) == 1


def test_leftovers_of_dead_writers_are_swept(project: Project) -> None:
    left = [project.output / "chunks" / ".tmp-1-part", project.output / "state" / "x" / ".tmp-2"]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
    assert project.build("--set", "neighbors.drop_duplicates=true") == 0
    assert not any(file.exists() for file in left)


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing that was done to a folder: sync, replace or remove, with the content if it matters."""

    kind: str
    path: str
    data: bytes = b""


@contextlib.contextmanager
def watched(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """Notes, in order, every sync, rename and removal below a folder; all of them take place."""
    steps: list[Step] = []
    lock = threading.Lock()
    real: dict[str, Callable[..., Any]] = {
        "fsync": os.fsync,
        "replace": os.replace,
        "rmtree": shutil.rmtree,
        "remove": os.remove,
    }

    def note(step: Step) -> None:
        if step.path.startswith(f"{root}/") or step.path == str(root):
            with lock:
                steps.append(step)

    def fsync(descriptor: int) -> None:
        note(Step("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real["fsync"](descriptor)

    def replace(source: Any, target: Any) -> None:
        data = Path(source).read_bytes()
        note(Step("source", str(source)))
        note(Step("replace", str(target), data))
        real["replace"](source, target)

    def remove(path: Any, **more: Any) -> None:
        if more.get("dir_fd") is None:
            note(Step("remove", os.fspath(path)))
        real["remove"](path, **more)

    def rmtree(path: Any, *more: Any, **options: Any) -> None:
        note(Step("remove", os.fspath(path)))
        real["rmtree"](path, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        patch.setattr(os, "remove", remove)
        patch.setattr(shutil, "rmtree", rmtree)
        yield steps


def images(start: Path, root: Path, steps: list[Step], place: Path) -> Iterator[Path]:
    """The folder as it was after every step, one after another in one place."""
    shutil.copytree(start, place)
    yield place
    for step in steps:
        target = place / Path(step.path).relative_to(root)
        if step.kind == "replace":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(step.data)
        elif step.kind == "remove" and target.is_dir():
            shutil.rmtree(target)
        elif step.kind == "remove":
            target.unlink(missing_ok=True)
        else:
            continue
        yield place


def check_image(image: Path, stages: list[str]) -> None:
    """No record vouches for other bytes than those that are there; a manifest for all of its files."""
    for stage in stages:
        for record in StageRecords(Folder(str(image)), stage).load().values():
            for file in record.files:
                assert describe(image / file.path, file.path, file.rows) == file, record.name
    try:
        database = retro_db.open(str(image))
    except DatabaseError:
        return
    for file in database.manifest.files:
        assert describe(image / file.path, file.path, file.rows) == file


@pytest.mark.parametrize(
    "setting", ["chunk.tokens=32", "index.key=IVF1,SQ8", "neighbors.drop_duplicates=true"]
)
def test_a_stop_after_any_write_leaves_no_record_of_other_bytes(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    shutil.copytree(project.output, tmp_path / "start")
    stages = [path.stem for path in (project.output / "state" / "records").glob("*.jsonl")]
    assert len(stages) > 8
    with watched(project.output, monkeypatch) as steps:
        assert project.build("--set", setting, "--overwrite") == 0
    assert sum(step.kind == "replace" for step in steps) > 5
    for image in images(tmp_path / "start", project.output, steps, tmp_path / "image"):
        check_image(image, stages)
    last = {p.relative_to(project.output) for p in project.output.rglob("*") if p.is_file()}
    replayed = tmp_path / "image"
    again = {p.relative_to(replayed) for p in replayed.rglob("*") if p.is_file()}
    ours = {path for path in last if path.parts[:2] not in (("state", "progress"),)}
    beside = {Path("state/build.log"), Path("state/lock"), Path("state/fence")}
    assert {p for p in again if p.parts[:2] != ("state", "progress")} - beside == ours - beside


def test_names_are_synced_in_order(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(project.output, monkeypatch) as steps:
        assert project.build("--set", "chunk.tokens=32", "--overwrite") == 0
    replaced = [step for step in steps if step.kind == "replace" and "/progress/" not in step.path]
    last = [Path(step.path).name for step in replaced[-4:]]
    assert last == ["manifest.json", "stages.json", "README.md", "finished"]
    for place, step in enumerate(steps):
        if step.kind != "replace" or "/progress/" in step.path:
            continue
        temporary = steps[place - 1].path
        assert Step("sync", temporary) in steps[:place], f"{step.path} is named before it is synced"
        folder = str(Path(step.path).parent)
        assert Step("sync", folder) in steps[place:], f"the folder of {step.path} is not synced"
    manifest = str(project.output / "manifest.json")
    removal = steps.index(Step("remove", manifest))
    first = next(i for i, s in enumerate(steps) if s.kind == "replace" and "/chunks/" in s.path)
    assert removal < first
    assert Step("sync", str(project.output)) in steps[removal:first], "the removal is synced first"
