"""Texts that corpora are made of: none of them is made up."""

from __future__ import annotations

import functools
import os
import re
import sysconfig
from pathlib import Path

import pytest

from support.places import SHARED

_HEADING = re.compile(r"^(?= = [^=].* = $)", re.MULTILINE)


def wikitext(name: str) -> list[str]:
    """Articles of WikiText-2, each an exact slice of the file."""
    path = SHARED / "corpora" / "wikitext-2" / name
    if not path.exists():
        assert "CI" not in os.environ, f"{path} is missing"
        pytest.skip(f"{path} is not here")
    return [part for part in _HEADING.split(path.read_text("utf-8")) if part.strip()]


def python_sources(count: int) -> list[str]:
    """Short modules of the standard library."""
    return [file.read_text("utf-8") for file in _short_modules()[:count]]


@functools.cache
def _short_modules() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    files = [p for p in sorted(library.rglob("*.py")) if 1_000 < p.stat().st_size < 4_000]
    return [p for p in files if not {"test", "tests", "site-packages"} & set(p.parts)]
