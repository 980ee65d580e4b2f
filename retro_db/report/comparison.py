"""Two databases, or two generations of one, side by side: what they are called, and which settings differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from retro_db.errors import InputError
from retro_db.manifest.model import Manifest
from retro_db.printing import printable, redacted
from retro_db.reader.database import Database
from retro_db.report.figure import Grid
from retro_db.store.serialize import to_json

# Of the manifest, besides the configuration: what the build made of it.
_MADE = ("chunk", "tokenizer", "encoder", "index", "neighbors")
# Measures, which have figures of their own.
_MEASURES = {"recall", "recall_queries"}


def labels_of(databases: Sequence[Database]) -> list[str]:
    """Returns what a page calls its databases: no longer than it takes to tell them apart.

    Raises:
        InputError: Two are the same.
    """
    urls = [redacted(database.folder.url).rstrip("/") for database in databases]
    names = [os.path.basename(url) or url for url in urls]
    dated = [
        f"{name}, generation {database.manifest.generation}"
        for name, database in zip(names, databases, strict=True)
    ]
    full = [f"{url}{name[name.rindex(',') :]}" for url, name in zip(urls, dated, strict=True)]
    for labels in (names, dated, full):
        if len(set(labels)) == len(labels):
            return list(map(printable, labels))
    raise InputError(
        f"--beside: {full[0]}, is the database itself; name another one or a generation"
    )


def differing_settings(manifests: Sequence[Manifest], labels: Sequence[str]) -> Grid:
    """Returns the settings that are not the same, with what the build made of them.

    Args:
        manifests: Manifests of the databases.
        labels: What the page calls them.
    """
    settings = [dict(_settings(manifest)) for manifest in manifests]
    names = sorted(set().union(*settings))
    rows = [
        [printable(name), *(printable(found.get(name, "-")) for found in settings)]
        for name in names
        if len({found.get(name) for found in settings}) > 1
    ]
    return Grid(["setting", *labels], rows, set(range(1, len(labels) + 1)))


def _settings(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield from _flat("", manifest.config)
    for name in _MADE:
        yield from _flat(f"made: {name}", to_json(getattr(manifest, name)))


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields the values in nested settings with their names; lists of named things go by the names."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {str(item.get("name", place)): item for place, item in enumerate(value)}
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _MEASURES:
                yield from _flat(f"{path}.{key}".lstrip("."), inner)
    else:
        yield path, "-" if value is None else str(value)
