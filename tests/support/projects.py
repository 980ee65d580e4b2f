"""Corpora and their configurations, and how they are built."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from filelock import FileLock

import retro_db
from retro_db.reader.database import Database
from retro_db_pipelines.commands.cli import run
from support.encoders import tiny_encoder


@dataclass
class Project:
    """A folder with a corpus and a configuration, and the command that builds it."""

    folder: Path
    texts: list[str]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return Path(self.settings["output"])

    @property
    def config(self) -> Path:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.settings), "utf-8")
        return path

    def build(self, *arguments: str) -> int:
        return run(["build", str(self.config), *arguments])

    def open(self) -> Database:
        return retro_db.open(str(self.output))

    def files(self) -> dict[str, bytes]:
        """Every file that equal builds must have in common."""
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and not {"report", "state"} & set(path.relative_to(self.output).parts)
        }


def make_project(folder: Path, texts: list[str], **settings: Any) -> Project:
    """A project over JSON lines with the fields `text` and `id`, with the tiny encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [orjson.dumps({"id": f"doc-{i}", "text": text}) for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    defaults = {
        "output": str(folder / "db"),
        "corpus": [{"name": "test", "paths": [str(folder / "corpus.jsonl")], "id": "id"}],
        "tokenizer": {"train": {"vocab_size": 2000}},
        "encoder": {"model": str(tiny_encoder())},
    }
    return Project(folder, texts, defaults | settings)


def remove_documents(database: Path, ids: list[str]) -> int:
    """Removes documents by the command; its exit code."""
    listed = database.with_name(f"{database.name}-removed.txt")
    listed.write_text("\n".join(ids), "utf-8")
    return run(["remove", str(database), "--documents", str(listed)])


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Of all processes that run the tests."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def built_once(
    factory: pytest.TempPathFactory,
    name: str,
    make: Callable[[Path], Project],
    change: Callable[[Project], object] = lambda project: None,
) -> Project:
    """A project that one of the processes that run the tests makes, builds and changes for all of them."""
    shared = shared_folder(factory)
    kept = shared / f"{name}.pickle"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            project = make(shared / name)
            assert project.build() == 0
            change(project)
            kept.write_bytes(pickle.dumps(project))
    made: Project = pickle.loads(kept.read_bytes())  # noqa: S301 - our own bytes
    return made
