"""Documents that were removed: no neighbors and no training text any more, and every id as it was."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import retro_db
from retro_db.errors import ExecutionError, InputError
from retro_db.manifest.sealing import read_manifest, write_generation
from retro_db.reader.database import Corpus, Database
from retro_db.reader.rows import pack
from retro_db.search.retriever import Retriever
from retro_db.store.folder import Folder, describe
from retro_db.updates.removal import remove_documents
from retro_db_pipelines.commands.cli import run
from support.projects import Project, make_project
from support.texts import python_sources


@pytest.fixture
def db(small: Project, tmp_path: Path) -> str:
    """A copy of the small database."""
    return str(shutil.copytree(small.output, tmp_path / "db"))


@pytest.fixture(scope="module")
def clashing(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two sources that share ids, one of which holds an id twice, and a query corpus; a flat index."""
    texts = python_sources(14)
    folder = tmp_path_factory.mktemp("clashing")
    project = make_project(folder, texts[:6], index={"key": "IVF3,Flat", "partitions": 2})
    names = {
        "other": ["doc-0", "twice", "twice", "doc\twith tab", "empty"],
        "asked": ["doc-1", "question"],
    }
    for name, ids in names.items():
        own = iter(texts[6:] if name == "other" else texts[11:])
        lines = [
            orjson.dumps({"id": one, "text": "" if one == "empty" else next(own)}) for one in ids
        ]
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    sources = {
        name: {"name": name, "paths": [str(folder / f"{name}.jsonl")], "id": "id"} for name in names
    }
    project.settings["corpus"].append(sources["other"])
    project.settings["queries"] = [sources["asked"]]
    assert project.build() == 0
    return project


@pytest.fixture
def clash(clashing: Project, tmp_path: Path) -> str:
    """A copy of it."""
    return str(shutil.copytree(clashing.output, tmp_path / "clash"))


def chosen(database: Database) -> list[int]:
    """Rows of some documents: the first, two in a row, and the first of the validation split."""
    splits = database.documents["split"].to_pylist()
    return sorted({0, 20, 21, splits.index("validation")})


def write_list(folder: Path, *lines: str) -> str:
    path = folder / "documents.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def remove(url: str, folder: Path, rows: list[int]) -> None:
    """Removes documents by their rows, with the command."""
    ids = retro_db.open(url).documents["id"].to_pylist()
    listed = write_list(folder, *(ids[row] for row in rows))
    assert run(["remove", url, "--documents", listed]) == 0


def chunk_ids(database: Database, rows: list[int]) -> set[int]:
    """The ids of documents' chunks."""
    table = database.documents.take(rows).to_pylist()
    return {
        chunk
        for one in table
        for chunk in range(one["first_chunk"], one["first_chunk"] + one["chunk_count"])
    }


def dropped(
    ids: np.ndarray, distances: np.ndarray, gone: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Stored neighbors without the removed ones, row by row."""
    near, away = np.full_like(ids, -1), np.full_like(distances, np.inf)
    for row in range(len(ids)):
        left = [
            place for place, one in enumerate(ids[row].tolist()) if one >= 0 and one not in gone
        ]
        near[row, : len(left)] = ids[row, left]
        away[row, : len(left)] = distances[row, left]
    return near, away


def check_neighbors(corpus: Corpus, before: Corpus, gone: set[int]) -> int:
    """Neighbors are those of before without the removed; how many rows differ."""
    every = np.arange(len(before))
    old = before.neighbors[every]
    near, away = dropped(old, before.neighbors.distances(every), gone)
    assert np.array_equal(corpus.neighbors[every], near)
    assert np.array_equal(corpus.neighbors.distances(every), away)
    assert corpus.neighbors[every].dtype == np.int64
    assert corpus.neighbors.distances(every).dtype == np.float32
    assert np.array_equal(corpus.neighbors[7], near[7])
    assert np.array_equal(corpus.neighbors.distances(7), away[7])
    assert np.array_equal(corpus.neighbors[every.reshape(-1, 1)], near[:, None])
    assert corpus.neighbors[[]].shape == (0, near.shape[1])
    return int((near != old).any(axis=1).sum())


def test_ids_stay_and_neighbors_go(db: str, small: Project, tmp_path: Path, capsys: Any) -> None:
    before = small.open()
    rows = chosen(before)
    gone = chunk_ids(before, rows)
    remove(db, tmp_path, rows)
    assert f"removed    4 documents, {len(gone)} chunks: {db} is generation 2" in (
        capsys.readouterr().out
    )
    after, every = retro_db.open(db), np.arange(len(before))
    assert after.removed.tolist() == rows
    assert after.removed_chunks.tolist() == sorted(gone)
    assert np.array_equal(np.flatnonzero(after.is_removed(every)), after.removed_chunks)
    assert after.is_removed(np.array([[-1], [min(gone)]])).tolist() == [[False], [True]]
    assert not before.is_removed(every).any()
    assert len(before.removed) == len(before.removed_chunks) == 0
    assert np.array_equal(after.chunks[every], before.chunks[every])
    assert np.array_equal(after.embeddings[every], before.embeddings[every])
    assert after.documents.equals(before.documents)
    assert check_neighbors(after, before, gone) > 20
    assert check_neighbors(pickle.loads(pickle.dumps(after)), before, gone) > 20  # noqa: S301
    assert run(["inspect", db]) == 0
    shown = capsys.readouterr().out
    assert "generation 2" in shown
    assert f"removed    4 documents, {len(gone)} chunks" in shown


def test_the_new_generation_on_disk(db: str, small: Project, tmp_path: Path) -> None:
    old = small.files()
    rows = chosen(small.open())
    remove(db, tmp_path, rows)
    new = Project(tmp_path, [], {"output": db}).files()
    replaced = {"manifest.json", "README.md"}
    assert {name: new[name] for name in old if name not in replaced} == {
        name: data for name, data in old.items() if name not in replaced
    }
    assert sorted(set(new) - set(old)) == [
        "generations/0001/manifest.json",
        "generations/0002/removed.parquet",
    ]
    assert new["generations/0001/manifest.json"] == old["manifest.json"]
    before, after = small.open().manifest, retro_db.open(db).manifest
    assert (after.generation, after.parent) == (2, before.sha256)
    changed = {
        name
        for name, value in dataclasses.asdict(after).items()
        if value != dataclasses.asdict(before)[name]
    }
    assert changed == {"counts", "tables", "generation", "parent", "sha256"}
    table = pq.read_table(Path(db) / "generations/0002/removed.parquet").to_pylist()
    documents = small.open().documents.to_pylist()
    assert table == [
        {"document": row, "source": documents[row]["source"], "id": documents[row]["id"]}
        for row in rows
    ]


@pytest.mark.parametrize("seq_len", [64, 512])
def test_a_dataset_of_what_is_left(db: str, small: Project, tmp_path: Path, seq_len: int) -> None:
    before = small.open()
    rows = chosen(before)
    gone = chunk_ids(before, rows)
    remove(db, tmp_path, rows)
    after = retro_db.open(db)
    dataset = retro_db.RetroDataset(after, seq_len=seq_len, k=3)
    documents = before.documents.to_pylist()
    kept = [
        (row, chunk)
        for row, one in enumerate(documents)
        if one["split"] == "train" and row not in rows
        for chunk in sorted(chunk_ids(before, [row]))
    ]
    per = seq_len // 64
    assert len(dataset) == -(-len(kept) // per)
    stored = before.neighbors[np.arange(len(before))].tolist()
    for index, example in enumerate(dataset):
        own = kept[index * per : index * per + per]
        excluded = gone | chunk_ids(before, sorted({row for row, _ in own}))
        tokens = example["tokens"].reshape(per, 64)
        assert np.array_equal(tokens[: len(own)], before.chunks[[chunk for _, chunk in own]])
        for place, (_, chunk) in enumerate(own):
            usable = [one for one in stored[chunk] if one >= 0 and one not in excluded][:3]
            ids = example["neighbor_ids"][place]
            assert ids.tolist() == usable + [-1] * (3 - len(usable))
            values = before.chunks.values(ids[ids >= 0])
            assert np.array_equal(example["neighbors"][place][ids >= 0], values)
    texts = {before.chunks[[chunk]].tobytes() for chunk in gone}
    shown = {
        row.astype(np.uint16).tobytes() for e in dataset for row in e["tokens"].reshape(-1, 64)
    }
    copies = {before.chunks[[chunk]].tobytes() for _, chunk in kept}
    assert not (texts - copies) & shown


def test_everything_can_go(db: str, small: Project, tmp_path: Path) -> None:
    remove(db, tmp_path, list(range(len(small.open().documents))))
    after = retro_db.open(db)
    dataset = retro_db.RetroDataset(after, seq_len=256)
    assert len(dataset) == 0
    with pytest.raises(IndexError):
        dataset[0]
    assert (after.neighbors[:] == -1).all()
    ids, distances = Retriever(after).search(["import sys"], 3)
    assert (ids == -1).all()
    assert np.isinf(distances).all()


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("fixture", ["db", "clash"])
def test_search_equals_brute_force_over_what_is_left(
    request: pytest.FixtureRequest, fixture: str, memory: int | None, tmp_path: Path
) -> None:
    url = request.getfixturevalue(fixture)
    before = retro_db.open(url)
    queries = [text[:200] for text in python_sources(12)]
    documents = before.documents.to_pylist()
    asked = [(0, 10) if number % 2 else (0, 0) for number in range(len(queries))]
    # The nearest documents go: a search that drops them afterwards would come short.
    nearest, _ = Retriever(before).search(queries, 3)
    rows = sorted(set(before.chunks.documents(nearest.reshape(-1)).tolist()))
    rows = rows[: len(documents) // 2]
    listed = [f"{documents[row]['source']}\t{documents[row]['id']}" for row in rows]
    assert run(["remove", url, "--documents", write_list(tmp_path, *listed)]) == 0

    after = retro_db.open(url)
    index = dataclasses.replace(
        after.manifest.index, nprobe=after.manifest.index.lists, rerank=len(after)
    )
    widest = Database(after.folder, dataclasses.replace(after.manifest, index=index))
    retriever = Retriever(widest, memory=memory)
    assert retriever._finder.searcher.streams == (memory is not None)
    vectors = retriever._encoder.encode(queries).astype(np.float16).astype(np.float64)
    keys = before.embeddings[np.arange(len(before))].astype(np.float64)
    owners = before.chunks.documents(np.arange(len(before)))
    split = np.array(before.documents["split"].to_pylist())
    left = (split[owners] == "train") & ~np.isin(owners, after.removed) & keys.any(axis=1)
    count = min(50, int(left.sum()) - 10)
    ids, distances = retriever.search(queries, count, exclude=asked)
    for row, (first, end) in enumerate(asked):
        exact = ((keys - vectors[row]) ** 2).sum(axis=1)
        exact[~left] = np.inf
        exact[first:end] = np.inf
        order = np.argsort(exact, kind="stable")[:count]
        assert np.isfinite(exact[order]).all()
        np.testing.assert_allclose(distances[row], exact[order], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(exact[ids[row]], exact[order], rtol=1e-5, atol=1e-5)
        assert len(set(ids[row].tolist())) == count


def test_earlier_generations_stay_readable(db: str, small: Project, tmp_path: Path) -> None:
    opened, before = retro_db.open(db), small.open()
    every = np.arange(len(before))
    first, second = [1, 2], [30, 2, 3]
    remove(db, tmp_path, first)
    between = retro_db.open(db)
    remove(db, tmp_path, second)
    for old in (opened, retro_db.open(db, generation=1)):
        assert len(old.removed) == 0
        assert np.array_equal(old.neighbors[every], before.neighbors[every])
    for middle in (between, retro_db.open(db, generation=2)):
        assert middle.removed.tolist() == first
        check_neighbors(middle, before, chunk_ids(before, first))
    for last in (retro_db.open(db), retro_db.open(db, generation=3)):
        assert last.manifest.generation == 3
        assert last.manifest.parent == between.manifest.sha256
        assert last.removed.tolist() == [1, 2, 3, 30]
        gone = chunk_ids(before, [1, 2, 3, 30])
        check_neighbors(last, before, gone)
        counts = last.manifest.counts
        assert (counts.removed_documents, counts.removed_chunks) == (4, len(gone))
        assert [entry.rows for entry in last.manifest.tables.removed] == [2, 2]
    for generation in (0, 4):
        with pytest.raises(InputError, match=rf"no generation {generation}; known: 1, 2, 3$"):
            retro_db.open(db, generation)
    shutil.rmtree(Path(db) / "generations/0001")
    with pytest.raises(InputError, match=r"no generation 1; known: 2, 3$"):
        retro_db.open(db, 1)


def test_nothing_left_to_remove(db: str, tmp_path: Path, capsys: Any) -> None:
    remove(db, tmp_path, [1, 2])
    manifest = (Path(db) / "manifest.json").read_bytes()
    capsys.readouterr()
    remove(db, tmp_path, [2])
    assert capsys.readouterr().out == "removed    nothing: 1 had been removed before\n"
    assert run(["remove", db, "--documents", write_list(tmp_path, "", "  ")]) == 0
    assert capsys.readouterr().out == "removed    nothing: no document is listed\n"
    assert (Path(db) / "manifest.json").read_bytes() == manifest
    remove(db, tmp_path, [2, 3])
    assert "1 had been removed before" in capsys.readouterr().out


def test_ids_of_several_sources(clash: str, tmp_path: Path) -> None:
    before = retro_db.open(clash)
    names = [(one["source"], one["id"]) for one in before.documents.to_pylist()]
    listed = write_list(
        tmp_path, "\ufeffother\tdoc-0\r", "", "doc-2", "twice", "doc\twith tab", "empty", "doc-2"
    )
    removal = remove_documents(clash, listed)
    wanted = [
        ("test", "doc-2"),
        ("other", "doc-0"),
        ("other", "twice"),
        ("other", "doc\twith tab"),
        ("other", "empty"),
    ]
    rows = [row for row, name in enumerate(names) if name in wanted]
    assert (removal.documents, removal.already, removal.generation) == (6, 0, 2)
    after = retro_db.open(clash)
    assert after.removed.tolist() == rows
    gone = chunk_ids(before, rows)
    assert removal.chunks == len(gone) == len(after.removed_chunks)
    check_neighbors(after, before, gone)
    assert check_neighbors(after.queries["asked"], before.queries["asked"], gone) > 0
    copy = pickle.loads(pickle.dumps(after.queries["asked"]))  # noqa: S301 - our own bytes
    check_neighbors(copy, before.queries["asked"], gone)
    dataset = retro_db.RetroDataset(after, seq_len=128, k=2, queries="asked")
    assert len(dataset) == -(-len(before.queries["asked"]) // 2)
    near, _ = dropped(
        before.queries["asked"].neighbors[[0, 1]],
        before.queries["asked"].neighbors.distances([0, 1]),
        gone,
    )
    assert np.array_equal(dataset[0]["neighbor_ids"], near[:, :2])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["doc-1", "doc-99"], ["line 2", "'doc-99'", "correct or delete"]),
        (["", "", "doc-0"], ["line 3", "'doc-0'", "several sources (other, test)", "a tab"]),
        (["test\ttwice"], ["line 1", "source test", "'twice'"]),
        (["asked\tquestion"], ["line 1", r"'asked\tquestion'"]),
        (["question"], ["line 1", "'question'"]),
    ],
)
def test_wrong_lists_are_refused(
    clash: str, tmp_path: Path, capsys: Any, lines: list[str], words: list[str]
) -> None:
    listed = write_list(tmp_path, *lines)
    refused(capsys, clash, listed, listed, *words)


def test_unreadable_lists_are_refused(clash: str, tmp_path: Path, capsys: Any) -> None:
    refused(capsys, clash, str(tmp_path / "missing"), "missing: cannot be read", "check the path")
    listed = tmp_path / "latin"
    listed.write_bytes("döc".encode("latin-1"))
    refused(capsys, clash, str(listed), "latin: not UTF-8 at byte 1")
    refused(capsys, str(tmp_path), write_list(tmp_path, "doc-1"), "so not a database")


def refused(capsys: Any, url: str, listed: str, *words: str) -> None:
    """The command ends with exit code 2 and one line that holds the words, and changes nothing."""
    before = sorted(path for path in Path(url).rglob("*") if "state" not in path.parts)
    capsys.readouterr()
    assert run(["remove", url, "--documents", listed]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in words:
        assert word in message
    assert sorted(path for path in Path(url).rglob("*") if "state" not in path.parts) == before


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_stop_between_the_writes(
    db: str, small: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, late: bool
) -> None:
    """Stopped just before or just after each file takes its name."""
    rows = chosen(small.open())
    gone = chunk_ids(small.open(), rows)
    renamed: list[str] = []
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        if "state" in Path(target).parts:
            return replace(source, target)
        if len(renamed) == stop and not late:
            raise KeyboardInterrupt
        replace(source, target)
        renamed.append(Path(target).name)
        if len(renamed) == stop + 1:
            raise KeyboardInterrupt
        return None

    ids = small.open().documents["id"].to_pylist()
    listed = write_list(tmp_path, *(ids[row] for row in rows))
    with monkeypatch.context() as patched:
        patched.setattr("retro_db.store.folder.os.replace", failing)
        with pytest.raises(KeyboardInterrupt):
            remove_documents(db, listed)
    assert (
        renamed == ["removed.parquet", "manifest.json", "manifest.json", "README.md"][: stop + late]
    )
    done = (stop == 2 and late) or stop == 3
    sound(db, small, gone if done else set())
    assert remove_documents(db, listed).documents == (0 if done else len(rows))
    sound(db, small, gone)
    assert run(["verify", db]) == 0
    whole = str(shutil.copytree(small.output, tmp_path / "whole"))
    remove_documents(whole, listed)
    again = Project(tmp_path, [], {"output": db}).files()
    assert again == Project(tmp_path, [], {"output": whole}).files()


def sound(url: str, small: Project, gone: set[int]) -> None:
    """Every listed file is as described, and exactly these chunks are removed."""
    database = retro_db.open(url)
    for entry in database.manifest.files:
        assert describe(Path(url) / entry.path, entry.path, entry.rows) == entry
    assert database.removed_chunks.tolist() == sorted(gone)
    assert database.manifest.counts.removed_chunks == len(gone)
    assert database.manifest.generation == (2 if gone else 1)
    check_neighbors(database, small.open(), gone)


def test_a_manifest_that_changed_meanwhile_is_not_superseded(db: str, tmp_path: Path) -> None:
    folder = Folder(db)
    old = read_manifest(folder)
    remove(db, tmp_path, [1])
    with pytest.raises(ExecutionError, match="changed in the meantime"):
        write_generation(folder, old, old)
    assert retro_db.open(db).manifest.parent == old.sha256


def test_on_an_object_store(db: str, small: Project, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(db + "/", "/removal/db", recursive=True)
    url = "memory://removal/db"
    try:
        rows = chosen(small.open())
        remove(url, tmp_path, rows)
        gone = chunk_ids(small.open(), rows)
        check_neighbors(retro_db.open(url), small.open(), gone)
        assert len(retro_db.open(url, generation=1).removed) == 0
    finally:
        store.rm("/removal", recursive=True)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.int64,
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6),
        elements=st.integers(0, 9),
    ),
    st.sets(st.integers(0, 9)),
    st.none() | st.integers(0, 7),
)
def test_packing(values: np.ndarray, gone: set[int], count: int | None) -> None:
    kept = ~np.isin(values, list(gone))
    packed = pack(values, kept, -1, count)
    assert packed.dtype == values.dtype
    width = values.shape[-1] if count is None else min(count, values.shape[-1])
    assert packed.shape == (*values.shape[:-1], width)
    for place in np.ndindex(values.shape[:-1]):
        left = [one for one in values[place].tolist() if one not in gone]
        assert packed[place].tolist() == (left + [-1] * values.shape[-1])[:width]
