"""`make schemas` writes tables of settings and commands into the pages, from the class and the command line.

A page holds them between two comments. The first names what stands there: `settings`, or `command` and the
name of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from retro_db_pipelines.commands.cli import cli
from retro_db_pipelines.commands.setting_reference import Section, sections

PAGES = Path(__file__).resolve().parent
_BLOCK = re.compile(
    r"(<!-- generated: (\w+) ?([\w ]*) -->\n).*?(<!-- end of generated -->)", re.DOTALL
)
_FLAG = re.compile(r"(?<![\w-])--[\w-]*(?:=\w+| [\w.]+=\w+)?")


def settings() -> str:
    """A heading, a sentence and a table for each section of the configuration."""
    # The page says that a query corpus has the settings of a source.
    return "\n\n".join(_section(section) for section in sections() if section.name != "queries[]")


def _section(section: Section) -> str:
    rows = [
        (f"`{setting.name}`", setting.values, setting.default, setting.meaning)
        for setting in section.settings
    ]
    table = _table(("setting", "values", "default", "meaning"), rows)
    return f"## {section.name or 'Top level'}\n\n{section.meaning}\n\n{table}"


def command(name: str) -> str:
    """How a command is called, what it does, and a table of its options.

    Args:
        name: Name of the command, behind that of its group if it is in one.
    """
    described: Any = cli
    for word in name.split():
        described = described.commands[word]
    context = click.Context(described, info_name=f"retro-db {name}")
    usage = described.get_usage(context).removeprefix("Usage: ")
    description = "\n\n".join(map(_prose, (described.help or "").split("\n\n")))
    rows = [
        (_flags(option, context), _option_default(option), _prose(option.help or ""))
        for option in described.params
        if isinstance(option, click.Option)
    ]
    table = f"\n\n{_table(('option', 'default', 'meaning'), rows)}" if rows else ""
    return f"`{' '.join(usage.split())}`\n\n{description}{table}"


def _flags(option: click.Option, context: click.Context) -> str:
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    return ", ".join(f"`{flag}{value}`" for flag in option.opts)


def _option_default(option: click.Option) -> str:
    if option.required:
        return "required"
    return f"`{option.default}`" if option.show_default else ""


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_cell, line))} |" for line in (headers, *rows)]
    return "\n".join([lines[0], "|---" * len(headers) + "|", *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _prose(text: str) -> str:
    """A help text as Markdown: flags, with their values, as code."""
    return _FLAG.sub(r"`\g<0>`", " ".join(text.split()))


_RENDERERS: dict[str, Callable[..., str]] = {"settings": settings, "command": command}


def rendered(page: str) -> str:
    """The text of a page with what is generated as it should be."""

    def block(match: re.Match[str]) -> str:
        begin, renderer, argument, end = match.groups()
        return f"{begin}\n{_RENDERERS[renderer](*filter(None, [argument]))}\n\n{end}"

    return _BLOCK.sub(block, page)


def main() -> None:
    """Writes the pages that are not as they should be."""
    for path in sorted(PAGES.glob("*.md")):
        written = path.read_text("utf-8")
        if (wanted := rendered(written)) != written:
            path.write_text(wanted, "utf-8")


if __name__ == "__main__":
    main()
