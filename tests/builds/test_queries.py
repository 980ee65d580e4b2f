"""Query corpora: neighbors in a folder of their own, in the database, never of a namesake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import retro_db
from retro_db.errors import InputError
from retro_db_pipelines.commands.cli import run
from support import brute_force
from support.projects import Project, make_project
from support.texts import python_sources


def write(path: Path, texts: dict[str, str]) -> None:
    """JSON lines with the fields `text` and `id`."""
    lines = [orjson.dumps({"id": name, "text": text}) for name, text in texts.items()]
    path.write_bytes(b"\n".join(lines) + b"\n")


@pytest.fixture(scope="module")
def queried(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Twelve modules; queries are one of them under its own id and under another, and two others."""
    texts = python_sources(14)
    folder = tmp_path_factory.mktemp("queried")
    project = make_project(folder, texts[:12], split={"validation": 0.2})
    same = {"doc-3": texts[3], "not-doc-3": texts[3], "new": texts[12]}
    write(folder / "evaluation.jsonl", same)
    write(folder / "other.jsonl", {"other": texts[13], "empty": ""})
    project.settings["queries"] = [
        {"name": "evaluation", "paths": [str(folder / "evaluation.jsonl")], "id": "id"},
        {"name": "other", "paths": [str(folder / "other.jsonl")], "id": "id"},
    ]
    assert project.build() == 0
    return project


def test_neighbors_of_queries_are_those_of_brute_force(queried: Project) -> None:
    database = queried.open()
    every = np.arange(len(database))
    documents = database.chunks.documents(every)
    names = np.array(database.documents["id"].to_pylist())[documents]
    training = np.array(database.documents["split"].to_pylist())[documents] == "train"
    keys = database.embeddings[every].astype(np.float64)
    assert sorted(database.queries) == ["evaluation", "other"]
    for corpus in database.queries.values():
        own = np.arange(len(corpus))
        asked = np.array(corpus.documents["id"].to_pylist())[corpus.chunks.documents(own)]
        found, distances = corpus.neighbors[own], corpus.neighbors.distances(own)
        assert found.shape == (len(corpus), 20)
        for chunk in own:
            exact = ((keys - corpus.embeddings[[chunk]].astype(np.float64)) ** 2).sum(axis=1)
            exact[(names == asked[chunk]) | ~training | ~keys.any(axis=1)] = np.inf
            near = np.lexsort((every, exact))[:20]
            assert np.array_equal(found[chunk], near)
            np.testing.assert_allclose(distances[chunk], exact[near], rtol=1e-5, atol=1e-6)


def test_a_namesake_is_passed_over_and_a_copy_is_not(queried: Project) -> None:
    database = queried.open()
    corpus = database.queries["evaluation"]
    owners = np.array(corpus.documents["id"].to_pylist())[
        corpus.chunks.documents(np.arange(len(corpus)))
    ]
    nearest = corpus.neighbors[np.arange(len(corpus))][:, 0]
    found = np.array(database.documents["id"].to_pylist())[database.chunks.documents(nearest)]
    distances = corpus.neighbors.distances(np.arange(len(corpus)))[:, 0]
    assert (found[owners == "doc-3"] != "doc-3").all()
    assert (found[owners == "not-doc-3"] == "doc-3").all()
    assert (distances[owners == "not-doc-3"] < 1e-3).all()


def test_queries_are_counted_and_sound(queried: Project, capsys: Any) -> None:
    manifest = queried.open().manifest
    assert [query.source.documents for query in manifest.queries] == [3, 2]
    assert all(
        path.startswith("queries/") for path in (e.path for e in manifest.queries[0].tables.files)
    )
    assert manifest.counts.documents == 12
    assert run(["verify", str(queried.output)]) == 0
    assert run(["inspect", str(queried.output)]) == 0
    assert "evaluation: 3 documents" in capsys.readouterr().out
    assert queried.build() == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_damaged_query_table_is_found(queried: Project, tmp_path: Path, capsys: Any) -> None:
    entry = queried.open().manifest.queries[0].tables.neighbors[0]
    path = queried.output / entry.path
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        assert run(["verify", str(queried.output)]) == 1
        assert entry.path in capsys.readouterr().out
    finally:
        path.write_bytes(whole)


def test_a_dry_run_says_each_line_once(queried: Project, capsys: Any) -> None:
    capsys.readouterr()
    assert queried.build("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == len(lines)
    for name in ("evaluation", "other"):
        of_queries = [line.split()[0] for line in lines if f" {name}: " in line]
        assert of_queries == ["queries", "chunk", "embed", "neighbors"]
    assert lines[-1] == "dry run    nothing to do"


def test_a_dry_run_names_the_query_corpus_with_work_left(queried: Project, capsys: Any) -> None:
    capsys.readouterr()
    changed = ["--set", "queries.1.text=id"]
    assert queried.build("--dry-run", *changed) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "chunk      other: 0 of 1 tasks done; 1 changed: corpus" in lines
    assert lines[-1].startswith("dry run    chunk of other to do")


def test_sequences_of_a_query_corpus(queried: Project) -> None:
    database = queried.open()
    dataset = retro_db.RetroDataset(database, seq_len=256, k=2, queries="evaluation")
    corpus = database.queries["evaluation"]
    assert len(dataset) == -(-len(corpus) // 4)
    example = dataset[0]
    assert np.array_equal(example["tokens"][:64], corpus.chunks[0])
    assert np.array_equal(example["neighbor_ids"], corpus.neighbors[np.arange(4)][:, :2])
    values = database.chunks.values(example["neighbor_ids"][0])
    assert np.array_equal(example["neighbors"][0], values)
    with pytest.raises(InputError, match="known: evaluation, other"):
        retro_db.RetroDataset(database, queries="evalation")


def test_a_query_corpus_that_is_dropped_goes(queried: Project) -> None:
    kept = queried.settings["queries"]
    try:
        queried.settings["queries"] = kept[:1]
        assert queried.build() == 0
        assert sorted(queried.open().queries) == ["evaluation"]
        assert not (queried.output / "queries" / "other").exists()
    finally:
        queried.settings["queries"] = kept
        assert queried.build() == 0


def test_places_in_files_are_no_names(tmp_path: Path) -> None:
    texts = python_sources(8)
    project = make_project(tmp_path / "corpus", texts[:6])
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "corpus.jsonl", {"0": texts[0], "1": texts[7]})
    # The first records of both files lie at corpus.jsonl:0.
    del project.settings["corpus"][0]["id"]
    query = {"name": "other", "paths": [str(tmp_path / "other" / "corpus.jsonl")]}
    project.settings["queries"] = [query]
    assert project.build() == 0
    corpus = project.open().queries["other"]
    assert (corpus.neighbors.distances(slice(0, 5))[:, 0] < 1e-3).all()


def test_a_bad_query_corpus_is_known_before_anything_is_embedded(
    tmp_path: Path, capsys: Any
) -> None:
    project = make_project(tmp_path, ["one text", "another text"])
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\nnot JSON\n')
    project.settings["queries"] = [{"name": "eval", "paths": [str(tmp_path / "bad.jsonl")]}]
    assert project.build() == 2
    told = capsys.readouterr()
    assert "queries.0: 1 of 2 records of eval are bad" in told.err
    assert "queries/eval/report/rejects.jsonl" in told.err
    assert "embed" not in told.out


def test_many_copies_hide_no_nearer_chunk(tmp_path: Path) -> None:
    head = "import os\nimport sys\nimport json\n" * 20
    texts = [head + text for text in python_sources(30)]
    settings = {"k": 5, "rerank": 40, "drop_duplicates": True}
    project = make_project(tmp_path, texts, neighbors=settings, index={"key": "IVF1,PQ48x4fs"})
    assert project.build() == 0
    database = project.open()
    every = np.arange(len(database))
    tokens, documents = database.chunks[every], database.chunks.documents(every)
    truth, _ = without_copies(database.embeddings[every], tokens, documents, 5)
    copied = (tokens == tokens[0]).all(axis=1)
    assert copied.sum() == 30
    found = database.neighbors[every]
    assert brute_force.recall(found[copied], truth[copied], 5) >= 0.98


def test_mistakes_name_the_query_corpus(tmp_path: Path, capsys: Any) -> None:
    project = make_project(tmp_path, ["one text", "another text"])
    for query, words in (
        ({"name": "a/b", "paths": [str(tmp_path)]}, "queries.0.name"),
        ({"name": "eval", "paths": [str(tmp_path / "nowhere.jsonl")]}, "queries.0.paths"),
    ):
        project.settings["queries"] = [query]
        assert project.build() == 2
        assert words in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    project.settings["queries"] = [{"name": "eval", "paths": [str(tmp_path / "empty.jsonl")]}]
    assert project.build() == 2
    assert "queries.0: no document with a token" in capsys.readouterr().err


@pytest.mark.parametrize("drop", [False, True])
def test_copies_of_a_chunk_are_kept_or_dropped(tmp_path: Path, drop: bool) -> None:
    # The first 64 tokens of every document are the same; two documents are the same altogether.
    head = "import os\nimport sys\nimport json\n" * 20
    texts = [head + text for text in python_sources(30)]
    texts.append(texts[0])
    settings = {"k": 5, "rerank": 20, "drop_duplicates": drop}
    project = make_project(tmp_path, texts, neighbors=settings, index={"key": "IVF1,Flat"})
    assert project.build() == 0
    database = project.open()
    # In some Pythons' modules a chunk has no WordPiece, and so is nobody's neighbor.
    embeddings = database.embeddings[np.arange(len(database))]
    every = np.flatnonzero(embeddings.any(axis=1))
    keys, tokens = embeddings[every].astype(np.float64), database.chunks[every]
    ids = np.searchsorted(every, database.neighbors[every])
    same = (tokens[ids] == tokens[:, None]).all(axis=2)
    assert same.any() is np.bool_(not drop)
    assert database.manifest.counts.short_rows == 0, "29 copies hide others among 20 candidates"
    documents = database.chunks.documents(every)
    if drop:
        truth, _ = without_copies(keys, tokens, documents, 5)
    else:
        truth, _ = brute_force.neighbors(keys, documents, np.ones(len(keys), bool), 5)
    distances = database.neighbors.distances(every)
    exact = ((keys[truth] - keys[:, None]) ** 2).sum(axis=2)
    assert (distances <= exact * (1 + 1e-5) + 1e-6).all()


def without_copies(
    keys: np.ndarray, tokens: np.ndarray, documents: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Brute force among chunks of other documents and with other tokens."""
    x = keys.astype(np.float64)
    rows = []
    for row in range(len(x)):
        exact = ((x - x[row]) ** 2).sum(axis=1)
        exact[(documents == documents[row]) | (tokens == tokens[row]).all(axis=1)] = np.inf
        rows.append(np.lexsort((np.arange(len(x)), exact))[:k])
    return np.array(rows), np.empty(0)
