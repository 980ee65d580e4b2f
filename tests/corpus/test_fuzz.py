"""Mutated input files: each builds or is named in one line, and every record is accounted for."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from retro_db_pipelines.commands.cli import run
from support.fuzz import write_case
from support.places import TESTS
from support.projects import make_project
from support.soak import amount

FILES = amount(quick=250, soak=20_000)
BATCH = max(100, FILES // 80)


@pytest.mark.parametrize("first", range(0, FILES, BATCH))
def test_mutated_files_build_or_are_named(first: int) -> None:
    program = f"from support.fuzz import check_batch; check_batch({first}, {first + BATCH})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    seed = done.stdout.split()[-1] if done.stdout else "none"
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    assert seed == str(first + BATCH - 1)


@pytest.mark.parametrize("seed", range(12))
def test_the_command_ends_well_or_names_the_file(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path, ["text to train a tokenizer with"])
    assert run(["stage", "tokenizer", str(project.config)]) == 0
    settings = write_case(tmp_path, random.Random(1_000_000 + seed)) | {"max_bad": 0.001}
    project.settings["tokenizer"] = {"path": str(project.output / "tokenizer")}
    project.settings["output"] = str(tmp_path / "other")
    project.settings["corpus"] = [settings]
    assert run(["stage", "tokenizer", str(project.config)]) == 0
    code = run(["stage", "chunk", str(project.config)])
    error = capsys.readouterr().err
    assert code == 0 or (code == 2 and "file." in error and error.count("\n") == 1)
