"""A manifest that was sealed again but contradicts itself, or its files, is not sound."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retro_db.errors import DatabaseError
from retro_db.verify import verify_database
from support.hostile import manifest_of, seal
from support.projects import Project

Location = tuple[str | int, ...]
# What no other field, and no file, decides: what the machine was, and what was asked for.
FREE = {
    ("encoder", "sha256"),
    ("encoder", "batch_tokens"),
    ("encoder", "prompt"),
    ("encoder", "pools_prompt"),
    ("encoder", "equal_lengths"),
    ("sources", 0, "characters_without_token"),
    ("index", "training_points"),
    ("index", "recall_queries"),
    # An older minor version is as good, and so are other settings that left no trace.
    ("version",),
}
FREE_SETTINGS = {
    *("seed", "dedup", "leakage"),
    *(("corpus", 0, name) for name in ("fraction", "max_bad", "max_document", "id", "text")),
    *(("corpus", 0, name) for name in ("format", "separator")),
    *(("queries", 0, name) for name in ("fraction", "max_bad", "max_document", "id", "text")),
    *(("queries", 0, name) for name in ("format", "separator")),
    *(
        ("encoder", name)
        for name in ("dtype", "device", "batch_tokens", "pooling", "normalize", "prompt")
    ),
    *(("chunk", name) for name in ("shard_size", "part_rows")),
    *(("index", name) for name in ("key", "memory", "recall_target", "partitions", "refine")),
    *(("neighbors", name) for name in ("max_nprobe", "drop_duplicates")),
    *(("tokenizer", "train", name) for name in ("model", "sample")),
    ("split", "validation"),
    # Of which the outcome is at most as much.
    ("neighbors", "rerank"),
    ("tokenizer", "train", "vocab_size"),
}


def leaves(value: Any, where: Location = ()) -> Iterator[tuple[Location, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from leaves(item, (*where, key))
        else:
            yield (*where, key), item


def altered(value: Any) -> list[Any]:
    """Other values of the same kind."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value + 1000]
        case float():
            return [value / 2 + 0.01]
        case str():
            return [f"{value}x", value[::-1]] if value[::-1] != value else [f"{value}x"]
        case _:
            return [3]


def is_free(where: Location, manifest: dict[str, Any]) -> bool:
    if where[0] == "config":
        return any(
            where[1 : n + 1] in FREE_SETTINGS or where[1] in FREE_SETTINGS for n in range(1, 5)
        )
    # Figures of searches that were not chosen.
    if where[0] in ("index", "neighbors") and where[1] == "recall":
        chosen = len(manifest[where[0]]["recall"]) - 1
        return where[2] != chosen or where[3] in ("recall", "distinct_recall", "lower_bound")
    return where in FREE


def test_settings_bound_their_outcome(small: Project, tmp_path: Path) -> None:
    db = Path(shutil.copytree(small.output, tmp_path / "db"))
    for section, name in (("neighbors", "rerank"), ("tokenizer", "train"), ("split", "validation")):
        manifest = manifest_of(db)
        settings = manifest["config"][section]
        settings[name] = {"vocab_size": 300} if name == "train" else 0
        assert finds_fault(db, manifest), name


def test_no_field_may_contradict_another(six: Project, db: Path) -> None:
    manifest = manifest_of(db)
    assert not finds_fault(db, manifest)
    accepted, tried = [], 0
    for where, value in leaves(manifest):
        if where[0] in ("sha256", "tables", "index_files", "tokenizer_files", "queries"):
            continue
        if is_free(where, manifest):
            continue
        for other in altered(value):
            changed = manifest_of(six.output)
            node: Any = changed
            for key in where[:-1]:
                node = node[key]
            node[where[-1]] = other
            tried += 1
            if not finds_fault(db, changed):
                accepted.append((where, value, other))
    assert not accepted, "\n".join(map(str, accepted))
    assert tried > 60


def finds_fault(db: Path, manifest: dict[str, Any]) -> bool:
    seal(db, manifest)
    try:
        return bool(verify_database(str(db)).problems)
    except DatabaseError:
        return True
