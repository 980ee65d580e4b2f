"""Credentials of a corpus's URLs are nowhere in what a build writes, prints and leaves when it is killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from retro_db.corpus.listing import Listing
from retro_db.errors import CorpusError
from retro_db_pipelines.commands.cli import run
from support.processes import building
from support.projects import Project, make_project
from support.texts import python_sources
from support.web import serving

SECRETS = ("hunter2", "hunter3", "hunter4", "hunter5")
URL = "http://user:hunter2@{}/{}.jsonl?hdnea=st=1~exp=2~acl=/*~hmac=hunter3&x=hunter4#jwt=hunter5"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    served = tmp_path / "served"
    served.mkdir()
    for number, text in enumerate(python_sources(12)):
        lines = [orjson.dumps({"text": text[:3000]}) + b"\n", b"a bad record\n"]
        (served / f"{number:02d}.jsonl").write_bytes(b"".join(lines))
    with serving(served) as address:
        project = make_project(tmp_path / "project", [], chunk={"shard_size": 3000})
        paths = [URL.format(address, f"{number:02d}") for number in range(12)]
        source = {"name": "test", "paths": paths, "format": "jsonl", "max_bad": 0.9}
        project.settings["corpus"] = [source]
        yield project


def told(folder: Path) -> set[str]:
    """Files that tell a secret."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in SECRETS)
    }


def test_nothing_tells_them(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("chunk", "embed"):
        with building(project, stage) as process:
            process.send_signal(signal.SIGKILL)
            shown = "".join(process.communicate())
        assert list((project.output / "state" / "briefs").iterdir()), "it was killed at work"
        assert told(project.output) == set()
    assert project.build() == 0
    assert run(["report", str(project.output)]) == 0
    for command in ("inspect", "verify"):
        assert run([command, str(project.output)]) == 0
    printed = capsys.readouterr()
    assert not [s for s in SECRETS if s in shown + printed.out + printed.err]
    assert told(project.output) == set()
    [names] = pq.read_table(project.output / "documents", columns=["id"]).columns
    assert "00.jsonl?hdnea=***&x=***#jwt=***:0" in names.to_pylist()


def test_errors_tell_none(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    [source] = project.settings["corpus"]
    source["paths"] = [path.replace("00.jsonl", "missing.jsonl") for path in source["paths"]]
    assert project.build() == 2
    with pytest.raises(CorpusError) as caught:
        Listing("db").files(source["paths"], "corpus.0.paths")
    for text in (capsys.readouterr().err, str(caught.value)):
        assert "missing.jsonl" in text
        assert not [secret for secret in SECRETS if secret in text]


def test_files_that_only_a_secret_tells_apart_are_refused(project: Project) -> None:
    [source] = project.settings["corpus"]
    path = source["paths"][0]
    with pytest.raises(CorpusError, match="stands for two files"):
        Listing("db").files([path, path.replace("hunter4", "other")], "corpus.0.paths")
    listed = Listing("db").files([path, path.replace("&x=", "&id=7&x=")], "corpus.0.paths")
    assert len({file.name for file in listed}) == 2
