"""Disks that are small, and disks that fail."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def failing_disk_at(ending: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk on which no file takes a name that ends so."""
    real = os.replace

    def fail(source: Any, target: Any) -> None:
        if str(target).endswith(ending):
            raise OSError(errno.EIO, "Input/output error", str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        yield


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A disk of its own."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True
    )
    if made.returncode:
        assert "CI" not in os.environ, made.stderr
        pytest.skip(f"no disk can be mounted here: {made.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
