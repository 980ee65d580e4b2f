"""What is wrong with a configuration, in one line that names the setting and shows what to write."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import pydantic
import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

Location: TypeAlias = tuple[int | str, ...]

# What a value must be, by the type of pydantic's error; its context fills the gaps.
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "byte_size": "a size such as 500MB or 64GiB",
    "byte_size_unit": "a size such as 500MB or 64GiB",
}
_UNKNOWN = ("extra_forbidden", "invalid_key")
_NO_SECTION = ("model_type", "model_attributes_type", "dict_type")
# What to write for settings that have no default, by their names without numbers.
_EXAMPLES = {
    "output": "output: db",
    "corpus": 'corpus: [{name: articles, paths: ["data/*.jsonl"]}]',
    "corpus.name": "name: articles",
    "corpus.paths": 'paths: ["data/*.jsonl"]',
    "queries": 'queries: [{name: asked, paths: ["eval/*.jsonl"]}]',
    "queries.name": "name: asked",
    "queries.paths": 'paths: ["eval/*.jsonl"]',
    "tokenizer": "tokenizer: {train: {vocab_size: 32000}}",
    "tokenizer.train": "train: {vocab_size: 32000}",
    "encoder": "encoder: {model: bert-base-uncased}",
    "encoder.model": "model: bert-base-uncased",
}
_LONGEST = 200
# What to do about a problem of YAML, by the words of the parser.
_YAML_REMEDIES = (
    (r"'\\t'", "indent by spaces, not by tabs"),
    (r"scanning an alias", "put a pattern that begins with * in quotes"),
    (r"that cannot start any token", "put the value in quotes"),
    (r"but got ':'", "put a value with a colon in quotes"),
    (
        r"mapping values are not allowed",
        "put a value with a colon in quotes, or mend the indentation",
    ),
    (r"expected <block end>|could not find expected ':'", "mend the indentation"),
    (r"expected ',' or", "close the bracket"),
)


def explanations(
    error: pydantic.ValidationError, model: type[BaseModel]
) -> list[tuple[Location, str]]:
    """Where each wrong setting of a configuration is, and one line on it; misspelled names come first.

    Args:
        error: What pydantic found.
        model: Class of the whole configuration.
    """
    faults: dict[Location, list[ErrorDetails]] = {}
    # A misspelled setting is also missing under its right name.
    ordered = sorted(
        error.errors(include_url=False), key=lambda fault: fault["type"] not in _UNKNOWN
    )
    for fault in ordered:
        faults.setdefault(_settings_of(fault["loc"], model), []).append(fault)
    return [(location, _explain(location, same, model)) for location, same in faults.items()]


def _explain(location: Location, faults: Sequence[ErrorDetails], model: type[BaseModel]) -> str:
    """One line on a setting, which may be no member of a union for several reasons."""
    first = faults[0]
    kind, value = first["type"], first["input"]
    name = ".".join(str(part) for part in location)
    if kind in _UNKNOWN:
        return f"{name}: unknown setting{_suggestion(location, value, model)}"
    if kind == "missing":
        return f"{name}: missing; {_owner(location)} needs it{_example(location, ', such as')}"
    if kind in ("too_short", "string_too_short"):
        return f"{name}: is empty{_example(location)}"
    if kind in _NO_SECTION:
        return f"{name}: {_as_section(location, value, model)}"
    if kind == "list_type" and (section := _section_at(location, model)):
        return f"{name}: must be a list{_not(value)}; {_as_list(location, value, section)}"
    if kind in _EXPECTED:
        return f"{name}: must be {_expected(faults)}{_not(value)}{_rewritten(location, first)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _settings_of(location: Location, model: type[BaseModel]) -> Location:
    """A location without the names that pydantic gives to the members of a union."""
    kept = 0
    section: type[BaseModel] | None = model
    for part in location:
        if section is None and isinstance(part, str):
            break
        kept += 1
        if section and isinstance(part, str):
            field = section.model_fields.get(part)
            section = _section_of(field.annotation) if field else None
    return location[:kept]


def _section_at(location: Location, model: type[BaseModel]) -> type[BaseModel] | None:
    """The class of the settings that a location holds, or that the items of its list hold."""
    section: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            section = _section_of(field.annotation) if field else None
    return section


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if section := _section_of(argument):
            return section
    return None


def _expected(faults: Sequence[ErrorDetails]) -> str:
    words = [_EXPECTED[fault["type"]].format(**fault.get("ctx", {})) for fault in faults]
    return " or ".join(dict.fromkeys(words))


def _not(value: Any) -> str:
    """What is there in place of what must be."""
    if value is None:
        return ", and nothing is there"
    shown = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    text = shown or (repr(value) if isinstance(value, str | int | float) else _flow(value))
    return f", not {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"


def _rewritten(location: Location, fault: ErrorDetails) -> str:
    """What to write in place of a value, if that is sure or likely."""
    value = fault["input"]
    if value is None:
        return _example(location) or "; give a value, or delete the line"
    if fault["type"] == "string_type" and isinstance(value, int | float):
        quoted = f'"{str(value).lower() if isinstance(value, bool) else value}"'
        return f"; put it in quotes: {quoted}"
    if fault["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        near = difflib.get_close_matches(str(value), choices, n=1)
        return f"; did you mean {near[0]}?" if near else ""
    return _example(location)


def _owner(location: Location) -> str:
    if any(isinstance(part, int) for part in location):
        return "every source"
    return "every configuration" if len(location) == 1 else f"{location[0]}"


def _example(location: Location, before: str = "; for example") -> str:
    name = ".".join(part for part in location if isinstance(part, str))
    return f"{before} {_EXAMPLES[name]}" if name in _EXAMPLES else ""


def _as_section(location: Location, value: Any, model: type[BaseModel]) -> str:
    section = _section_at(location, model)
    if section is None:
        return "must hold settings"
    if isinstance(location[-1], int):
        written = f"write {_flow(_item(value, section))} in its place"
        return f"must hold settings{_not(value)}; {written}"
    if value is None:
        remedy = _example(location, ", such as") or ", or delete the line"
        return f"is empty; write settings below it{remedy}"
    name = location[-1]
    for field in section.model_fields:
        if _is_accepted(section, field, value):
            return f"must hold settings{_not(value)}; write {_flow({name: {field: value}})[1:-1]}"
    remedy = _example(location) or f"; known settings: {', '.join(section.model_fields)}"
    return f"must hold settings{_not(value)}{remedy}"


def _is_accepted(section: type[BaseModel], field: str, value: Any) -> bool:
    if isinstance(value, bool) and section.model_fields[field].annotation is not bool:
        return False
    try:
        section.model_validate({field: value})
    except pydantic.ValidationError as error:
        return all(fault["loc"] != () and fault["type"] == "missing" for fault in error.errors())
    return True


def _as_list(location: Location, value: Any, section: type[BaseModel]) -> str:
    """The list of sources that was meant by a path, a source or sources under their names."""
    if isinstance(value, str):
        items = [_item(value, section)]
    elif isinstance(value, Mapping) and value.keys() & section.model_fields.keys():
        items = [dict(value)]
    elif isinstance(value, Mapping):
        items = [_named(str(name), content, section) for name, content in value.items()]
    else:
        return f"write one{_example(location, ', such as')}"
    return f"write {_flow({location[-1]: items})[1:-1]}"


def _item(value: Any, section: type[BaseModel]) -> dict[str, Any]:
    """A source of a path."""
    if not isinstance(value, str):
        return {"name": "articles", "paths": ["data/*.jsonl"]}
    name = re.sub(r"[^\w.-]", "", PurePosixPath(value).name.split(".")[0]) or "articles"
    return _named(name, value, section)


def _named(name: str, content: Any, section: type[BaseModel]) -> dict[str, Any]:
    settings = content if isinstance(content, Mapping) else {"paths": content}
    return {"name": name, **{key: settings[key] for key in settings if key in section.model_fields}}


def _flow(value: Any) -> str:
    """YAML on one line."""
    return yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=1 << 20, allow_unicode=True
    ).strip()


def _suggestion(location: Location, value: Any, model: type[BaseModel]) -> str:
    """A hint at the setting that was meant: one of this section, or one of that name further in."""
    name = str(location[-1])
    section = _section_at(location[:-1], model) or model
    known, further = list(section.model_fields), list(_names(section))
    if name in further:
        return f"; write {_flow(_nested(name, value))[1:-1]}"
    near = (
        [setting for setting in known if setting.lower() == name.lower()]
        or difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        or [setting for setting in further if setting.endswith(f".{name.lower()}")]
        or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    )
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known settings: {', '.join(known)}"


def _nested(name: str, value: Any) -> dict[str, Any]:
    """The settings that a name such as `neighbors.k` stands for."""
    first, _, rest = name.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _names(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Names of all settings, such as `tokenizer.train.model`."""
    for name, field in model.model_fields.items():
        if section := _section_of(field.annotation):
            yield from _names(section, f"{before}{name}.")
        elif before:
            yield f"{before}{name}"


def explain_yaml(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """One line on why a file is not YAML, with the place in it.

    Args:
        error: What the parser found, or the decoder.
    """
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}; save it as UTF-8"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"not valid YAML: {' '.join(str(error).split())}"
    mark, problem = error.problem_mark, str(error.problem)
    remedy = next(
        (
            words
            for pattern, words in _YAML_REMEDIES
            if re.search(pattern, f"{error.context} {problem}")
        ),
        "mend the line",
    )
    return f"line {mark.line + 1}, column {mark.column + 1}: not valid YAML ({problem}); {remedy}"
