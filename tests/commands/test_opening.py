"""`--open` shows the report where there is a desktop, and says where it lies elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from retro_db_pipelines.commands.cli import run
from support.projects import Project


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `xdg-open` was asked to show; a desktop calls the browser in its place."""
    asked = tmp_path / "asked"
    program = tmp_path / "bin" / "xdg-open"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1" > {asked}.part\nmv {asked}.part {asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return asked


def test_a_desktop_shows_the_report(
    small: Project, shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    page = tmp_path / "report.html"
    assert run(["report", str(small.output), "--out", str(page), "--open"]) == 0
    end = time.monotonic() + 60
    while not shown.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert shown.read_text() == f"{page}\n"
    assert page.exists()


def test_without_a_desktop_a_build_says_where_its_report_lies(
    small: Project, shown: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert small.build("--open") == 0
    said = capsys.readouterr().out
    assert f"report     {small.output}/report/report.html\n" in said
    assert "no desktop" in said
    assert not shown.exists()


@pytest.mark.parametrize("option", ["--dry-run", "--smoke"])
def test_nothing_is_opened_of_what_is_not_built(
    small: Project, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert small.build("--open", option) == 2
    assert "--open belongs to a build" in capsys.readouterr().err
