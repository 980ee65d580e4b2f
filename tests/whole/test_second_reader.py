"""A reader that was written from docs/format.md alone reads the same rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import retro_db
from support.places import SUPPORT
from support.projects import Project, make_project, remove_documents
from support.texts import python_sources

READER = SUPPORT / "second_reader.py"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Several parts, a validation split and a query corpus; some was appended, and some removed twice."""
    folder = tmp_path_factory.mktemp("everything")
    texts = python_sources(26)
    asked = folder / "asked.jsonl"
    asked.write_bytes(b"".join(orjson.dumps({"text": text[:2500]}) + b"\n" for text in texts[20:]))
    project = make_project(
        folder,
        texts[:20],
        split={"validation": 0.1},
        chunk={"shard_size": 20_000, "part_rows": 50},
        queries=[{"name": "asked", "paths": [str(asked)]}],
    )
    assert project.build() == 0
    more = folder / "more.jsonl"
    lines = [{"id": f"more-{i}", "text": text} for i, text in enumerate(texts[20:23])]
    more.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    corpus = [{"name": "test", "paths": [str(more)], "id": "id"}]
    settings = project.settings | {"corpus": corpus}
    assert replace(project, settings=settings).build("--append") == 0
    assert remove_documents(project.output, ["doc-3", "more-1"]) == 0
    assert remove_documents(project.output, ["doc-0"]) == 0
    return project


def read(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Without what would let it import this project.
    return subprocess.run(
        [sys.executable, "-I", str(READER), *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize("queries", [None, "asked"])
def test_it_reads_the_same_rows(everything: Project, queries: str | None) -> None:
    done = read(str(everything.output), *([queries] if queries else []))
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    database = everything.open()
    corpus = database.corpus(queries)
    ids = np.arange(len(corpus))
    assert [row["chunk"] for row in rows] == ids.tolist()
    documents = corpus.chunks.documents(ids)
    assert [row["document"] for row in rows] == documents.tolist()
    for name in ("source", "id", "split"):
        assert [row[name] for row in rows] == corpus.documents[name].take(documents).to_pylist()
    values, lengths = corpus.chunks.values_and_lengths(ids)
    assert [row["value"] for row in rows] == values.tolist()
    assert [row["lengths"] for row in rows] == lengths.tolist()
    assert [row["neighbors"] for row in rows] == corpus.neighbors[ids].tolist()
    distances = [[np.inf if d is None else d for d in row["distances"]] for row in rows]
    assert distances == corpus.neighbors.distances(ids).tolist()
    gone = corpus.is_removed(ids)
    assert [row["removed"] for row in rows] == gone.tolist()
    assert gone.any() == (queries is None)


def test_it_refuses_what_the_page_says(everything: Project, tmp_path: Path) -> None:
    database = Path(shutil.copytree(everything.output, tmp_path / "db"))
    entry = retro_db.open(str(database)).manifest.tables.neighbors[0]
    (database / entry.path).write_bytes(b"short")
    assert f"{entry.path}: has 5 bytes, not {entry.bytes}" in read(str(database)).stderr
    manifest = database / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"generation": 4', '"generation": 5'))
    assert "the checksum is wrong" in read(str(database)).stderr
    manifest.write_text(manifest.read_text().replace('"version": "1.', '"version": "2.'))
    assert "unknown version 2." in read(str(database)).stderr
    manifest.unlink()
    done = read(str(database))
    assert done.returncode == 1
    assert "manifest.json" in done.stderr
