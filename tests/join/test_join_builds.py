"""Whole builds: however the join is divided, the neighbors have the same bytes, and brute force agrees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from retro_db_pipelines.commands.cli import run
from support.brute_force import neighbors, recall
from support.projects import Project, built_once, make_project
from support.texts import python_sources

K = 10


@pytest.fixture(scope="session")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Some thousand chunks, each document twice, in several parts, with a validation split."""
    return built_once(tmp_path_factory, "joined", _joined)


def _joined(folder: Path) -> Project:
    return make_project(
        folder,
        python_sources(110) * 2,
        chunk={"part_rows": 300},
        split={"validation": 0.1},
        index={"key": "IVF40,SQ8"},
        neighbors={"k": K},
    )


def again(project: Project, folder: Path, *settings: str) -> Project:
    """A copy whose neighbors are found again with other settings; the stages before stand."""
    copy = Project(folder, project.texts, project.settings | {"output": str(folder / "db")})
    shutil.copytree(project.output, copy.output)
    (copy.output / "state" / "finished").unlink()
    for stage in ("neighbors", "order", "route", "home", "visit", "short"):
        (copy.output / "state" / "records" / f"{stage}.jsonl").unlink(missing_ok=True)
    assert copy.build(*(word for setting in settings for word in ("--set", setting))) == 0
    return copy


def neighbor_bytes(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.output / "neighbors").iterdir()}


@pytest.mark.parametrize(
    "settings",
    [
        ["neighbors.partitions=4"],
        ["neighbors.partitions=16", "neighbors.products=float32"],
        ["neighbors.partitions=64", "neighbors.products=bfloat16"],
        ["neighbors.partitions=16", "neighbors.scratch=1MB"],
        ["index.memory=3MB"],
    ],
    ids=lambda settings: " ".join(settings),
)
def test_partitions_waves_and_products_change_no_byte(
    joined: Project, tmp_path: Path, settings: list[str]
) -> None:
    other = again(joined, tmp_path, *settings)
    assert neighbor_bytes(other) == neighbor_bytes(joined)
    assert not (other.output / "state" / "join").exists()


def test_workers_change_no_byte(joined: Project, tmp_path: Path) -> None:
    copy = Project(tmp_path, joined.texts, joined.settings | {"output": str(tmp_path / "db")})
    assert copy.build("--workers", "2", "--set", "neighbors.partitions=5") == 0
    assert copy.files() == joined.files()


def test_the_size_of_parts_changes_no_neighbor(joined: Project, tmp_path: Path) -> None:
    settings = joined.settings | {"output": str(tmp_path / "db"), "chunk": {"part_rows": 100_000}}
    whole = Project(tmp_path, joined.texts, settings)
    assert whole.build() == 0
    one, many = whole.open(), joined.open()
    assert len(many.manifest.tables.neighbors) > 3
    assert len(one.manifest.tables.neighbors) == 1
    assert (one.neighbors[:] == many.neighbors[:]).all()
    assert one.neighbors.distances(slice(None)).tobytes() == (
        many.neighbors.distances(slice(None)).tobytes()
    )


def test_brute_force_agrees(joined: Project) -> None:
    db = joined.open()
    ids = np.arange(len(db))
    embeddings, documents = db.embeddings[ids], db.chunks.documents(ids)
    embedded = embeddings.any(axis=1)
    training = np.array(db.documents["split"].to_pylist())[documents] == "train"
    stored, distances = db.neighbors[ids], db.neighbors.distances(ids)
    truth, _ = neighbors(embeddings, documents, training & embedded, K)
    assert recall(stored[embedded], truth[embedded], K) > 0.95
    assert (stored[embedded] >= 0).all()
    assert (stored[~embedded] < 0).all()
    queries = ids[embedded]
    near = stored[embedded]
    assert (documents[near] != documents[queries, None]).all()
    assert training[near].all()
    apart = embeddings[near].astype(np.float64) - embeddings[queries, None]
    assert np.allclose(distances[embedded], (apart**2).sum(axis=2), rtol=1e-5, atol=0)
    ties = np.diff(distances[embedded], axis=1) == 0
    assert ties.sum() > 1000
    assert (np.diff(near, axis=1)[ties] > 0).all()


def test_the_stored_neighbors_verify(joined: Project) -> None:
    assert run(["verify", str(joined.output), "--recompute", "1.0"]) == 0


def test_keys_are_read_once_at_home_and_once_for_visits(joined: Project, tmp_path: Path) -> None:
    """However many parts the queries come from; counted by the stages."""
    copy = again(joined, tmp_path / "a", "neighbors.partitions=16")
    stages = json.loads((copy.output / "report" / "stages.json").read_text("utf-8"))["stages"]
    routed = stages["home"]["work"]["counts"]["key_bytes"]
    assert stages["visit"]["work"]["counts"]["key_bytes"] == routed
    db = copy.open()
    nprobe, dimension = db.manifest.neighbors.nprobe, db.manifest.encoder.dimension
    row = 2 * dimension + 4 * nprobe + 8 * 4 + 1
    embedded = len(db) - db.manifest.counts.keyless_chunks
    # Arrow's headers and padding make small slices larger.
    assert row * embedded < routed < 2 * row * embedded


def test_a_chunk_with_few_others_goes_round_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One document fills most of the lists that its chunks visit."""
    texts = ["word " * 4000, *python_sources(60)]
    project = make_project(
        tmp_path,
        texts,
        index={"key": "IVF30,SQ8", "recall_target": 0.3},
        neighbors={"k": K},
        chunk={"tokens": 16, "part_rows": 300},
    )
    assert project.build() == 0
    assert "home-round2" in capsys.readouterr().out
    db = project.open()
    assert db.manifest.counts.short_rows == 0
    assert (db.neighbors[:][db.embeddings[:].any(axis=1)] >= 0).all()
    assert neighbor_bytes(again(project, tmp_path / "a", "neighbors.partitions=7")) == (
        neighbor_bytes(project)
    )
    assert run(["verify", str(project.output), "--recompute", "1.0"]) == 0


def test_parts_without_chunks_have_empty_neighbors(tmp_path: Path) -> None:
    """Files of documents without a token, before, between and behind others."""
    project = make_project(tmp_path, [], index={"key": "IVF3,SQ8"}, neighbors={"k": 3})
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, text in enumerate(["", *python_sources(25), "", ""]):
        (corpus / f"{number:02d}.jsonl").write_text(json.dumps({"text": text}), "utf-8")
    project.settings["corpus"] = [{"name": "test", "paths": [str(corpus / "*.jsonl")]}]
    project.settings["chunk"] = {"shard_size": 100}
    assert project.build("--set", "neighbors.partitions=2") == 0
    manifest = project.open().manifest
    assert [file.rows for file in manifest.tables.neighbors] == [
        file.rows for file in manifest.tables.chunks
    ]
    assert 0 in [file.rows for file in manifest.tables.chunks]
    assert run(["verify", str(project.output), "--recompute", "1.0"]) == 0


def test_a_graph_of_centroids_and_rounds(tmp_path: Path) -> None:
    texts = ["word " * 4000, *python_sources(60)]
    project = make_project(
        tmp_path,
        texts,
        index={"key": "IVF30_HNSW8,SQ8", "recall_target": 0.3},
        neighbors={"k": K, "partitions": 3},
        chunk={"tokens": 16, "part_rows": 300},
    )
    assert project.build() == 0
    assert project.open().manifest.counts.short_rows == 0
    assert neighbor_bytes(again(project, tmp_path / "a", "neighbors.partitions=1")) == (
        neighbor_bytes(project)
    )
    assert run(["verify", str(project.output), "--recompute", "1.0"]) == 0


def test_a_limit_of_lists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["word " * 4000, *python_sources(60)]
    project = make_project(
        tmp_path,
        texts,
        index={"key": "IVF30,SQ8", "recall_target": 0.3},
        neighbors={"k": K, "max_nprobe": 1},
        chunk={"tokens": 16},
    )
    assert project.build() == 0
    assert project.open().manifest.counts.short_rows > 0
    assert "round2" not in capsys.readouterr().out
    assert run(["verify", str(project.output), "--recompute", "1.0"]) == 0


def test_copies_are_passed_over(joined: Project, tmp_path: Path) -> None:
    other = again(joined, tmp_path, "neighbors.drop_duplicates=true", "neighbors.partitions=6")
    db = other.open()
    ids = np.arange(len(db))
    stored = db.neighbors[ids]
    tokens = np.concatenate([db.chunks[ids], db.chunks.lengths(ids)[:, None]], axis=1)
    rows, columns = np.nonzero(stored >= 0)
    equal = (tokens[rows] == tokens[stored[rows, columns]]).all(axis=1)
    assert not equal.any()
    before = joined.open().neighbors[ids]
    rows, columns = np.nonzero(before >= 0)
    assert (tokens[rows] == tokens[before[rows, columns]]).all(axis=1).any()
    assert run(["verify", str(other.output), "--recompute", "0.2"]) == 0
