"""`make schemas` writes tables of settings and commands into the pages, from the class and the command line.

A page holds them between two comments. The first names what stands there: `settings`, or `command` and the
name of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from retro_db.config import Config, in_units
from retro_db_pipelines.commands.cli import cli

PAGES = Path(__file__).resolve().parent
_BLOCK = re.compile(
    r"(<!-- generated: (\w+) ?(\w*) -->\n).*?(<!-- end of generated -->)", re.DOTALL
)
_FLAG = re.compile(r"(?<![\w-])--[\w-]*(?:=\w+| [\w.]+=\w+)?")
_PLAIN = {"string": "text", "integer": "whole number", "number": "number"}


def settings() -> str:
    """A heading, a sentence and a table for each section of the configuration."""
    schema = Config.model_json_schema()
    sections = _sections(schema, schema, "")
    return "\n\n".join(_section(name, section) for name, section in sections)


def _sections(
    whole: Mapping[str, Any], schema: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A section of the configuration, and those inside it, each by its name."""
    yield prefix, schema
    for name, setting in schema["properties"].items():
        if name != "queries" and (definition := _definition(setting)):
            listed = "[]" if setting.get("type") == "array" else ""
            yield from _sections(whole, whole["$defs"][definition], f"{prefix}{name}{listed}.")


def _definition(setting: Mapping[str, Any]) -> str | None:
    """The definition that a setting has in the schema if it is a section, or a list of them."""
    for candidate in (setting, setting.get("items", {}), *setting.get("anyOf", ())):
        if "$ref" in candidate:
            return str(candidate["$ref"]).removeprefix("#/$defs/")
    return None


def _section(prefix: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"`{prefix}{name}`",
            _values(setting),
            "required" if name in required else _default(setting),
            setting.get("description", ""),
        )
        for name, setting in schema["properties"].items()
        if "$ref" not in setting
    ]
    title = prefix.rstrip(".") or "Top level"
    table = _table(("setting", "values", "default", "meaning"), rows)
    return f"## {title}\n\n{schema['description']}\n\n{table}"


def _values(setting: Mapping[str, Any]) -> str:
    """What a setting may be, in words."""
    if alternatives := setting.get("anyOf"):
        if any("pattern" in alternative for alternative in alternatives):
            alternatives = [a for a in alternatives if a.get("type") not in ("string", "integer")]
            return ", ".join(["size", *map(_values, alternatives)])
        return ", ".join(map(_values, alternatives))
    if "$ref" in setting:
        return "section"
    if choices := setting.get("enum") or [setting[name] for name in ("const",) if name in setting]:
        return ", ".join(f"`{choice}`" for choice in choices)
    kind = setting["type"]
    if kind == "array":
        return "list of sections" if "$ref" in setting["items"] else "list of texts"
    if kind in ("boolean", "null"):
        return "`true`, `false`" if kind == "boolean" else "`null`"
    return f"{_PLAIN[kind]}{_bounds(setting)}"


def _bounds(setting: Mapping[str, Any]) -> str:
    words = (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("exclusiveMaximum", "below"),
    )
    return "".join(f" {word} {setting[name]:,g}" for name, word in words if name in setting)


def _default(setting: Mapping[str, Any]) -> str:
    default = setting["default"]
    if default is None or isinstance(default, bool):
        return f"`{'null' if default is None else str(default).lower()}`"
    if any("pattern" in alternative for alternative in setting.get("anyOf", ())):
        return f"`{in_units(default).replace('.0', '')}`"
    return f"`{default}`"


def command(name: str) -> str:
    """How a command is called, what it does, and a table of its options."""
    described = cli.commands[name]
    context = click.Context(described, info_name=f"retro-db {name}")
    usage = described.get_usage(context).removeprefix("Usage: ")
    description = "\n\n".join(map(_prose, (described.help or "").split("\n\n")))
    rows = [
        (_flags(option, context), _option_default(option), _prose(option.help or ""))
        for option in described.params
        if isinstance(option, click.Option)
    ]
    return f"`{' '.join(usage.split())}`\n\n{description}\n\n{_table(('option', 'default', 'meaning'), rows)}"


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
