"""What a killed command leaves is in nobody's way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from retro_db.store.folder import Folder
from retro_db.verify import verify_database
from retro_db_pipelines.builds.stage_order import Recipe
from retro_db_pipelines.commands.cli import run
from support.processes import building
from support.projects import Project, remove_documents


def kill_while_writing(folder: Path, path: str) -> None:
    """Kills a process in the midst of writing a file, before it takes its name."""
    pid = os.fork()
    if pid == 0:
        with Folder(str(folder)).writing(path) as temporary:
            temporary.write_bytes(b"half of")
            os._exit(1)
    os.waitpid(pid, 0)
    assert list(folder.rglob(".tmp-*"))


def at(six: Project, db: Path) -> Sequence[str]:
    return ("build", str(six.config), "--set", f"output={db}")


@pytest.mark.parametrize("finished", [True, False])
def test_a_build_killed_while_it_writes_its_manifest(
    six: Project, db: Path, finished: bool
) -> None:
    if not finished:
        (db / "manifest.json").unlink()
    kill_while_writing(db, "manifest.json")
    assert run([*at(six, db), "--dry-run"]) == 0
    assert run(at(six, db)) == 0
    assert not list(db.rglob(".tmp-*"))
    assert (db / "manifest.json").read_bytes() == (six.output / "manifest.json").read_bytes()


def test_what_a_killed_worker_leaves_goes_with_the_build_that_outlived_it(
    six: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path, [], six.settings | {"output": str(tmp_path / "db")})
    stages = Recipe.stages

    def kill(recipe: Recipe) -> Iterator[str]:
        for stage in stages(recipe):
            if stage == "embed":
                kill_while_writing(project.output, "embeddings/part-0000000-0000.arrow")
            yield stage

    monkeypatch.setattr(Recipe, "stages", kill)
    assert project.build() == 0
    assert project.files() == six.files()


@pytest.mark.parametrize("path", ["state/compacting", "manifest.json", "chunks/part.arrow"])
def test_a_compaction_killed_at_any_write(db: Path, tmp_path: Path, path: str) -> None:
    assert remove_documents(db, ["doc-1"]) == 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(["compact", str(db), str(whole)]) == 0
    if path != "state/compacting":
        shutil.copytree(whole, killed)
        (killed / "manifest.json").unlink()
    kill_while_writing(killed, path)
    assert run(["compact", str(db), str(killed)]) == 0
    assert (killed / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert not list(killed.rglob(".tmp-*"))


@pytest.mark.parametrize("path", ["manifest.json", "generations/0002/removed.parquet"])
def test_a_removal_that_was_killed_leaves_a_sound_database(db: Path, path: str) -> None:
    kill_while_writing(db, path)
    assert verify_database(str(db)).problems == []
    assert remove_documents(db, ["doc-1"]) == 0
    assert not list(db.rglob(".tmp-*"))
    assert verify_database(str(db)).problems == []


def test_a_removal_that_was_killed_before_its_manifest_is_no_problem(db: Path) -> None:
    left = db / "generations" / "0002" / "removed.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of")
    checked = verify_database(str(db))
    assert checked.problems == []
    assert "a removal is under way or was stopped" in checked.notes[0]
    assert remove_documents(db, ["doc-1"]) == 0
    assert verify_database(str(db)).problems == []


def test_a_refused_append_is_in_nobodys_way(
    six: Project, db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*at(six, db), "--append"]) == 2
    assert "list only new files" in capsys.readouterr().err
    assert not (db / "generations").exists() or not list((db / "generations").iterdir())
    assert remove_documents(db, ["doc-1"]) == 0
    assert verify_database(str(db)).problems == []


def test_a_file_that_vanishes_before_the_manifest_is_named(six: Project, tmp_path: Path) -> None:
    project = Project(tmp_path, [], six.settings | {"output": str(tmp_path / "db")})
    with building(project, "tune") as process:
        (project.output / "tokenizer" / "tokenizer.json").unlink()
        _, message = process.communicate(timeout=60)
        assert process.wait() == 3, message
    assert "tokenizer/tokenizer.json vanished" in message
    assert message.count("\n") == 1
    assert not (project.output / "manifest.json").exists()
    assert project.build() == 0
    assert project.files() == six.files()
