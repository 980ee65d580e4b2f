"""An open reader never mixes builds: what was replaced under it raises."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import retro_db
from retro_db.errors import DatabaseReplacedError
from retro_db.search.retriever import Retriever
from retro_db_pipelines.commands.cli import run
from support.projects import Project, remove_documents

REPLACED = "another build has replaced the database since it was opened"


def rebuild(six: Project, db: Path, *options: str) -> None:
    """Builds another database of the same sizes in the same folder."""
    corpus = db.with_name("other.jsonl")
    text = (six.folder / "corpus.jsonl").read_text().replace("whales", "sheep!")
    corpus.write_text(text)
    settings = ["--set", f"output={db}", "--set", f"corpus.0.paths=[{corpus}]"]
    assert run(["build", str(six.config), *settings, "--overwrite", *options]) == 0


@pytest.mark.parametrize("table", ["chunks", "neighbors", "embeddings", "documents"])
def test_tables_that_were_replaced_raise(six: Project, db: Path, table: str) -> None:
    reader = retro_db.open(str(db))
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301 - our own bytes
    rebuild(six, db)
    for one in (reader, copy):
        with pytest.raises(DatabaseReplacedError, match=REPLACED):
            getattr(one, table)
    assert len(retro_db.open(str(db)).chunks[:])


def test_what_was_opened_before_goes_on(six: Project, db: Path) -> None:
    reader = retro_db.open(str(db))
    every = np.arange(len(reader))
    before = reader.chunks[every].copy()
    rebuild(six, db)
    assert np.array_equal(reader.chunks[every], before)


def test_a_build_that_has_only_begun_is_noticed(six: Project, db: Path) -> None:
    reader = retro_db.open(str(db))
    (db / "manifest.json").unlink()  # the first thing that it does
    with pytest.raises(DatabaseReplacedError, match=REPLACED):
        _ = reader.chunks


def test_a_search_in_a_replaced_index_raises(six: Project, db: Path) -> None:
    retriever = Retriever(retro_db.open(str(db)))
    assert len(retriever.search(["whales"], 2)[0])
    rebuild(six, db)
    with pytest.raises(DatabaseReplacedError, match=REPLACED):
        retriever.search(["whales"], 2)


def test_later_generations_and_equal_builds_do_not_disturb(
    six: Project, db: Path, tmp_path: Path
) -> None:
    reader = retro_db.open(str(db))
    assert remove_documents(db, ["doc-1"]) == 0
    assert len(reader.chunks[:])
    earlier = retro_db.open(str(db), generation=1)
    assert remove_documents(db, ["doc-2"]) == 0
    assert len(earlier.chunks[:])
    shutil.copytree(six.output, tmp_path / "equal")
    reader = retro_db.open(str(tmp_path / "equal"))
    (tmp_path / "equal" / "manifest.json").unlink()
    assert run(["build", str(six.config), "--set", f"output={tmp_path / 'equal'}"]) == 0
    assert len(reader.neighbors[:])
