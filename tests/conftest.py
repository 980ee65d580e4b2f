"""Corpora, configurations and databases that the tests share. Everything in them is real."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# No test may reach for a model hub; read when the library is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import orjson
import pytest
import yaml
from filelock import FileLock

import retro_db
from retro_db.reader.database import Database
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.commands.demo import encoder_folder

# A job in a shell's background ignores Ctrl-C, and so would the builds that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)

COMMAND = Path(sys.executable).with_name("retro-db")
SHARED = Path(__file__).resolve().parents[2] / "shared"
_HEADING = re.compile(r"^(?= = [^=].* = $)", re.MULTILINE)


@dataclass
class Project:
    """A folder with a corpus and a configuration, and the command that builds it."""

    folder: Path
    texts: list[str]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return Path(self.settings["output"])

    @property
    def config(self) -> Path:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.settings), "utf-8")
        return path

    def build(self, *arguments: str) -> int:
        return run(["build", str(self.config), *arguments])

    def open(self) -> Database:
        return retro_db.open(str(self.output))

    def files(self) -> dict[str, bytes]:
        """Every file that equal builds must have in common."""
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and not {"report", "state"} & set(path.relative_to(self.output).parts)
        }


def make_project(folder: Path, texts: list[str], **settings: Any) -> Project:
    """A project over JSON lines with the fields `text` and `id`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [orjson.dumps({"id": f"doc-{i}", "text": text}) for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    defaults = {
        "output": str(folder / "db"),
        "corpus": [{"name": "test", "paths": [str(folder / "corpus.jsonl")], "id": "id"}],
        "tokenizer": {"train": {"vocab_size": 2000}},
        "encoder": {"model": str(encoder_folder())},
    }
    return Project(folder, texts, defaults | settings)


def remove_documents(database: Path, ids: list[str]) -> int:
    """Removes documents by the command; its exit code."""
    listed = database.with_name(f"{database.name}-removed.txt")
    listed.write_text("\n".join(ids), "utf-8")
    return run(["remove", str(database), "--documents", str(listed)])


def wikitext(name: str) -> list[str]:
    """Articles of WikiText-2, each an exact slice of the file."""
    path = SHARED / "corpora" / "wikitext-2" / name
    if not path.exists():
        assert "CI" not in os.environ, f"{path} is missing"
        pytest.skip(f"{path} is not here")
    return [part for part in _HEADING.split(path.read_text("utf-8")) if part.strip()]


def python_sources(count: int) -> list[str]:
    """Short modules of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [p for p in sorted(library.rglob("*.py")) if 1_000 < p.stat().st_size < 4_000]
    chosen = [p for p in files if not {"test", "tests", "site-packages"} & set(p.parts)][:count]
    return [file.read_text("utf-8") for file in chosen]


def children(parent: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


@contextlib.contextmanager
def building(
    project: Project, stage: str, *options: str, ignoring: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A build in a process group of its own that has begun a stage, as a terminal or a service starts one.

    Args:
        project: What to build.
        stage: Which stage is waited for.
        *options: Of the command.
        ignoring: Whether it ignores Ctrl-C's signal, as what runs in a shell's background does.
    """
    command = [str(COMMAND), "build", str(project.config), *options]
    if ignoring:
        command = ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            while not (project.output / "state" / "progress" / stage).exists():
                assert process.poll() is None, "it ended before the stage began"
                time.sleep(0.01)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def is_running(process: int) -> bool:
    """Whether a process is alive, and not only waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextlib.contextmanager
def failing_disk_at(ending: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk on which no file takes a name that ends so."""
    real = os.replace

    def fail(source: Any, target: Any) -> None:
        if str(target).endswith(ending):
            raise OSError(errno.EIO, "Input/output error", str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        yield


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A disk of its own."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True
    )
    if made.returncode:
        assert "CI" not in os.environ, made.stderr
        pytest.skip(f"no disk can be mounted here: {made.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def built_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Project]
) -> Project:
    """A project that one of the processes that run the tests makes and builds for all of them."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    kept = shared / f"{name}.pickle"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            project = make(shared / name)
            assert project.build() == 0
            kept.write_bytes(pickle.dumps(project))
    made: Project = pickle.loads(kept.read_bytes())  # noqa: S301 - our own bytes
    return made


@pytest.fixture(scope="session")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """WikiText-2's validation and test articles, and two documents that try the tokenizer.

    Settings are the defaults, but for a validation split.
    """
    return built_once(tmp_path_factory, "wiki", _wiki)


def _wiki(folder: Path) -> Project:
    texts = wikitext("valid.txt") + wikitext("test.txt")
    texts.append("A literal <|endoftext|> is text, " + "and so is <|endoftext|>. " * 40)
    emoji = "".join(chr(code) for code in range(0x1F300, 0x1F600))
    texts.append(f"Emoji are four bytes, each of which may be a token: {emoji}")
    tokenizer = {"train": {"vocab_size": 8000}}
    return make_project(folder, texts, tokenizer=tokenizer, split={"validation": 0.05})


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """About 400 chunks of Python's own source in several shards and parts, with a validation split."""
    return built_once(tmp_path_factory, "small", _small)


def _small(folder: Path) -> Project:
    texts = python_sources(40)
    project = make_project(
        folder,
        texts,
        split={"validation": 0.2},
        chunk={"shard_size": 20_000, "part_rows": 100},
        index={"key": "IVF8,PQ48x4fs", "partitions": 3},
    )
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(4):
        lines = [
            orjson.dumps({"id": f"doc-{i}", "text": texts[i]})
            for i in range(number * 10, number * 10 + 10)
        ]
        (corpus / f"{number}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    project.settings["corpus"][0]["paths"] = [str(corpus / "*.jsonl")]
    return project
