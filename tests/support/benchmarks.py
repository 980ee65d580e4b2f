"""Benchmarks, each as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.places import ROOT

BENCHMARKS = ROOT / "benchmarks"


def printed_by(name: str, *options: str, folder: Path) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
