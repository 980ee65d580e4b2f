"""A question imports what answers it: torch, transformers, Beam and Faiss take seconds to load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.projects import Project

HEAVY = {"torch", "transformers", "apache_beam", "faiss", "matplotlib", "tokenizers", "scipy"}
_SCRIPT = """
import sys
from retro_db_pipelines.commands.cli import run
run(sys.argv[1:])
print("imported", *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ("--help", set()),
        ("--version", set()),
        ("bogus", set()),
        ("report --help", set()),
        ("build", set()),
        ("build nowhere.yaml", set()),
        ("build nowhere.yaml --refresh", set()),
        ("stage embed nowhere.yaml", set()),
        ("inspect DB", set()),
        ("inspect nowhere", set()),
        ("plan --tokens 1B", {"faiss", "tokenizers"}),
        ("query DB --chunk 0", {"tokenizers"}),
        ("query DB text", HEAVY - {"apache_beam", "matplotlib"}),
        ("verify DB", {"faiss", "tokenizers"}),
    ],
)
def test_a_command_imports_no_more_than_it_needs(
    small: Project, arguments: str, needed: set[str]
) -> None:
    words = [str(small.output) if word == "DB" else word for word in arguments.split()]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *words], capture_output=True, text=True, check=True
    )
    imported = set(done.stderr.splitlines()[-1].split())
    assert "retro_db" in imported
    assert imported & HEAVY <= needed
