"""Whatever stops a build, running it again ends in the bytes of a build that nothing stopped."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import fsspec
import pytest

import retro_db
from retro_db.errors import ExecutionError
from retro_db_pipelines.commands import cli
from support.disks import small_disk
from support.faults import compiled
from support.processes import Command, children, is_running
from support.projects import Project, make_project, remove_documents
from support.soak import amount
from support.texts import python_sources

# Stages with a shard for each file, or for each range of lists.
JOINING = ("route", "home", "visit", "neighbors")
STAGES = ("screen", "chunk", "embed", "draw", "encode", "assemble", "truth", *JOINING)
APPENDING = ("chunk", "embed", "encode", "assemble", "truth", "route-queries", *JOINING[1:])
BETWEEN = ("order", "route", "route-queries", "home", "visit", "short")
# Those that this machine does one task at a time of, in the driver: no death of a worker stops them.
ALONE = ("assemble", "route", "route-queries", "home", "visit", "neighbors")
COMPACTING = ("compact", "renumber", "truth", *JOINING)
KILLS = amount(quick=6, soak=100)
UPDATES = max(2, KILLS // 5)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Some shards of a short document or two each, and three partitions; built without a fault."""
    folder = tmp_path_factory.mktemp("sound")
    project = make_project(
        folder,
        [],
        index={"key": "IVF5,PQ48x4fs", "partitions": 3},
        chunk={"shard_size": 4000},
        dedup={"jaccard": 0.8},
        neighbors={"partitions": 3},
    )
    project.settings["corpus"] = [write_corpus(folder / "corpus", python_sources(16))]
    assert project.build("--workers", "2") == 0
    return project


def write_corpus(folder: Path, texts: list[str]) -> dict[str, object]:
    """A source with a file of each text's beginning."""
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:02d}.txt").write_text(text[:3000], "utf-8")
    return {"name": "test", "paths": [str(folder / "*.txt")]}


@pytest.fixture
def project(sound: Project, tmp_path: Path) -> Project:
    """The same, not built yet."""
    return Project(tmp_path, sound.texts, sound.settings | {"output": str(tmp_path / "db")})


class Run:
    """A command in a process of its own, with two workers: to build, where none is named.

    Args:
        project: What to build.
        *options: Of the command.
        command: Another one, without its workers.
        preloaded: A library whose functions come before those of all others.
        **environment: Variables that differ.
    """

    def __init__(
        self,
        project: Project,
        *options: str,
        command: tuple[str, ...] = (),
        preloaded: str = "",
        **environment: str,
    ) -> None:
        named = command or ("build", str(project.config))
        arguments = [*named, "--workers", "2", *options]
        self._log = (project.folder / "output.txt").open("w+b")
        self.process = Command(
            *arguments, stdout=self._log.fileno(), preloaded=preloaded, **environment
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*children(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.communicate()
        self._log.close()

    def wait(self) -> tuple[int, str]:
        """The exit code, and what it printed as errors."""
        _, message = self.process.communicate(timeout=240)
        return self.process.wait(), message


def committed(place: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """By stage, the records of shards, each with inode and time of its first file.

    A finished build has swept what lay between the stages of the join, and their records.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    records = place / "state" / "records"
    for path in [*records.glob("[!.]*.jsonl"), *records.glob("*/[!.]*.json")]:
        stage = path.stem if path.suffix == ".jsonl" else path.parent.name
        for line in path.read_bytes().splitlines():
            record = json.loads(line)
            # What a compaction has left nothing of is swept.
            with contextlib.suppress(FileNotFoundError, IndexError):
                stat = (place / record["files"][0]["path"]).stat()
                found.setdefault(stage, {})[record["name"]] = (stat.st_ino, stat.st_mtime_ns)
    return found


def done_again(project: Project, stage: str, before: int) -> int:
    """Committed tasks of a stage that the last run did once more, by what it printed."""
    told = (project.folder / "output.txt").read_text("utf-8")
    lines = re.findall(rf"^{stage} +(?:([\d,]+) of ([\d,]+) tasks)?.*", told, re.MULTILINE)
    if not lines:
        return 0
    done, tasks = (int(number.replace(",", "") or 1) for number in lines[-1])
    return before - (tasks - done)


def begun(place: Path, stage: str) -> set[str]:
    """Shards of a stage that a worker has had in hand."""
    folder = place / "state" / "progress" / stage
    return {path.name for path in folder.glob("*") if path.suffix != ".tmp"}


def has_begun_to_commit(place: Path, stage: str) -> bool:
    """Whether some shards of the stage are committed, but not all."""
    return any((place / "state" / "records" / stage).glob("[!.]*.json"))


def gone(processes: list[int], seconds: float) -> bool:
    """Whether processes end in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(is_running(process) for process in processes):
            return True
        time.sleep(0.1)
    return False


def kill_in(
    project: Project,
    place: Path,
    stage: str,
    victims: str,
    moment: float,
    command: tuple[str, ...] = (),
) -> bool:
    """Kills a run some moment after its first commit in a stage; False if it ended before."""
    if victims == "workers" and stage in ALONE:
        victims = "all"
    with Run(project, command=command) as run:
        while not has_begun_to_commit(place, stage):
            if run.process.poll() is not None:
                return False
            time.sleep(0.002)
        time.sleep(moment)
        workers = children(run.process.pid)
        chosen = {
            "driver": [run.process.pid],
            "workers": workers,
            "all": [run.process.pid, *workers],
        }
        for process in chosen[victims]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        code, _ = run.wait()
        assert gone(workers, 10), "a worker outlived its driver by more than ten seconds"
        if code == 0:
            return False
        assert code == (3 if victims == "workers" else -signal.SIGKILL)
    return True


def test_killed_at_any_moment_a_build_goes_on_where_it_was(
    sound: Project, project: Project
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    hits = 0
    for turn in range(KILLS):
        stage = STAGES[turn % len(STAGES)]
        victims = ("driver", "all", "workers")[turn % 3 if turn % 6 < 3 else (turn + 1) % 3]
        shutil.rmtree(project.output, ignore_errors=True)
        for attempt in range(12):
            if kill_in(
                project, project.output, stage, victims, chance.uniform(0, 0.1 / (1 + attempt) ** 2)
            ):
                break
            shutil.rmtree(project.output)
        else:
            pytest.fail(f"seed {seed}: no kill hit {stage}")
        hits += 1
        before = committed(project.output)
        assert before[stage], f"seed {seed}: nothing was committed in {stage}"
        repeated = begun(project.output, stage) - set(before[stage])
        assert len(repeated) <= 2, f"seed {seed}, {stage}: more in hand than workers"
        with Run(project) as run:
            assert run.wait() == (0, ""), f"seed {seed}, turn {turn}"
        after = committed(project.output)
        for name, shards in before.items():
            if name in BETWEEN:
                assert not done_again(project, name, len(shards)), (
                    f"seed {seed}, turn {turn}: {name}"
                )
                continue
            redone = [shard for shard in shards if after[name].get(shard) != shards[shard]]
            assert not redone, f"seed {seed}, turn {turn}: {name} redone"
        assert project.files() == sound.files(), f"seed {seed}, turn {turn}, {stage}, {victims}"
    assert hits == KILLS


def test_killed_while_it_is_appended_to_or_compacted_a_database_goes_on(
    sound: Project, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    more = sound.settings | {"corpus": [write_corpus(tmp_path / "more", python_sources(24)[16:])]}

    def copy(name: str, of: Project) -> Project:
        (tmp_path / name).mkdir()
        shutil.copytree(of.output, tmp_path / name / "db")
        return Project(tmp_path / name, [], more | {"output": str(tmp_path / name / "db")})

    calm = copy("calm", sound)
    assert calm.build("--append") == 0
    removed = copy("removed", calm)
    ids = removed.open().documents["id"].to_pylist()[::3]
    assert remove_documents(removed.output, ids) == 0
    compacted = Project(tmp_path, [], more | {"output": str(tmp_path / "compacted")})
    assert cli.run(["compact", str(removed.output), str(compacted.output)]) == 0
    for turn in range(UPDATES):
        appends, victims = turn % 2 == 0, chance.choice(("driver", "workers", "all"))
        stages, expected = (APPENDING, calm) if appends else (COMPACTING, compacted)
        stage = stages[turn // 2 % len(stages)]
        told = f"seed {seed}, turn {turn}, {stage}, {victims}"
        for attempt in range(12):
            hit = copy(f"hit-{turn}-{attempt}", sound if appends else removed)
            command, place = ("build", str(hit.config), "--append"), hit.output / "generations/0002"
            if not appends:
                place = hit.folder / "new"
                command = ("compact", str(hit.output), str(place))
                hit = Project(hit.folder, [], hit.settings | {"output": str(place)})
            moment = chance.uniform(0, 0.02 / (1 + attempt) ** 2)
            if kill_in(hit, place, stage, victims, moment, command):
                break
        else:
            pytest.fail(f"{told}: no kill hit")
        before = committed(place)
        with Run(hit, command=command) as again:
            assert again.wait() == (0, ""), told
        after = committed(place)
        for name, shards in before.items():
            if name in BETWEEN:
                assert not done_again(hit, name, len(shards)), f"{told}: {name}"
                continue
            same = [after[name].get(shard, stat) == stat for shard, stat in shards.items()]
            assert all(same), f"{told}: {name} redone"
        assert hit.files() == expected.files(), told


def refused(
    project: Project, code: int, *words: str, preloaded: str = "", **environment: str
) -> None:
    """The build ends with the code and one line with the words."""
    with Run(project, preloaded=preloaded, **environment) as run:
        found, message = run.wait()
    assert found == code, message
    assert message.startswith("error: "), message
    assert message.count("\n") == 1, message
    for word in words:
        assert word in message


def goes_on(project: Project, sound: Project) -> None:
    with Run(project) as run:
        assert run.wait() == (0, "")
    assert project.files() == sound.files()
    assert not list(project.output.rglob(".tmp-*"))


def test_a_full_disk(sound: Project, project: Project, tmp_path: Path) -> None:
    project.settings["output"] = str(tmp_path / "disk" / "db")
    with small_disk(tmp_path / "disk", "450k"):
        refused(project, 3, "No space left on device", "make room", "traces: ", "state/build.log")
        grown = ["mount", "-o", "remount,size=100m", str(tmp_path / "disk")]
        subprocess.run(grown, check=True)
        goes_on(project, sound)


def test_a_folder_that_became_read_only(sound: Project, project: Project, tmp_path: Path) -> None:
    project.settings["output"] = str(tmp_path / "disk" / "db")
    disk = str(tmp_path / "disk")
    with small_disk(tmp_path / "disk", "100m"):
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        refused(project, 2, "output: ", "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        goes_on(project, sound)


@pytest.fixture(scope="module")
def failing_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes writes fail; see its source."""
    return compiled(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "place", ["/chunks/", "/embeddings/", "/index/", "/state/records/neighbors"]
)
def test_a_failing_disk(sound: Project, project: Project, failing_disk: Path, place: str) -> None:
    faults = {
        "FAULT_BELOW": f"{project.output}{place}",
        "FAULT_AT": "1",
        "FAULT_ALL": "1",
        "FAULT_KIND": str(errno.EIO),
    }
    words = ("Input/output error", "run the same command again")
    refused(project, 3, *words, preloaded=str(failing_disk), **faults)
    goes_on(project, sound)


def own_corpus(project: Project, tmp_path: Path) -> Path:
    """A copy of the corpus that may be changed, which the project then reads."""
    corpus = tmp_path / "corpus"
    shutil.copytree(Path(project.settings["corpus"][0]["paths"][0]).parent, corpus)
    project.settings["corpus"] = [{"name": "test", "paths": [str(corpus / "*.txt")]}]
    return corpus


def wait_for_the_tokenizer(project: Project, run: Run) -> None:
    while not (project.output / "state" / "records" / "tokenizer.jsonl").exists():
        assert run.process.poll() is None
        time.sleep(0.001)


def test_a_vanished_input(sound: Project, project: Project, tmp_path: Path) -> None:
    corpus = own_corpus(project, tmp_path)
    with Run(project) as run:
        # Gone after planning, before the last shard is cut.
        wait_for_the_tokenizer(project, run)
        (corpus / "15.txt").rename(tmp_path / "15.txt")
        code, message = run.wait()
    assert code == 2, message
    assert message.count("\n") == 1
    assert "15.txt: vanished" in message
    (tmp_path / "15.txt").rename(corpus / "15.txt")
    goes_on(project, sound)


def test_an_input_that_changes_between_two_stages(project: Project, tmp_path: Path) -> None:
    corpus = own_corpus(project, tmp_path)
    with Run(project) as run:
        wait_for_the_tokenizer(project, run)
        before = (corpus / "15.txt").read_text("utf-8")
        (corpus / "15.txt").write_text("\n".join(reversed(before.split("\n"))), "utf-8")
        code, message = run.wait()
    assert code == 2, message
    assert message.count("\n") == 1
    assert "15.txt: changed since the build was planned; run the same command again" in message
    with Run(project) as again:
        assert again.wait() == (0, "")
    whole = Project(tmp_path, [], project.settings | {"output": str(tmp_path / "whole")})
    assert whole.build() == 0
    assert project.files() == whole.files()


def test_a_model_that_fails_to_load(sound: Project, project: Project, tmp_path: Path) -> None:
    # The manifest has the name of its folder.
    model = tmp_path / Path(project.settings["encoder"]["model"]).name
    shutil.copytree(project.settings["encoder"]["model"], model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    project.settings["encoder"] = {"model": str(model)}
    refused(project, 2, "encoder.model", "cannot be loaded")
    (model / "model.safetensors").write_bytes(weights)
    goes_on(project, sound)


def test_a_worker_without_memory(sound: Project, project: Project) -> None:
    with Run(project) as run:
        while not has_begun_to_commit(project.output, "embed"):
            assert run.process.poll() is None
            time.sleep(0.002)
        # What the kernel's killer does to the largest process.
        largest = max(children(run.process.pid), key=resident)
        os.kill(largest, signal.SIGKILL)
        code, message = run.wait()
    assert code == 3
    assert message.count("\n") == 1
    assert "a worker process ended" in message
    assert "traces: " in message
    assert "memory" in message
    goes_on(project, sound)


def resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_a_full_disk_of_the_cache(sound: Project, tmp_path: Path) -> None:
    remote = fsspec.filesystem("memory")
    remote.put(str(sound.output), "/full/db", recursive=True)
    with small_disk(tmp_path / "cache", "100k"):
        database = retro_db.open("memory://full/db", cache=tmp_path / "cache", cache_bytes="1GB")
        with pytest.raises(ExecutionError, match=r"^cache: .*No space left on device.*make room"):
            [getattr(database, table)[:] for table in ("chunks", "neighbors", "embeddings")]
        grown = ["mount", "-o", "remount,size=100m", str(tmp_path / "cache")]
        subprocess.run(grown, check=True)
        assert (database.chunks[:] == sound.open().chunks[:]).all()
        del database  # unmaps what lies on the disk
