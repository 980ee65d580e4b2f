"""The same build elsewhere: what every test of an engine compares."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from support.places import COMMAND
from support.projects import Project, make_project
from support.texts import python_sources


def elsewhere(project: Project, folder: Path) -> Project:
    """The same corpus and settings with another output."""
    folder.mkdir(exist_ok=True)
    return replace(
        project, folder=folder, settings=project.settings | {"output": str(folder / "db")}
    )


def check_equals_local(folder: Path, *options: str) -> None:
    """Builds a small database in this process and by Beam's options, and compares every file.

    The second build is a command of its own, and prints no line that is not ours. It joins in partitions.
    """
    local = make_project(
        folder / "local",
        python_sources(30),
        chunk={"shard_size": 5_000},
        index={"key": "IVF8,SQ8"},
    )
    assert local.build() == 0
    project = elsewhere(local, folder / "elsewhere")
    command = [str(COMMAND), "build", str(project.config), "--set", "neighbors.partitions=3"]
    command += ["--", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert project.files() == local.files()
