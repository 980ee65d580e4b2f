"""What cannot end well is refused before the first stage, in one line that says what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.disks import small_disk
from support.processes import Command
from support.projects import Project, make_project, remove_documents
from support.texts import python_sources


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """About 400 chunks."""
    return make_project(tmp_path, python_sources(40))


def refused(project: Project, capsys: Any, code: int, *words: str) -> None:
    """The build ends with the code and one line with the words, and no stage has begun."""
    capsys.readouterr()
    assert project.build() == code
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    for word in words:
        assert word in told.err
    assert "tokenizer" not in told.out
    assert not (project.output / "tokenizer").exists()


def test_what_a_build_needs_is_said(project: Project, capsys: Any) -> None:
    assert project.build("--dry-run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("check ")]
    assert len(lines) == 2
    assert "about 40 documents" in lines[0]
    for word in ("disk about", "free", "memory", "open files"):
        assert word in lines[1]


def test_a_key_that_the_estimated_chunks_cannot_train(project: Project, capsys: Any) -> None:
    """The estimate is said as it is, and the key that is named trains the corpus as it turns out to be."""
    project.settings["index"] = {"key": "IVF500,SQ8"}
    refused(
        project, capsys, 2, "index.key: IVF500,SQ8 needs 15,000 chunks to train, and the corpus"
    )
    project.build()
    said = capsys.readouterr().err
    estimate, key = re.findall(r"has about (\d+), .*; use auto, or (IVF\d+,SQ8)$", said.strip())[0]
    project.settings["index"] = {"key": key}
    assert project.build() == 0
    chunks = len(project.open())
    assert 0.5 < int(estimate) / chunks < 2


def test_a_disk_that_is_too_small(project: Project, capsys: Any, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "100k"):
        project.settings["output"] = str(tmp_path / "disk" / "db")
        refused(project, capsys, 3, "output: ", "needs about", "free there", "make room")


@pytest.mark.parametrize(("soft", "hard", "code"), [(200, 300, 3), (200, 4000, 0)])
def test_file_handles_are_raised_or_asked_for(
    project: Project, soft: int, hard: int, code: int
) -> None:
    project.settings["chunk"] = {"shard_size": 4000}
    arguments = ["build", str(project.config), "--dry-run"]
    with Command(*arguments, open_files=(soft, hard)) as process:
        out, err = process.communicate()
    assert process.returncode == code, err
    assert ("ulimit -n" in err) == (code == 3)
    assert ("open files" in out) == (code == 0)


LIMITED = """
import resource, sys
from pathlib import Path
from retro_db_pipelines.commands.cli import run
import retro_db_pipelines.builds.build, retro_db_pipelines.builds.append, retro_db_pipelines.builds.compact
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 10**9,) * 2)
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["build", "append", "stage", "compact"])
def test_too_few_addresses_are_refused(
    six: Project, db: Path, tmp_path: Path, command: str
) -> None:
    """Beam would wait for a thread that could not start."""
    (tmp_path / "new.jsonl").write_text('{"text": "something new", "id": "new"}\n')
    config = [str(six.config), "--set", f"output={db}"]
    arguments = {
        "build": ["build", *config, "--set", "neighbors.k=2"],
        "append": [
            *("build", *config, "--append"),
            *("--set", f"corpus.0.paths=[{tmp_path / 'new.jsonl'}]"),
        ],
        "stage": ["stage", "neighbors", *config],
        "compact": ["compact", str(db), str(tmp_path / "new")],
    }
    if command == "compact":
        assert remove_documents(db, ["doc-1"]) == 0
    program = [sys.executable, "-c", LIMITED, *arguments[command]]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: ulimit -v: ")
    assert done.stderr.count("\n") == 1
