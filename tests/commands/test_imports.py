"""A question imports what answers it: torch, transformers, Beam and Faiss take seconds to load."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from support.places import COMMAND, ROOT
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
        ("config --help", set()),
        ("config check nowhere.yaml", set()),
        ("config explain neighbors.k", set()),
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


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("retro-db bu", ["build"]),
        ("retro-db stage em", ["embed"]),
        ("retro-db build --sm", ["--smoke"]),
        ("retro-db verify --recomp", ["--recompute"]),
    ],
)
def test_the_shell_completes_what_is_typed(words: str, completed: list[str]) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    environment = os.environ | asked | {"_RETRO_DB_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [COMMAND], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [f"plain,{word}" for word in completed]
    assert done.stderr == ""


def test_completing_imports_nothing_heavy() -> None:
    asked = {"COMP_WORDS": "retro-db bu", "COMP_CWORD": "1", "_RETRO_DB_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "plain,build\n"
    imported = set(done.stderr.splitlines()[-1].split())
    assert "click" in imported
    assert not imported & HEAVY


def test_the_shells_of_the_page_have_a_script() -> None:
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    shells = re.findall(r"_RETRO_DB_COMPLETE=(\w+)_source retro-db", page)
    assert shells == ["bash", "zsh", "fish"]
    for shell in shells:
        environment = os.environ | {"_RETRO_DB_COMPLETE": f"{shell}_source"}
        done = subprocess.run(
            [COMMAND], env=environment, capture_output=True, text=True, check=True
        )
        assert f"_RETRO_DB_COMPLETE={shell}_complete" in done.stdout
