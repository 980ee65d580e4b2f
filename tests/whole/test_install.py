"""Installing: the wheel, and reading a database where nothing of the build is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
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


# What a package is made of, and a folder that is no part of it.
PACKAGES = ("retro_db", "pipelines", "schemas")
SOURCE = ("LICENSE", "MANIFEST.in", "Makefile", "README.md", "constraints.txt", "pyproject.toml")
UNPACKAGED = "tests"


@dataclass(frozen=True)
class Made:
    """What `make dist` made.

    Attributes:
        source: Copy of the source that it was run in.
        wheel: The wheel.
        sdist: The source distribution.
        printed: What it printed.
    """

    source: Path
    wheel: Path
    sdist: Path
    printed: str


def copy_source(target: Path) -> None:
    for name in (*PACKAGES, UNPACKAGED):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in SOURCE:
        shutil.copy2(ROOT / name, target / name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Wheel and source distribution, built by `make dist` with the environment of the tests."""
    source = tmp_path_factory.mktemp("source")
    copy_source(source)
    installed = "--old-file=.venv/.retro-db-installed"
    command = ["make", "dist", installed, f"bin={Path(sys.executable).parent}"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel], [sdist] = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    return Made(source, wheel, sdist, done.stdout)


@pytest.fixture(scope="module")
def clean_python(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and what it needs, built from this source."""
    folder = tmp_path_factory.mktemp("wheel")
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
        str(made.wheel),
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
    assert "pip install -e '.[build]' in a clone of the repository" in done.stderr
    assert "retro-db[" not in done.stderr  # no index of packages has it
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


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_and_source_distribution_are_checked(made: Made) -> None:
    printed = re.sub(r"\x1b\[\d*m", "", made.printed)
    for path in (made.wheel, made.sdist):
        assert re.search(rf"Checking \S*{re.escape(path.name)}: PASSED", printed), printed
    assert re.search(r"^dist/\S+\.whl: OK$", printed, re.MULTILINE), printed


def test_the_source_distribution_builds_the_wheel_of_the_source(made: Made, tmp_path: Path) -> None:
    """What it leaves out, no wheel needs; `make dist` builds its wheel from it."""
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(made.source)]
    subprocess.run(build, check=True, capture_output=True)
    [straight] = tmp_path.glob("*.whl")
    assert contents(made.wheel) == contents(straight)
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len([name for name in contents(straight) if name.endswith(".py")]) == len(modules)


def test_the_source_distribution_has_the_packages_alone(made: Made) -> None:
    with tarfile.open(made.sdist) as archive:
        names = {Path(name).parts[1] for name in archive.getnames() if "/" in name}
    assert {*PACKAGES, "LICENSE", "README.md", "pyproject.toml"} <= names
    assert UNPACKAGED not in names
