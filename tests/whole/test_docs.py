"""The pages are right: commands and code in them run, tables follow their sources, links lead somewhere."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import retro_db
from retro_db.config import Config
from retro_db.config_files import INCLUDE
from retro_db_pipelines.commands.cli import cli
from retro_db_pipelines.engine.runner import Engine
from retro_db_pipelines.stages import STAGES
from support.places import COMMAND, ROOT
from support.projects import Project

DOCS = ROOT / "docs"
README = ROOT / "README.md"
SECURITY = ROOT / "SECURITY.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
PAGES = [README, SECURITY, CONTRIBUTING, *sorted(DOCS.glob("*.md"))]
TUTORIAL = DOCS / "tutorial.md"
COMMANDS = DOCS / "commands.md"
GUARANTEES = DOCS / "guarantees.md"
# Their blocks are typed one after the other in an empty folder, and not beside the demo.
ALONE = [TUTORIAL, DOCS / "choosing-an-index.md"]
RENDERED = runpy.run_path(str(DOCS / "generate.py"))["rendered"]
_RUN = re.compile(r"^```(sh|python|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^( *)```.*?\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"")
_PROMISE = re.compile(r"^- \*\*(.+?)\.?\*\*", re.MULTILINE)


def blocks_of(page: Path, language: str) -> list[str]:
    return [block for own, block in _RUN.findall(page.read_text("utf-8")) if own == language]


def with_blocks(language: str) -> list[Path]:
    pages = [page for page in PAGES if page not in ALONE and blocks_of(page, language)]
    assert README in pages
    return pages


def commands(page: Path) -> Iterator[list[str]]:
    """What a page tells people to type."""
    for _, block in _BLOCK.findall(page.read_text("utf-8")):
        for line in re.sub(r"\\\n *", "", block).splitlines():
            if re.match(r" *(\S*/)?(retro-db|python3? -m retro_db_pipelines\.\w+) ", line):
                yield shlex.split(line, comments=True)


def all_commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """Every command by its name, those in groups behind the name of the group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {own}", inner) for own, inner in all_commands(command))
        else:
            yield name, command


def section(page: Path, title: str) -> str:
    """The text below a heading, up to the next one of its level."""
    return page.read_text("utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page, so that links can name them."""
    text = _BLOCK.sub("", page.read_text("utf-8"))
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in anchors
        )
        anchors.add(f"{slug}-{number}" if number else slug)
    return anchors


def named(page: Path) -> str:
    return page.stem


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 180


def test_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    shown, measured = section(README, "How fast"), RESULTS.read_text("utf-8")
    figures = re.findall(r"(?<![\w.])\d+(?:[.,]\d+)+(?![\w.]*\.md)", shown)
    assert len(figures) > 8
    for figure in figures:
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d]|[.,]\d)", measured), figure


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text("utf-8"))
    for link in ["".join(either) for either in _LINK.findall(text)]:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What a trainer takes: [N, F]\n\n## `manifest.json`\n\n## corpus[]\n\n## Twice\n\n## Twice\n\n"
        "```\n# no heading\n```\n\n## What `make` does, and why\n"
    )
    assert anchors(page) == {
        *("what-a-trainer-takes-n-f", "manifestjson", "corpus", "twice", "twice-1"),
        "what-make-does-and-why",
    }


def test_every_page_is_in_the_site_and_in_the_readme() -> None:
    listed = re.findall(r"^([a-z-]+)$", (DOCS / "index.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in DOCS.glob("*.md") if page.stem != "index")
    page_text = README.read_text("utf-8")
    for page in DOCS.glob("*.md"):
        # The site alone has these: what others describe, and what lies beside the README.
        if page.stem not in ("index", "api", "security", "contributing", "results", "changelog"):
            assert f"(docs/{page.name})" in page_text, page.name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_generated_is_what_its_source_says(page: Path) -> None:
    text = page.read_text("utf-8")
    assert RENDERED(text) == text, "run make schemas"


def test_every_setting_and_every_command_is_generated() -> None:
    assert "<!-- generated: settings -->" in (DOCS / "configuration.md").read_text("utf-8")
    generated = re.findall(r"<!-- generated: command ([\w ]+) -->", COMMANDS.read_text("utf-8"))
    assert sorted(generated) == sorted(name for name, _ in all_commands(cli))


def test_every_flag_is_told() -> None:
    text = COMMANDS.read_text("utf-8")
    for name, command in all_commands(cli):
        told = text.split(f"<!-- generated: command {name} -->")[1].split("<!-- end of")[0]
        for parameter in command.params:
            for flag in [o for o in parameter.opts if isinstance(parameter, click.Option)]:
                assert f"| `{flag}" in told, f"retro-db {name} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_is_understood(page: Path) -> None:
    for program, *arguments in commands(page):
        command: click.Command = cli
        context = command.make_context(program, list(arguments))
        while isinstance(command, click.Group):
            name, command, arguments = command.resolve_command(context, arguments)
            context = command.make_context(name, arguments, parent=context)
        Engine(context.params.get("workers"), context.params.get("beam_options", ()))


def test_commands_are_found_in_pages() -> None:
    assert ["retro-db", "verify", "db"] in list(commands(README))
    assert sum(len(list(commands(page))) for page in PAGES) > 50


@pytest.mark.parametrize("page", with_blocks("python"), ids=named)
def test_every_block_of_python_runs(
    page: Path, small: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, as someone types them who has run `make demo`."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "db").symlink_to(small.output)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks_of(page, "python"):
        # The bucket of the examples is nobody's.
        exec(block.replace('"s3://bucket/db"', '"demo/db"'), names)  # noqa: S102 - our own pages


@pytest.mark.parametrize("page", ALONE, ids=named)
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


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=named)
def test_settings_in_yaml_are_settings(page: Path) -> None:
    required = {"output": "db", "corpus": [{"name": "a", "paths": ["a"]}]}
    required |= {"tokenizer": {"path": "t"}, "encoder": {"model": "m"}}
    for block in blocks_of(page, "yaml"):
        settings = required | yaml.safe_load(block)
        settings.pop(INCLUDE, None)
        Config.model_validate(settings)


def test_every_promise_names_tests_that_exist() -> None:
    promises = _PROMISE.findall(section(GUARANTEES, "What is promised"))
    secured = section(SECURITY, "What is promised")
    rows = dict(re.findall(r"^\| (.+?) \| (`.+`) \|$", GUARANTEES.read_text("utf-8"), re.MULTILINE))
    assert promises
    for promise in promises:
        assert promise in rows
    for promise in re.findall(r"^\*\*(.+?)\*\*", secured, re.MULTILINE):
        assert any(row.startswith(promise) for row in rows), promise
    for file, test in re.findall(r"`(\S+)::(\w+)`", " ".join(rows.values())):
        assert f"\ndef {test}(" in (ROOT / file).read_text("utf-8"), test


def test_the_readme_names_every_promise() -> None:
    promises = _PROMISE.findall(section(README, "What is guaranteed"))
    assert promises == _PROMISE.findall(section(GUARANTEES, "What is promised"))


def test_the_map_of_the_code_names_every_room_and_every_stage() -> None:
    text = (DOCS / "design.md").read_text("utf-8")
    for folder in ("retro_db", "pipelines"):
        for room in (ROOT / folder).glob("*/__init__.py"):
            assert f"`{room.parent.name}`" in text, room.parent
    sources = [path.read_text("utf-8") for path in (ROOT / "pipelines").rglob("*.py")]
    lines = set(re.findall(r'stage: ClassVar\[str\] = "(\w+)"', "".join(sources)))
    assert set(STAGES) - {"index"} <= lines
    for stage in lines:
        assert f"`{stage}`" in text, stage


def test_what_contributors_are_sent_to_is_there() -> None:
    page_text = CONTRIBUTING.read_text("utf-8")
    paths = set(re.findall(r"`([\w.]+/[\w./]+)`", page_text))
    assert len(paths) > 15
    for path in paths:
        assert re.search("NAME|TABLE|_build", path) or (ROOT / path).exists(), path
    sources = [*(ROOT / "retro_db").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
    code = "".join(path.read_text("utf-8") for path in sources)
    names = set(re.findall(r"`(?:\w+\.)*([A-Z_]\w+)`", page_text)) - {"NAME_stage"}
    assert len(names) > 15
    for name in names:
        assert re.search(rf"\b{name}\b", code), name


def test_the_reference_names_everything_that_is_exported() -> None:
    text = (DOCS / "api.md").read_text("utf-8")
    for name in retro_db.__all__:
        assert re.search(rf"^\.\. auto\w+:: {name}(\(\))?$", text, re.MULTILINE), name
        assert getattr(retro_db, name).__doc__, name


def test_a_query_is_drawn(small: Project) -> None:
    pictures = runpy.run_path(str(DOCS / "pictures.py"))
    drawn = pictures["picture_of_query"](str(small.output), "read a file", 2)
    assert drawn.startswith("<svg")
    assert "retro-db&#160;query" in drawn


def test_without_a_browser_the_pictures_end_with_an_error(
    small: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = runpy.run_path(str(DOCS / "pictures.py"))
    monkeypatch.setitem(pictures["main"].callback.__globals__, "IMAGES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        pictures["main"].main([str(small.output)])
    assert ended.value.code == 3
    assert "browser" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["query.svg"]
