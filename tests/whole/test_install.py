"""Installing: the wheel, and reading a database where nothing of the build is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.places import ROOT
from support.projects import Project

READ = """
import sys
import numpy as np
import retro_db
for name in ("apache_beam", "faiss", "torch", "transformers", "tokenizers", "pydantic", "click"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} is installed")
db = retro_db.open(sys.argv[1])
every = np.arange(len(db))
assert db.chunks[every].shape == (len(db), 64)
assert db.chunks.values(every).shape == (len(db), 128)
assert db.neighbors[every].shape == db.neighbors.distances(every).shape == (len(db), 20)
assert db.embeddings[every].dtype == np.float16
assert db.documents.num_rows == db.manifest.counts.documents
assert retro_db.RetroDataset(db, seq_len=256, k=2)[0]["neighbors"].shape == (4, 2, 128)
print("read", len(db), "chunks with", retro_db.__file__)
"""


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and what it needs, built from this source."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        str(ROOT / "constraints.txt"),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return python


def test_reading_needs_nothing_of_the_build(
    clean_python: Path, small: Project, tmp_path: Path
) -> None:
    done = subprocess.run(
        [clean_python, "-c", READ, str(small.output)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"read {len(small.open())} chunks" in done.stdout
    assert str(clean_python.parents[1]) in done.stdout


def test_the_command_says_what_it_lacks(clean_python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [clean_python.with_name("retro-db"), "inspect", "db"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert "retro-db[build]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_editable_install_finds_all_three_packages() -> None:
    code = (
        "import retro_db, retro_db_pipelines, retro_db_schemas; from importlib import resources;"
        "print(resources.files('retro_db_schemas').joinpath('chunks.json').is_file())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True
    )
    assert done.stdout == "True\n"
