"""A finished database is never replaced by a slip."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from retro_db.errors import ConfigError
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.commands.demo import write_config
from support.hostile import manifest_of, seal
from support.processes import building
from support.projects import Project

LOST = "is a finished database of 6 documents, "


@pytest.fixture
def finished(six: Project, tmp_path: Path) -> Project:
    """A copy of a project, whose corpus and tokenizer are its own."""
    shutil.copytree(six.folder, tmp_path / "copy")
    settings = json.loads(json.dumps(six.settings).replace(str(six.folder), f"{tmp_path}/copy"))
    project = Project(tmp_path / "copy", six.texts, settings)
    assert project.build() == 0
    return project


def write_corpus(path: Path, texts: list[str]) -> dict[str, Any]:
    path.write_bytes(b"".join(orjson.dumps({"id": t[:9], "text": t}) + b"\n" for t in texts))
    return {"name": "test", "paths": [str(path)], "id": "id"}


def another_corpus(project: Project) -> None:
    other = write_corpus(project.folder / "other.jsonl", ["Something else, " * 20])
    project.settings["corpus"] = [other]


def another_tokenizer(project: Project) -> None:
    project.settings["tokenizer"] = {"train": {"vocab_size": 290}}


def a_file_more(project: Project) -> None:
    write_corpus(project.folder / "more.jsonl", ["Something more, " * 20])
    project.settings["corpus"][0]["paths"].append(str(project.folder / "more.jsonl"))


def a_source_more(project: Project) -> None:
    more = write_corpus(project.folder / "more.jsonl", ["Something more, " * 20])
    project.settings["corpus"].append(more | {"name": "more"})


def other_chunks(project: Project) -> None:
    project.settings["chunk"] = {"tokens": 32}


def another_text(project: Project) -> None:
    project.settings["corpus"][0]["text"] = "id"


def other_embeddings(project: Project) -> None:
    project.settings["encoder"]["max_length"] = 12


@pytest.mark.parametrize(
    ("slip", "reason"),
    [
        (another_corpus, "no shard of the corpus holds the same files"),
        (another_tokenizer, "tokenizer.train is another"),
        (a_file_more, "no shard of the corpus holds the same files"),
        (a_source_more, "trained on a corpus of other files"),
        (another_text, "every source has another text or separator"),
        (other_chunks, "chunk.tokens was 64, and is 32"),
        (other_embeddings, "encoder.max_length was 16, and is 12"),
    ],
)
def test_a_build_that_keeps_no_embedding_must_be_asked_for(
    finished: Project, capsys: pytest.CaptureFixture[str], slip: Any, reason: str
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.output.rglob("*") if "state" not in p.parts}
    slip(finished)
    stages = [["stage", name, str(finished.config)] for name in ("tokenizer", "chunk", "embed")]
    for command in (["build", str(finished.config)], *stages):
        assert run(command) == 2
        message = capsys.readouterr().err
        assert LOST in message
        assert reason in message
        assert "--append" in message
        assert "--overwrite" in message
    assert finished.build("--dry-run") == 0
    assert "needs --overwrite" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in finished.output.rglob("*") if "state" not in p.parts}
    assert before == after
    assert run(["verify", str(finished.output)]) == 0
    assert finished.build("--overwrite") == 0
    assert run(["verify", str(finished.output)]) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert finished.build() == 0, "what was asked for once is what stands now"
    assert "nothing to do" in capsys.readouterr().out


def kill_embedding(project: Project, option: str) -> None:
    """Starts a build and kills it once it embeds."""
    shutil.rmtree(project.output / "state" / "progress")
    place = "generations/0002" if option == "--append" else ""
    with building(project, "embed", option, place=place) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def test_the_database_that_was_replaced_goes_on_without_being_asked(finished: Project) -> None:
    another_corpus(finished)
    kill_embedding(finished, "--overwrite")
    assert not (finished.output / "manifest.json").exists()
    assert finished.build() == 0
    assert finished.open().manifest.counts.documents == 1


def query_more(project: Project) -> None:
    asked = write_corpus(project.folder / "asked.jsonl", ["What of the rain? " * 9])
    project.settings["queries"].append(asked | {"name": "more"})


def move(project: Project) -> None:
    source = project.folder / "corpus.jsonl"
    (project.folder / "moved").mkdir()
    source.rename(project.folder / "moved" / "corpus.jsonl")
    project.settings["corpus"][0]["paths"] = [str(project.folder / "moved" / "corpus.jsonl")]


def touch(project: Project) -> None:
    os.utime(project.folder / "corpus.jsonl", (1, 1))


def more_neighbors(project: Project) -> None:
    project.settings["neighbors"]["k"] = 2


def weigh(project: Project) -> None:
    project.settings["corpus"][0]["weight"] = 0.5


def split(project: Project) -> None:
    project.settings["split"] = {"validation": 0.3}


@pytest.mark.parametrize("change", [query_more, move, touch, more_neighbors, weigh, split])
def test_a_build_that_keeps_embeddings_is_as_easy_as_ever(
    finished: Project, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    [embeddings] = (finished.output / "embeddings").iterdir()
    before = embeddings.stat().st_mtime_ns
    change(finished)
    assert finished.build() == 0
    assert embeddings.stat().st_mtime_ns == before


def test_an_append_that_is_not_finished_is_not_given_up_by_a_slip(
    finished: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = finished.settings["corpus"]
    another_corpus(finished)
    kill_embedding(finished, "--append")
    [pending] = (finished.output / "generations").iterdir()
    whole = Project(finished.folder, finished.texts, finished.settings | {"corpus": corpus})
    assert whole.build() == 2
    assert "which is not finished, would be given up" in capsys.readouterr().err
    assert list(pending.rglob("*.arrow"))
    assert finished.build("--append") == 0
    assert finished.open().manifest.generation == 2


def test_a_damaged_manifest_is_made_again(finished: Project) -> None:
    manifest = finished.output / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[: len(whole) // 2])
    for slip in (another_corpus, other_chunks):
        settings = json.loads(json.dumps(finished.settings))
        slipped = Project(finished.folder, finished.texts, settings)
        slip(slipped)
        assert slipped.build() == 2
    assert finished.build() == 0
    assert manifest.read_bytes() == whole


def test_a_removal_that_was_stopped_is_no_append(finished: Project) -> None:
    left = finished.output / "generations" / "0002" / "removed.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of")
    assert finished.build("--set", "neighbors.k=2") == 0
    assert not left.exists()


def test_a_database_of_a_later_format_is_not_replaced(
    finished: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    later = manifest_of(finished.output) | {"version": "2.0"}
    seal(finished.output, later)
    assert finished.build() == 2
    assert "format version 2.0" in capsys.readouterr().err
    assert manifest_of(finished.output) == later


def test_options_that_replace_nothing_take_no_overwrite(
    finished: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--append", "--smoke"):
        assert finished.build(option, "--overwrite") == 2
        assert "--overwrite belongs to a build" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["corpus", "db"])
def test_the_demo_replaces_only_what_it_made(tmp_path: Path, name: str) -> None:
    own = tmp_path / name / "own.py"
    own.parent.mkdir()
    own.write_text("pass")
    with pytest.raises(ConfigError, match="is not the demo's"):
        write_config(tmp_path, 3)
    assert own.exists()
    (tmp_path / "demo.yaml").write_text("output: db")
    with pytest.raises(ConfigError, match="is not the demo's"):
        write_config(tmp_path, 3)
    write_config(tmp_path / "demo", 3)
    write_config(tmp_path / "demo", 4)
    assert len(list((tmp_path / "demo" / "corpus").rglob("*.py"))) == 4
