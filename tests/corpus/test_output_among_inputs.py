"""What a build writes is never what it reads, and a smoke build replaces only smoke builds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import retro_db
from retro_db_pipelines.commands.cli import run
from support.projects import Project


@pytest.fixture
def nested(six: Project, tmp_path: Path) -> Project:
    """A corpus whose paths reach the output."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    shutil.copy(six.folder / "corpus.jsonl", folder)
    settings = six.settings | {"output": str(folder / "db"), "queries": []}
    settings["corpus"] = [{"name": "test", "paths": [str(folder)], "id": "id"}]
    return Project(tmp_path, six.texts, settings)


@pytest.mark.parametrize("paths", ["{0}", "{0}/**/*.jsonl", "{0}/*", "{0}/../corpus"])
def test_the_output_is_left_out_of_the_corpus(
    nested: Project, capsys: pytest.CaptureFixture[str], paths: str
) -> None:
    folder = nested.output.parent
    nested.settings["corpus"][0] |= {"paths": [paths.format(folder)], "format": "jsonl"}
    assert nested.build("--smoke", "3") == 0
    assert nested.build() == 0
    first = nested.files()
    capsys.readouterr()
    assert nested.build() == 0
    shown = capsys.readouterr().out
    assert "nothing to do" in shown
    assert ("is among the paths of the corpus, and left out" in shown) == (paths != "{0}/*")
    assert nested.build("--set", "neighbors.k=3") == 0
    assert set(nested.files()) == set(first)
    assert retro_db.open(str(nested.output)).manifest.counts.documents == len(nested.texts)


def test_paths_into_the_output_are_refused(
    nested: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nested.build() == 0
    before = nested.files()
    nested.settings["corpus"][0]["paths"] = [str(nested.output / "documents" / "*")]
    assert nested.build() == 2
    assert "corpus.0.paths.0: " in (message := capsys.readouterr().err)
    assert "lies in the output" in message
    assert nested.files() == before


def test_a_smoke_build_replaces_only_what_one_made(
    six: Project, db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = tmp_path / "X-smoke"
    shutil.copytree(db, real)
    before = (real / "manifest.json").read_bytes()
    project = Project(tmp_path, six.texts, six.settings | {"output": str(tmp_path / "X")})
    assert project.build("--smoke", "3") == 2
    assert "was not made by --smoke" in capsys.readouterr().err
    assert (real / "manifest.json").read_bytes() == before
    assert run(["verify", str(real)]) == 0
    shutil.rmtree(real)
    assert project.build("--smoke", "3") == 0
    assert project.build("--smoke", "4") == 0, "its own it replaces"
