"""Chunks drawn for training and tuning: the right ones, once, and never all embeddings again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_db.hashing import fractions_of
from retro_db.index.drawing import QUERIES, Drawer, Drawing, Drawn, DrawnPoints, read_queries
from retro_db.index.keys import parse_key
from retro_db.index.part_embeddings import load_embeddings
from retro_db.index.training import Sampling, StoredPoints, sample_points, training_points
from retro_db.manifest.parts import Part, listed_parts
from retro_db.reader.opening import read_documents
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, describe
from retro_db.store.records import StageRecords
from retro_db.store.serialize import from_json
from retro_db.store.writing import TableWriter
from support.projects import Project, make_project
from support.texts import python_sources

KEY = "IVF1,Flat"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A database whose index is trained on few of its chunks."""
    folder = tmp_path_factory.mktemp("drawn")
    project = make_project(
        folder,
        python_sources(40),
        index={"key": KEY},
        chunk={"tokens": 8, "part_rows": 1000},
        split={"validation": 0.2},
    )
    assert project.build() == 0
    return project


def drawn_of(project: Project) -> list[Drawn]:
    """What the records say was drawn."""
    records = StageRecords(project.open().folder, "draw").load().values()
    ordered = sorted(records, key=lambda record: record.name)
    return [from_json(Drawn, record.result, record.name) for record in ordered]


def test_what_is_drawn_is_what_hashing_chooses(built: Project) -> None:
    database = built.open()
    ids, count = np.arange(len(database)), len(database)
    embeddings = database.embeddings[ids]
    embedded = embeddings.any(axis=1)
    documents = database.chunks.documents(ids)
    tables = [
        read_documents(database.folder, part.documents, part.rows)
        for part in listed_parts(database.manifest.tables)
    ]
    in_training_split = np.concatenate(
        [np.repeat(t["split"].to_numpy() == "train", t["chunk_count"].to_numpy()) for t in tables]
    )
    assert not in_training_split.all()
    drawn = drawn_of(built)
    share = drawn[0].drawing.points
    assert 0 < share <= 1 / 8, "otherwise this test is of no use"
    expected = embedded & in_training_split & (fractions_of(ids, 0) < share)
    points = np.concatenate(list(DrawnPoints(database.folder, drawn).read(share, 0)))
    assert np.array_equal(points, embeddings[expected])

    queries, own = read_queries(database.folder, drawn)
    expected = embedded & (fractions_of(ids, 1) < QUERIES / count)
    assert np.array_equal(queries, embeddings[expected].astype(np.float32))
    firsts = np.array([np.searchsorted(documents, documents[row]) for row in ids[expected]])
    ends = np.array([np.searchsorted(documents, documents[row], "right") for row in ids[expected]])
    assert np.array_equal(own, np.stack([firsts, ends], axis=1))


def test_training_reads_the_same_points_from_either(built: Project) -> None:
    database = built.open()
    manifest, parts = database.manifest, listed_parts(database.manifest.tables)
    entries, dimension = manifest.counts.indexed_chunks, manifest.encoder.dimension
    points = training_points(parse_key(KEY, dimension), dimension, entries, 10**9)
    sampling = Sampling(dimension, entries, points, 0)
    stored = StoredPoints(
        lambda: (load_embeddings(database.folder, part, dimension) for part in parts)
    )
    drawn = DrawnPoints(database.folder, drawn_of(built))
    assert np.array_equal(sample_points(stored, sampling), sample_points(drawn, sampling))


def test_a_key_that_needs_more_points_draws_again_and_embeds_nothing(
    built: Project, tmp_path: Path, capsys: Any
) -> None:
    shutil.copytree(built.folder, tmp_path / "copy")
    settings = json.loads(json.dumps(built.settings).replace(str(built.folder), f"{tmp_path}/copy"))
    project = Project(tmp_path / "copy", built.texts, settings)
    assert project.build() == 0
    for path in (project.output / "state" / "drawn").iterdir():
        path.unlink()
    project.settings["index"] = {"key": "IVF4,Flat"}
    capsys.readouterr()
    assert project.build() == 0
    shown = capsys.readouterr().out
    assert "draw " in shown
    assert "embed " not in shown
    project.settings["index"] = {"key": KEY}
    assert project.build() == 0
    assert project.files() == built.files()


def test_what_is_drawn_does_not_depend_on_what_passes_at_a_time(tmp_path: Path) -> None:
    """A part that was embedded in several runs passes in other pieces."""
    count = 20_000
    folder, table = Folder(str(tmp_path)), contract("documents")
    row = {
        "source": ["s"],
        "id": ["a"],
        "first_chunk": [0],
        "chunk_count": [count],
        "split": ["train"],
    }
    with folder.writing("documents") as temporary:
        with TableWriter(temporary, table.schema(), table.batch_rows, parquet=True) as writer:
            writer.append(row)
        documents = describe(temporary, "documents", 1)
    part = Part(0, 0, 0, replace(documents, rows=count), documents, documents)
    embeddings = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float16)
    files = set()
    for step in (8192, 16_384, 24_576):
        drawer = Drawer(part, folder, Drawing(8, 0.1, 0.1, 0))
        for start in range(0, count, step):
            drawer.take(start, embeddings[start : start + step])
        files.add(folder.read(drawer.write(folder, documents).sliced.file.path))
    assert len(files) == 1


@given(points=st.floats(0, 1))
def test_a_share_is_rounded_up_and_a_large_one_is_not_copied(points: float) -> None:
    drawing = Drawing.of(4, points=points, chunks=10_000, seed=0)
    assert drawing.queries == 0.12
    if points > 1 / 8:
        assert drawing.points == 0
    else:
        assert points <= drawing.points <= points * 9 / 8
        near = Drawing.of(4, points=points * 0.99, chunks=10_000, seed=0)
        assert near.points <= drawing.points


def test_all_of_a_few_chunks_are_queries() -> None:
    assert Drawing.of(4, points=0.1, chunks=100, seed=0).queries == 1.0
