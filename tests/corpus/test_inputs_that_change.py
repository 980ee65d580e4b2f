"""A changed input is noticed, whatever its filesystem tells; between two readings it stops the build."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from retro_db.corpus.chunking import ChunkedShard
from retro_db_pipelines.builds.stage_order import Recipe
from retro_db_pipelines.stages import chunk
from support.projects import Project, make_project
from support.soak import SOAKING
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


@pytest.mark.parametrize("shard_size", [1500, 10_000_000])
def test_content_that_changes_while_it_is_read_and_gets_its_times_back(
    tmp_path: Path,
    tokenizer: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shard_size: int,
) -> None:
    """Ranges of one file, of which one was read before; and a whole file."""
    path = tmp_path / "corpus.jsonl"
    before, now = lines(TEXTS), lines(TEXTS[::-1])
    path.write_bytes(before)
    project = configure(tmp_path / "project", tokenizer, str(path))
    project.settings["chunk"] = {"shard_size": shard_size}
    write = chunk.chunk_shard
    ranges = []

    def change_then(*arguments: Any) -> ChunkedShard:
        written = write(*arguments)
        ranges.append(written)
        if len(ranges) == 1:
            rewrite(path, now)
        return written

    with monkeypatch.context() as patch:
        patch.setattr(chunk, "chunk_shard", change_then)
        assert project.build() == 2
    assert (len(ranges) > 1) == (shard_size == 1500)
    assert "corpus.jsonl: changed since it was read; run the same command again" in (
        capsys.readouterr().err
    )
    assert project.build() == 0
    whole = Project(tmp_path, TEXTS, project.settings | {"output": str(tmp_path / "whole")})
    assert whole.build() == 0
    assert project.files() == whole.files()


@pytest.mark.parametrize("shard_size", [1500, 10_000_000])
def test_a_file_that_is_only_touched_stops_no_build(
    tmp_path: Path,
    tokenizer: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shard_size: int,
) -> None:
    """By a link from a backup, or by other permissions."""
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(lines(TEXTS))
    project = configure(tmp_path / "project", tokenizer, str(path))
    project.settings["chunk"] = {"shard_size": shard_size}
    write = chunk.chunk_shard

    def touch_then(*arguments: Any) -> ChunkedShard:
        written = write(*arguments)
        path.chmod(0o600 if path.stat().st_mode & 0o77 else 0o644)
        return written

    monkeypatch.setattr(chunk, "chunk_shard", touch_then)
    assert project.build() == 0
    assert "inputs " in capsys.readouterr().out, "it was read again"


def put_later(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, (2_000_000_000, 2_000_000_000))


CHANGES = (rewrite, put_later) if SOAKING else (rewrite,)
STAGES = (
    "",
    "tokenizer",
    "screen",
    "chunk",
    "embed",
    "train",
    "encode",
    "assemble",
    "tune",
    "neighbors",
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("after", STAGES)
def test_an_input_that_changes_at_any_stage_is_noticed_by_that_build_or_the_next(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: str,
    change: Callable[[Path, bytes], None],
) -> None:
    """With a tokenizer that is trained on it, and with screening, which reads it too."""
    path = tmp_path / "corpus.jsonl"
    before, now = lines(TEXTS), lines(TEXTS).replace(b"iron", b"gold")
    path.write_bytes(before)
    project = configure(tmp_path / "project", "", str(path))
    project.settings |= {"tokenizer": {"train": {"vocab_size": 300}}, "dedup": {"jaccard": 0.9}}
    stages = Recipe.stages

    def changing(recipe: Recipe) -> Iterator[str]:
        if not after:
            change(path, now)
        for stage in stages(recipe):
            if stage == after:
                change(path, now)
            yield stage

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "stages", changing)
        code = project.build()
    if code:
        assert code == 2
        assert "run the same command again" in capsys.readouterr().err
    assert project.build() == 0
    whole = Project(tmp_path, TEXTS, project.settings | {"output": str(tmp_path / "whole")})
    assert whole.build() == 0
    assert project.files() == whole.files()
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
