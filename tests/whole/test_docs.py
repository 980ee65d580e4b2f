"""The pages name every flag, and what they tell people to type is understood."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from retro_db.config import Config
from retro_db_pipelines.commands.cli import cli
from retro_db_pipelines.engine.runner import Engine
from support.places import COMMAND, ROOT
from support.projects import Project

README = ROOT / "README.md"
RUNNING = ROOT / "docs" / "running.md"
TUTORIAL = RUNNING.with_name("tutorial.md")
INDEX = RUNNING.with_name("choosing-an-index.md")
GUARANTEES = RUNNING.with_name("guarantees.md")
SECURITY = ROOT / "SECURITY.md"
LEAKAGE = RUNNING.with_name("leakage.md")
MEGATRON = RUNNING.with_name("megatron.md")
TRAINING = RUNNING.with_name("training.md")
PAGES = [README, RUNNING, RUNNING.with_name("format.md"), LEAKAGE]
_RUN = re.compile(r"^```(sh|python|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks_of(page: Path, language: str) -> list[str]:
    return [block for own, block in _RUN.findall(page.read_text("utf-8")) if own == language]


def commands(page: Path) -> Iterator[list[str]]:
    """What a page tells people to type, but for descriptions of what may be typed."""
    for block in _BLOCK.findall(page.read_text("utf-8")):
        for line in re.sub(r"\\\n *", "", block).splitlines():
            if re.match(r" *(\S*/)?(retro-db|python3? -m retro_db_pipelines\.\w+) ", line) and not (
                {"|", "[--json]", "...]"} & set(line.split()) or "[--" in line
            ):
                yield shlex.split(line, comments=True)


@pytest.mark.parametrize(
    "page", [README, RUNNING, LEAKAGE, MEGATRON, TRAINING], ids=lambda page: page.name
)
def test_every_command_is_understood(page: Path) -> None:
    assert list(commands(page))
    for program, *arguments in commands(page):
        command: click.Command = cli
        context = command.make_context(program, list(arguments))
        if isinstance(command, click.Group):
            name, command, arguments = command.resolve_command(context, arguments)
            context = command.make_context(name, arguments, parent=context)
        Engine(context.params.get("workers"), context.params.get("beam_options", ()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_python_runs(
    page: Path, small: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, as someone types them who has run `make demo`."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "db").symlink_to(small.output)
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(page, "python")
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        # The bucket of the examples is nobody's.
        exec(block.replace("s3://bucket/db", "demo/db"), names)  # noqa: S102 - our own pages


@pytest.mark.parametrize("page", [TUTORIAL, INDEX], ids=lambda page: page.name)
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom in an empty folder, as a stranger would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(COMMAND.parent), prepend=os.pathsep)
    names: dict[str, Any] = {"__name__": "tutorial"}
    blocks = _RUN.findall(page.read_text("utf-8"))
    assert blocks
    for language, block in blocks:
        if language == "sh":
            done = subprocess.run(["bash", "-euc", block], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        else:
            assert language == "python"
            exec(block, names)  # noqa: S102 - our own pages
    if page is TUTORIAL:
        assert names["losses"][-1] < names["losses"][0]
        assert names["state"]


@pytest.mark.parametrize("page", [README, LEAKAGE], ids=lambda page: page.name)
def test_settings_in_yaml_are_settings(page: Path) -> None:
    required = {"output": "db", "corpus": [{"name": "a", "paths": ["a"]}]}
    required |= {"tokenizer": {"path": "t"}, "encoder": {"model": "m"}}
    blocks = blocks_of(page, "yaml")
    assert blocks
    for block in blocks:
        Config.model_validate(required | yaml.safe_load(block))


def test_every_flag_is_told() -> None:
    text = README.read_text("utf-8")
    for name, command in cli.commands.items():
        for parameter in command.params:
            for flag in [o for o in parameter.opts if isinstance(parameter, click.Option)]:
                assert flag in text, f"retro-db {name} {flag}"


def test_every_flag_of_a_build_is_told_once() -> None:
    rows = re.findall(r"^\| `(--[\w-]+)[^|]*\| ", RUNNING.read_text("utf-8"), re.MULTILINE)
    flags = [o for p in cli.commands["build"].params if isinstance(p, click.Option) for o in p.opts]
    assert sorted(flag for flag in flags if rows.count(flag) == 1) == sorted(flags)


def test_every_promise_names_tests_that_exist() -> None:
    promises = README.read_text("utf-8").split("## What is guaranteed")[1].split("\n## ")[0]
    secured = SECURITY.read_text("utf-8").split("## What is promised")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (`.+`) \|$", GUARANTEES.read_text("utf-8"), re.MULTILINE))
    for promise in re.findall(r"^- \*\*(.+?)\.\*\*", promises, re.MULTILINE):
        assert promise in rows
    for promise in re.findall(r"^\*\*(.+?)\*\*", secured, re.MULTILINE):
        assert any(row.startswith(promise) for row in rows), promise
    for file, test in re.findall(r"`(\S+)::(\w+)`", " ".join(rows.values())):
        assert f"\ndef {test}(" in (ROOT / file).read_text("utf-8"), test
