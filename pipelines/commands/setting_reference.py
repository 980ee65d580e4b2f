"""Every setting in words, read from the classes of the configuration: for pages and for people who ask."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from retro_db.config import Config, in_units
from retro_db.errors import ConfigError

_PLAIN = {"string": "text", "integer": "whole number", "number": "number"}
_BOUNDS = (
    ("minimum", "from"),
    ("exclusiveMinimum", "above"),
    ("maximum", "to"),
    ("exclusiveMaximum", "below"),
)
_NUMBER = re.compile(r"\.\d+(?=\.|$)|\[\]")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: Name in the configuration, such as `corpus[].paths`.
        values: What it may be, in Markdown.
        default: Its default, in Markdown, or `required`.
        meaning: What it means.
    """

    name: str
    values: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """One section of the configuration.

    Attributes:
        name: Name in the configuration, such as `corpus[]`; empty for the top level.
        meaning: What its settings are about.
        settings: The settings in it, without those of sections inside it.
    """

    name: str
    meaning: str
    settings: list[Setting]


def sections() -> list[Section]:
    """All sections, each before those inside it."""
    schema = Config.model_json_schema()
    return list(_sections(schema, schema, ""))


def _sections(whole: Mapping[str, Any], schema: Mapping[str, Any], name: str) -> Iterator[Section]:
    prefix = f"{name}." if name else ""
    settings = [
        _setting(f"{prefix}{own_name}", setting, is_required=own_name in schema.get("required", ()))
        for own_name, setting in schema["properties"].items()
        if "$ref" not in setting
    ]
    yield Section(name, " ".join(schema["description"].split()), settings)
    for own_name, setting in schema["properties"].items():
        if definition := _definition(setting):
            listed = "[]" if setting.get("type") == "array" else ""
            yield from _sections(whole, whole["$defs"][definition], f"{prefix}{own_name}{listed}")


def _definition(setting: Mapping[str, Any]) -> str | None:
    """The definition that a setting has in the schema if it is a section, or a list of them."""
    for candidate in (setting, setting.get("items", {}), *setting.get("anyOf", ())):
        if "$ref" in candidate:
            return str(candidate["$ref"]).removeprefix("#/$defs/")
    return None


def _setting(name: str, setting: Mapping[str, Any], *, is_required: bool) -> Setting:
    default = "required" if is_required else _default(setting)
    return Setting(name, _values(setting), default, " ".join(setting["description"].split()))


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
    bounds = "".join(f" {word} {setting[bound]:,g}" for bound, word in _BOUNDS if bound in setting)
    return f"{_PLAIN[kind]}{bounds}"


def _default(setting: Mapping[str, Any]) -> str:
    default = setting["default"]
    if default is None or isinstance(default, bool):
        return f"`{'null' if default is None else str(default).lower()}`"
    if any("pattern" in alternative for alternative in setting.get("anyOf", ())):
        return f"`{in_units(default).replace('.0', '')}`"
    return f"`{default}`"


def look_up(name: str) -> tuple[Section, list[Setting]]:
    """A setting with the section that it is in, or a section with all of its settings.

    Args:
        name: Name in the configuration; positions in lists may be left out, or be any number.

    Raises:
        ConfigError: There is no such setting; the message has names that may be meant.
    """
    plain = _NUMBER.sub("", name)
    known: dict[str, tuple[Section, list[Setting]]] = {}
    for section in sections():
        known |= {_NUMBER.sub("", own.name): (section, [own]) for own in section.settings}
        known[_NUMBER.sub("", section.name)] = (section, section.settings)
    del known[""]
    if plain in known:
        return known[plain]
    near = [other for other in known if plain in other.rsplit(".", 1)[-1].split("_")]
    near = near or difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "retro-db config explain lists them"
    raise ConfigError(f"{name}: no setting has this name; {hint}")
