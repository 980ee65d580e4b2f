"""A changed input is noticed, whatever its filesystem tells; between two readings it stops the build."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from retro_db_pipelines.builds.stage_order import Recipe
from support.projects import Project, make_project
from support.web import Served, serving

TEXTS = [f"A text about {word}. " * 30 for word in ("iron", "rain", "owls")]


@pytest.fixture(scope="module")
def tokenizer(six: Project) -> str:
    return str(six.output / "tokenizer")


def lines(texts: list[str]) -> bytes:
    return b"".join(b'{"text": "%s", "id": "%d"}\n' % (t.encode(), i) for i, t in enumerate(texts))


def configure(folder: Path, tokenizer: str, path: str) -> Project:
    project = make_project(folder, TEXTS, tokenizer={"path": tokenizer})
    project.settings["corpus"] = [{"name": "test", "paths": [path], "id": "id"}]
    return project


def texts_in(project: Project) -> str:
    database = project.open()

    decode = Tokenizer.from_file(str(project.output / "tokenizer" / "tokenizer.json")).decode
    return " ".join(decode(database.chunks[i].tolist()) for i in range(len(database)))


def rewrite(path: Path, content: bytes) -> None:
    """Puts other content of the same size under the same time of change."""
    status = path.stat()
    assert len(content) == status.st_size
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_content_under_an_old_time_of_change(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(lines(TEXTS))
    project = configure(tmp_path / "project", tokenizer, str(path))
    assert project.build() == 0
    assert "iron" in texts_in(project)
    rewrite(path, lines(TEXTS).replace(b"iron", b"gold"))
    capsys.readouterr()
    assert project.build() == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert "iron" not in texts_in(project)
    assert "gold" in texts_in(project)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as address:
        yield folder, address


@pytest.mark.parametrize("tells", [True, False])
def test_a_file_of_a_web_server(
    served: tuple[Path, str],
    tokenizer: str,
    tmp_path: Path,
    tells: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Served, "tells", tells)
    folder, address = served
    (folder / "a.jsonl").write_bytes(lines(TEXTS))
    os.utime(folder / "a.jsonl", (1_000_000, 1_000_000))
    project = configure(tmp_path / "project", tokenizer, f"http://{address}/a.jsonl")
    assert project.build() == 0
    before = project.files()
    capsys.readouterr()
    assert project.build() == 0
    shown = capsys.readouterr().out
    assert ("nothing to do" in shown) == tells
    assert ("inputs " in shown) != tells
    assert "embed " not in shown
    assert project.files() == before
    (folder / "a.jsonl").write_bytes(lines(TEXTS).replace(b"iron", b"gold"))
    assert project.build() == 0
    assert "iron" not in texts_in(project)
    assert "gold" in texts_in(project)


def test_records_that_are_exchanged_between_two_readings_stop_the_build(
    tmp_path: Path,
    tokenizer: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(lines(TEXTS))
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_bytes(lines(TEXTS[:1]))
    project = configure(tmp_path / "project", tokenizer, str(path))
    project.settings["leakage"] = {"paths": [str(evaluation)]}
    del project.settings["corpus"][0]["id"]
    stages = Recipe.stages

    def exchange(recipe: Recipe) -> Iterator[str]:
        for stage in stages(recipe):
            if stage == "screen":
                rewrite(path, lines(TEXTS[::-1]))
            yield stage

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "stages", exchange)
        assert project.build() == 2
    message = capsys.readouterr().err
    assert "corpus.jsonl: changed since it was screened; run the same command again" in message
    assert not (project.output / "manifest.json").exists()
    assert project.build() == 0
    [dropped] = pq.read_table(project.output / "dropped").to_pylist()
    assert dropped["reason"] == "leakage"
    assert "iron" not in texts_in(project)
    assert "owls" in texts_in(project)
