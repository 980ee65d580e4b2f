"""Each benchmark runs, on little, and prints the figures that it is there for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import Project, wikitext

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def printed_by(name: str, *options: str, folder: Path) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_chunking(tmp_path: Path) -> None:
    told = printed_by("chunking.py", "--megabytes=1", "--rounds=1", folder=tmp_path)
    assert "one worker of one thread beside encode_batch: " in told
    assert "two workers beside one: " in told
    assert "peak memory, ten times the corpus beside one: " in told


def test_embedding(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.write_text(wikitext("valid.txt")[0], "utf-8")
    told = printed_by("embedding.py", "--rounds=1", f"--texts={texts}", folder=tmp_path)
    assert "| a bare loop, its own matrix products | " in told
    assert "padding: " in told


def test_index(tmp_path: Path) -> None:
    options = ["--synthetic=5000", "--rounds=1", "--peers=autofaiss"]
    assert "queries/s at recall 0.99, ours" in printed_by("index.py", *options, folder=tmp_path)


def test_recall(tmp_path: Path, small: Project) -> None:
    told = printed_by("recall.py", str(small.output), folder=tmp_path)
    assert "recall@10 against exact search over other documents: " in told


def test_reading(tmp_path: Path) -> None:
    told = printed_by("reading.py", "--chunks=20000", "--rounds=2", folder=tmp_path)
    assert "[N, F] beside np.memmap: " in told
    assert "sequences of 2,048 tokens with k=2 a second: " in told
    assert "memory of a reader, ten times the database beside one: " in told
