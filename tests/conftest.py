"""Corpora, configurations and databases that the tests share. Everything in them is real."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

import retro_db
from retro_db.database import Database
from retro_db_pipelines.cli import run
from retro_db_pipelines.demo import encoder_folder

SHARED = Path(__file__).resolve().parents[2] / "shared"
_HEADING = re.compile(r"^(?= = [^=].* = $)", re.MULTILINE)


def pytest_configure(config: pytest.Config) -> None:
    # No test may reach for a model hub.
    os.environ["HF_HUB_OFFLINE"] = "1"


@dataclass
class Project:
    """A folder with a corpus and a configuration, and the command that builds it."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.folder / "db"

    @property
    def config(self) -> Path:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.settings), "utf-8")
        return path

    def build(self, *arguments: str) -> int:
        return run(["build", str(self.config), *arguments])

    def open(self) -> Database:
        return retro_db.open(str(self.output))


def make_project(folder: Path, texts: list[str], **settings: Any) -> Project:
    """A project over JSON lines with the fields `text` and `id`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [orjson.dumps({"id": f"doc-{i}", "text": text}) for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    defaults = {
        "output": str(folder / "db"),
        "corpus": [{"name": "test", "paths": [str(folder / "corpus.jsonl")], "id": "id"}],
        "tokenizer": {"train": {"vocab_size": 2000}},
        "encoder": {"model": str(encoder_folder())},
    }
    return Project(folder, defaults | settings)


def wikitext(name: str) -> list[str]:
    """Articles of WikiText-2, each an exact slice of the file."""
    path = SHARED / "corpora" / "wikitext-2" / name
    if not path.exists():
        assert "CI" not in os.environ, f"{path} is missing"
        pytest.skip(f"{path} is not here")
    return [part for part in _HEADING.split(path.read_text("utf-8")) if part.strip()]


@pytest.fixture(scope="session")
def articles() -> list[str]:
    """All articles of WikiText-2's validation text."""
    return wikitext("valid.txt")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """About 300 chunks in 40 documents of Python's own source, built once."""
    import sysconfig

    library = Path(sysconfig.get_path("stdlib"))
    files = [p for p in sorted(library.glob("*.py")) if 1_000 < p.stat().st_size < 4_000][:40]
    texts = [file.read_text("utf-8") for file in files]
    project = make_project(tmp_path_factory.mktemp("small"), texts)
    assert project.build() == 0
    return project
