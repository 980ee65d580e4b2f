"""Commands on a database from somebody else write inside it alone, and what they write is on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retro_db.store.folder import Folder
from retro_db_pipelines.commands.cli import run
from support.projects import Project, remove_documents


def remove(project: Project, db: Path) -> int:
    return remove_documents(db, ["doc-1"])


def report(project: Project, db: Path) -> int:
    return run(["report", str(db)])


def build(project: Project, db: Path) -> int:
    return run(["build", str(project.config), "--set", f"output={db}", "--set", "neighbors.k=3"])


def append(project: Project, db: Path) -> int:
    return run(["build", str(project.config), "--set", f"output={db}", "--append"])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("state/lock", remove),
        ("state/fence", remove),
        ("generations", remove),
        ("report", report),
        ("state", build),
        ("state/lock", build),
        ("state/fence", build),
        ("state/build.log", build),
        ("state/records", build),
        ("report", build),
        ("neighbors", build),
        ("generations", append),
    ],
)
def test_nothing_behind_a_link_is_changed(
    six: Project,
    db: Path,
    tmp_path: Path,
    name: str,
    command: Callable[[Project, Path], int],
) -> None:
    outside = tmp_path / "outside"
    if name in ("generations", "state", "state/records", "report", "neighbors"):
        if (db / name).exists():
            shutil.move(db / name, outside)
        else:
            outside.mkdir()
        (outside / "private").write_text("of somebody else")
    else:
        (db / name).unlink(missing_ok=True)
        outside.write_text("of somebody else")
    (db / name).symlink_to(outside)
    before = contents(outside)
    assert command(six, db) != 0
    assert contents(outside) == before


def contents(place: Path) -> dict[str, bytes]:
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    return {str(file): file.read_bytes() for file in files}


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "private").touch()
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "chunks").symlink_to(tmp_path / "outside")
    Folder(str(tmp_path / "db")).remove("chunks")
    assert not (tmp_path / "db" / "chunks").is_symlink()
    assert (tmp_path / "outside" / "private").exists()


def test_new_folders_are_synced_into_those_that_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    Folder(str(tmp_path / "new" / "db")).write("generations/0002/state/finished", b"yes")
    new = tmp_path / "new" / "db" / "generations" / "0002" / "state"
    holders = {str(folder) for folder in [new, *new.parents] if folder.is_relative_to(tmp_path)}
    assert holders <= set(synced)
