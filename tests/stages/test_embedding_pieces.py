"""A part that was half embedded goes on with the window behind the last piece, to the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from retro_db.encoder import embedded_windows, embedding
from retro_db_pipelines.stages import embed
from support.disks import failing_disk_at
from support.projects import Project, make_project
from support.texts import python_sources

WINDOW = 32


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text[:4000] for text in python_sources(17)]


@pytest.fixture(autouse=True)
def _a_piece_for_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (embedding, embed):
        monkeypatch.setattr(module, "WINDOW_ROWS", WINDOW)
    monkeypatch.setattr(embedded_windows, "_SECONDS", 0.0)


def embedded(project: Project) -> int:
    """WordPieces that the last build embedded."""
    report = json.loads((project.output / "report" / "stages.json").read_text())
    return int(report["stages"]["embed"]["work"]["counts"]["tokens"])


def stop_at(project: Project, first: int, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stops a build while it writes the piece that begins with a row; the pieces that it leaves."""
    with failing_disk_at(f"{first:010d}", monkeypatch):
        assert project.build() == 3
    return sorted(
        path for path in (project.output / "state" / "embedding").rglob("*") if path.is_file()
    )


def test_a_stopped_part_goes_on_behind_its_last_piece(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_project(tmp_path / "whole", texts)
    assert whole.build() == 0
    assert not (whole.output / "state" / "embedding").exists()
    project = make_project(tmp_path / "stopped", texts)
    chunks = whole.open().manifest.counts.chunks
    assert chunks > 4 * WINDOW
    left = stop_at(project, 3 * WINDOW, monkeypatch)
    assert [path.name for path in left] == [f"{n * WINDOW:010d}" for n in range(3)]
    assert project.build() == 0
    assert project.files() == whole.files()
    assert embedded(project) < embedded(whole) * (1 - 2.5 * WINDOW / chunks)
    assert not (project.output / "state" / "embedding").exists()


def cut(piece: Path) -> None:
    os.truncate(piece, piece.stat().st_size - 96)


def lose(piece: Path) -> None:
    piece.unlink()


def empty(piece: Path) -> None:
    os.truncate(piece, 0)


def flip(piece: Path) -> None:
    data = bytearray(piece.read_bytes())
    data[100] ^= 1
    piece.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, lose, empty, flip])
def test_pieces_end_at_the_first_that_is_not_whole(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    whole = make_project(tmp_path / "whole", texts)
    assert whole.build() == 0
    project = make_project(tmp_path / "stopped", texts)
    harm(stop_at(project, 3 * WINDOW, monkeypatch)[1])
    assert project.build() == 0
    assert project.files() == whole.files()


def test_pieces_of_other_settings_are_not_joined(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "stopped", texts)
    assert stop_at(project, 2 * WINDOW, monkeypatch)
    whole = make_project(tmp_path / "whole", texts)
    for other in (project, whole):
        other.settings["encoder"]["max_length"] = 30
        assert other.build() == 0
    assert project.files() == whole.files()
    assert embedded(project) == embedded(whole)
    assert not (project.output / "state" / "embedding").exists()
