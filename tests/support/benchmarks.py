"""Benchmarks, each as a process of its own."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

from support.places import ROOT

BENCHMARKS = ROOT / "benchmarks"


def printed_by(name: str, *options: str, folder: Path) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def synthetic(count: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float16 [count, dimension] as the benchmarks make them, and the document of each, int64."""
    embeddings, documents = runpy.run_path(str(BENCHMARKS / "vectors.py"))["vectors"](
        count, dimension
    )
    return embeddings, documents.astype(np.int64)
