"""Removed and compacted, a database is what a build without those documents would have been."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retro_db
from retro_db.errors import DamagedFileError, ExecutionError, NotADatabaseError
from retro_db.manifest.sealing import write_manifest
from retro_db.report.card import render_card
from retro_db.store.folder import Folder
from retro_db.updates.compaction import Renumbering
from retro_db.verify import verify_database
from retro_db_pipelines.builds.compact import compact
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.engine.console import Console
from retro_db_pipelines.engine.runner import Engine
from support import brute_force
from support.disks import failing_disk_at
from support.projects import Project, make_project, remove_documents
from support.texts import python_sources

TEXTS = 40
# Of three shards, one loses all of its documents.
GONE = (0, 3, 4, 11, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 39)
SHARDS = (range(16), range(16, 28), range(28, 40))


def write_corpus(folder: Path, gone: tuple[int, ...]) -> Project:
    """Three sources of a shard each, without some documents, and a query corpus."""
    texts = python_sources(TEXTS + 4)
    project = make_project(folder, [], split={"validation": 0.2}, index={"key": "IVF4,Flat"})
    sources = []
    for number, shard in enumerate(SHARDS):
        place = folder / f"s{number}"
        place.mkdir()
        for text in shard:
            if text not in gone:
                (place / f"{text:02d}.txt").write_text(texts[text], "utf-8")
        if any(place.iterdir()):
            sources.append({"name": f"s{number}", "paths": [str(place / "*.txt")]})
    (folder / "queries").mkdir()
    for number, text in enumerate(texts[TEXTS:]):
        (folder / "queries" / f"{number}.txt").write_text(text, "utf-8")
    project.settings["corpus"] = sources
    project.settings["queries"] = [{"name": "asked", "paths": [str(folder / "queries" / "*.txt")]}]
    return project


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """With the documents removed, compacted, and built without them."""
    folder = tmp_path_factory.mktemp("compaction")
    full = write_corpus(folder / "full", ())
    assert full.build() == 0
    tokenizer = folder / "tokenizer"
    shutil.copytree(full.output / "tokenizer", tokenizer)
    without = write_corpus(folder / "without", GONE)
    without.settings["tokenizer"] = {"path": str(tokenizer)}
    assert without.build() == 0
    database = full.open()
    ids = [database.documents["id"][row].as_py() for row in GONE]
    assert remove_documents(full.output, ids) == 0
    assert run(["compact", str(full.output), str(folder / "compacted")]) == 0
    return full.output, folder / "compacted", without.output


def test_it_equals_a_build_without_the_documents(databases: tuple[Path, Path, Path]) -> None:
    _, compacted, built = (retro_db.open(str(path)) for path in databases)
    assert len(compacted.manifest.tables.chunks) == len(built.manifest.tables.chunks)
    for table in ("chunks", "documents"):
        for one, other in zip(
            getattr(compacted.manifest.tables, table),
            getattr(built.manifest.tables, table),
            strict=True,
        ):
            assert one.sha256 == other.sha256, table
    every = np.arange(len(built))
    # Other batch mates change the last bits.
    np.testing.assert_allclose(compacted.embeddings[every], built.embeddings[every], atol=2e-3)
    for name in ("documents", "chunks", "tokens", "validation_chunks", "indexed_chunks"):
        assert getattr(compacted.manifest.counts, name) == getattr(built.manifest.counts, name)
    assert compacted.manifest.generation == 1
    assert verify_database(str(databases[1]), recompute=1.0).problems == []
    assert (databases[1] / "README.md").read_bytes() == render_card(compacted.manifest)


def test_its_neighbors_are_those_of_what_is_left(databases: tuple[Path, Path, Path]) -> None:
    _, compacted, built = (retro_db.open(str(path)) for path in databases)
    every = np.arange(len(compacted))
    keys, documents = compacted.embeddings[every], compacted.chunks.documents(every)
    every, keyed = every[keys.any(axis=1)], keys.any(axis=1)
    split = np.array(compacted.documents["split"].to_pylist())[documents]
    allowed = (split == "train") & keyed
    truth, exact = brute_force.neighbors(keys, documents, allowed, 20, every)
    found = compacted.neighbors[every]
    assert ((found >= 0) == (truth >= 0)).all(), "rows that lost neighbors are full again"
    assert brute_force.recall(found, truth, 10) >= 0.98
    same = found == truth
    np.testing.assert_allclose(compacted.neighbors.distances(every)[same], exact[same], rtol=1e-5)
    others = built.neighbors[every]
    shared = [len(set(a) & set(b)) / 20 for a, b in zip(found, others, strict=True)]
    assert np.mean(shared) > 0.97


def test_the_map_leads_from_old_ids_to_new(databases: tuple[Path, Path, Path]) -> None:
    old, compacted, _ = (retro_db.open(str(path)) for path in databases)
    table = compacted.renumbered
    mapped = Renumbering(*(table[name].to_numpy() for name in table.column_names))
    ids = np.arange(len(old))
    new = mapped.of(ids)
    assert np.array_equal(new < 0, old.is_removed(ids))
    kept = ids[new >= 0]
    assert np.array_equal(new[kept], np.arange(len(compacted)))
    assert np.array_equal(old.chunks[kept], compacted.chunks[new[kept]])
    assert np.array_equal(old.embeddings[kept], compacted.embeddings[new[kept]])
    assert len(table) < 20, "runs, not a row a chunk"


def test_query_corpora_come_along(databases: tuple[Path, Path, Path]) -> None:
    old, compacted, _ = (retro_db.open(str(path)) for path in databases)
    before, after = old.queries["asked"], compacted.queries["asked"]
    assert np.array_equal(before.chunks[:], after.chunks[:])
    assert (after.neighbors[:] >= 0).all()
    assert after.neighbors[:].max() < len(compacted)


def test_sources_tell_what_was_removed(databases: tuple[Path, Path, Path]) -> None:
    compacted = retro_db.open(str(databases[1])).manifest
    by_name = {source.name: source for source in compacted.sources}
    assert by_name["s1"].documents == 0
    assert by_name["s1"].dropped_by == {"removed": len(SHARDS[1])}
    for source in compacted.sources:
        assert source.read == source.documents + source.dropped + source.rejected


def test_again_it_changes_nothing_and_no_build_undoes_it(
    databases: tuple[Path, Path, Path], capsys: Any
) -> None:
    old, compacted, built = databases
    before = (compacted / "manifest.json").read_bytes()
    capsys.readouterr()
    assert run(["compact", str(old), str(compacted)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (compacted / "manifest.json").read_bytes() == before
    config = Project(
        compacted.parent,
        [],
        {
            "output": str(compacted),
            "corpus": [{"name": "x", "paths": [str(built)]}],
            "tokenizer": {"train": {}},
            "encoder": {"model": "x"},
        },
    )
    assert config.build() == 2
    assert "was compacted" in capsys.readouterr().err
    for other in (old, built):
        before = (other / "manifest.json").read_bytes()
        assert run(["compact", str(old), str(other)]) == 2
        assert "another database or build is there" in capsys.readouterr().err
        assert (other / "manifest.json").read_bytes() == before


def test_what_cannot_be_compacted_is_refused(
    databases: tuple[Path, Path, Path], tmp_path: Path, capsys: Any
) -> None:
    old, _, _ = databases
    copy = tmp_path / "db"
    shutil.copytree(old, copy)
    assert remove_documents(copy, retro_db.open(str(copy)).documents["id"].to_pylist()) == 0
    capsys.readouterr()
    assert run(["compact", str(copy), str(tmp_path / "new")]) == 2
    assert "nothing is left" in capsys.readouterr().err
    assert run(["compact", str(tmp_path / "none"), str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_stopped_behind_its_manifest_it_is_done_all_the_same(
    databases: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = databases[0], tmp_path / "new"
    with failing_disk_at("state/finished", monkeypatch):
        assert run(["compact", str(old), str(new)]) == 3
    assert remove_documents(new, [retro_db.open(str(new)).documents["id"][5].as_py()]) == 0
    manifest = (new / "manifest.json").read_bytes()
    capsys.readouterr()
    assert run(["compact", str(old), str(new)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (new / "manifest.json").read_bytes() == manifest


def test_a_file_that_is_gone_is_made_again(
    databases: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    old, compacted, _ = databases
    copy = tmp_path / "new"
    shutil.copytree(compacted, copy)
    entry = retro_db.open(str(copy)).manifest.tables.embeddings[0]
    (copy / entry.path).unlink()
    assert run(["compact", str(old), str(copy)]) == 0
    assert verify_database(str(copy)).problems == []
    assert retro_db.open(str(copy)).manifest.sha256 == retro_db.open(str(compacted)).manifest.sha256


@pytest.mark.parametrize("table", ["chunks", "documents", "embeddings", "index"])
def test_damage_is_not_passed_on(
    databases: tuple[Path, Path, Path], tmp_path: Path, capsys: Any, table: str
) -> None:
    copy = tmp_path / "db"
    shutil.copytree(databases[0], copy)
    manifest = retro_db.open(str(copy)).manifest
    entries = manifest.partition_files if table == "index" else getattr(manifest.tables, table)
    data = bytearray((copy / entries[-1].path).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / entries[-1].path).write_bytes(data)
    capsys.readouterr()
    assert run(["compact", str(copy), str(tmp_path / "new")]) == DamagedFileError.exit_code
    assert f"{entries[-1].path}" in capsys.readouterr().err
    assert not (tmp_path / "new" / "manifest.json").exists()


class Interfering(Console):
    """A console behind whose back something happens to the database that is compacted."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self._happens = happens

    def say(self, message: str = "") -> None:
        """Shows the line, and lets it happen at the first."""
        super().say(message)
        if message.startswith("compact "):
            self._happens()


def test_what_becomes_of_the_old_database_meanwhile_is_told(
    databases: tuple[Path, Path, Path], tmp_path: Path, capsys: Any
) -> None:
    old, compacted, _ = databases
    copy = tmp_path / "db"
    shutil.copytree(old, copy)
    name = retro_db.open(str(copy)).documents["id"][5].as_py()
    console = Interfering(lambda: remove_documents(copy, [name]))
    compact(str(copy), str(tmp_path / "new"), Engine(), console)
    assert "is now at generation 3" in capsys.readouterr().out
    new, same = (retro_db.open(str(path)).manifest.tables for path in (tmp_path / "new", compacted))
    assert new == same, "what was there when it began"
    manifest = Folder(str(copy)).read("manifest.json")
    for change in (
        lambda: write_manifest(
            Folder(str(copy)), replace(retro_db.open(str(copy)).manifest, parent=None)
        ),
        lambda: Folder(str(copy)).remove("manifest.json"),
    ):
        with pytest.raises((ExecutionError, NotADatabaseError)):
            compact(str(copy), str(tmp_path / "newer"), Engine(), Interfering(change))
        assert not (tmp_path / "newer" / "manifest.json").exists()
        Folder(str(copy)).write("manifest.json", manifest)


@given(st.lists(st.booleans(), max_size=60))
def test_ids_are_mapped_like_one_by_one(kept: list[bool]) -> None:
    flags = np.array(kept, bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    first, end = edges[::2], edges[1::2]
    count = end - first
    mapped = Renumbering(first, np.cumsum(count) - count, count).of(np.arange(-1, len(kept) + 2))
    expected, new = [-1], 0
    for flag in kept:
        expected.append(new if flag else -1)
        new += flag
    assert mapped.tolist() == [*expected, -1, -1]
