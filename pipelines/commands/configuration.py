"""What `retro-db config` writes and prints."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ByteSize

from retro_db.config import (
    SettingsError,
    in_units,
    overridden_by,
    parse_composition,
)
from retro_db.config_files import Location, compose
from retro_db.errors import InputError

from ..engine.console import Console
from .setting_reference import look_up, sections

_STARTER = """\
# A build of a retrieval database, for
#
#     retro-db config check {file}
#     retro-db build {file} --smoke
#     retro-db build {file}
#
# What stands behind # is a default. `retro-db config explain` tells what every setting means.
# Paths are relative to where you run the command. A size is such as 200MB.

# Files of settings that several configurations share; what stands here wins.
# include: []

# A new folder for the database: a path or a URL, such as s3://bucket/db.
output: db

# Where the text is. Another source is another item of the list.
corpus:
  - name: corpus
    # Files, folders and globs, each a path or a URL, such as s3://bucket/*.parquet or
    # hf://datasets/OWNER/NAME/*.parquet.
    paths: {paths}
    # jsonl, parquet, text, arrow or megatron; by default, inferred from the names.
    # format: null
    # Field that holds the text, and that of a document's id.
    # text: text
    # id: null
    # Regular expression between the documents of a text file; by default, a file is one document.
    # separator: null
    # Share of bad records above which the build stops.
    # max_bad: 0.001

# The tokenizer of your language model.
tokenizer:
{tokenizer}

# The frozen BERT that embeds: a hub name, or a folder with safetensors weights.
encoder:
  model: {encoder}
  # dtype: auto
  # device: auto

# Share of the documents that are set apart for validation.
# split: {{validation: 0.0}}

# Memory of a worker for the index and the neighbors.
# index: {{memory: 64GB}}

# Number of neighbors of a chunk.
# neighbors: {{k: 20}}

# Evaluation texts, which no document may be close to, and near-duplicates.
# leakage: {{paths: []}}
# dedup: {{jaccard: null}}
"""
_TRAINED = """\
  # Trained on the corpus; if the model has one: {path: FILE-FOLDER-OR-HUB-NAME}
  train: {vocab_size: 32000}"""


@dataclass(frozen=True)
class Starter:
    """What a first configuration is about.

    Attributes:
        paths: Paths of the corpus; if empty, an example.
        tokenizer: Path or hub name of the tokenizer; None to train one.
        encoder: Folder or hub name of the encoder; None for BERT.
    """

    paths: Sequence[str]
    tokenizer: str | None
    encoder: str | None


def write_starter(file: str, starter: Starter, console: Console) -> None:
    """Writes a commented configuration.

    Args:
        file: Path of the file.
        starter: What it is about.
        console: What people see.

    Raises:
        InputError: The file exists, or cannot be written.
    """
    # JSON is YAML that needs no thought about quotes.
    tokenizer = _TRAINED if starter.tokenizer is None else f"  path: {_text(starter.tokenizer)}"
    text = _STARTER.format(
        file=file,
        paths=_text(starter.paths or ["data/*.jsonl"]),
        tokenizer=tokenizer,
        encoder=_text(starter.encoder or "bert-base-uncased"),
    )
    try:
        with Path(file).open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise InputError(f"{file}: exists, and is not replaced; name another file") from error
    except OSError as error:
        raise InputError(
            f"{file}: cannot be written ({error.strerror}); name another file"
        ) from error
    console.say(f"wrote      {file}; look through it, then run: retro-db config check {file}")


def show_checked(path: str, overrides: Sequence[str], console: Console) -> int:
    """Prints what is wrong with a configuration, or else the settings that differ from the defaults.

    Args:
        path: Path or URL of the configuration.
        overrides: Settings as `a.b=value`.
        console: What people see.

    Returns:
        The exit code.

    Raises:
        ConfigError: A file cannot be read.
    """
    composition = compose(path)
    try:
        config = parse_composition(composition, overrides)
    except SettingsError as error:
        for problem in error.problems:
            console.fail(problem)
        return error.exit_code
    for location, value in _differing(config, ()):
        where = overridden_by(location, overrides) or composition.where(location)
        name = ".".join(map(str, location))
        console.say(f"{name:<28} {_shown(value):<40} {where}")
    included = len(composition.files) - 1
    files = f" and {included} that it includes" if included else ""
    console.say(f"checked    {path}{files}: nothing is wrong; all other settings are defaults")
    return 0


def _differing(model: BaseModel, location: Location) -> Iterator[tuple[Location, Any]]:
    """Settings that are required or differ from their defaults, each with its location."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if not field.is_required() and value == field.default:
            continue
        if isinstance(value, list) and isinstance(value[0], BaseModel):
            for number, item in enumerate(value):
                yield from _differing(item, (*location, name, number))
        elif isinstance(value, BaseModel) and any(_differing(value, ())):
            yield from _differing(value, (*location, name))
        else:
            yield (*location, name), value


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{}"
    return in_units(value) if isinstance(value, ByteSize) else _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def explain_setting(name: str, console: Console) -> None:
    """Prints what a setting may be, its default, its meaning and its section.

    Args:
        name: Name in the configuration, of a setting or a section.
        console: What people see.

    Raises:
        ConfigError: There is no such setting; the message has names that may be meant.
    """
    section, settings = look_up(name)
    for setting in settings:
        console.say(setting.name)
        console.say(f"  values   {setting.values}")
        console.say(f"  default  {setting.default}")
        for line in textwrap.wrap(setting.meaning, 100, break_long_words=False):
            console.say(f"  {line}")
        console.say()
    console.say(f"{section.name or 'Top level'}: {section.meaning}")


def list_settings(console: Console) -> None:
    """Prints a line for every setting."""
    for section in sections():
        for setting in section.settings:
            first = setting.meaning.split(". ")[0].rstrip(".")
            console.say(f"{setting.name:<28} {setting.default.strip('`'):<12} {first}")
