"""Documents added to a database: what was there stays, and what is new is as if built at once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retro_db
from retro_db.errors import DamagedFileError
from retro_db.reader.database import Database
from retro_db.report.card import render_card
from retro_db.verify import verify_database
from retro_db_pipelines.commands.cli import run
from support import brute_force
from support.disks import failing_disk_at
from support.projects import Project, make_project, remove_documents
from support.texts import python_sources

# Each is a shard of its own, appended or not.
PARTS = 4


class Growing:
    """A corpus in four folders, a database of the first, and configurations that add the others."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        base = make_project(folder, [], **settings)
        texts = python_sources(80)
        for number in range(PARTS):
            (folder / f"c{number}").mkdir()
            for place, text in enumerate(texts[number::PARTS]):
                (folder / f"c{number}" / f"{number}-{place:02d}.txt").write_text(text, "utf-8")
        self._base = base

    def project(self, name: str, *numbers: int, **settings: Any) -> Project:
        """A configuration over some of the folders."""
        sources = [
            {"name": f"c{number}", "paths": [str(self.folder / f"c{number}" / "*.txt")]}
            for number in numbers
        ]
        place = self.folder / "configs" / f"{name}-{'-'.join(map(str, numbers))}"
        place.mkdir(parents=True, exist_ok=True)
        changed = {
            "output": str(self.folder / name),
            "corpus": sources,
        }
        return Project(place, [], self._base.settings | changed | settings)


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Growing:
    """`grown` is built from the first folder and appended to three times, `whole` built at once."""
    folder = tmp_path_factory.mktemp("growing")
    growing = Growing(folder, index={"key": "IVF4,SQ8", "partitions": 2, "recall_target": 0.995})
    first = growing.project("first", 0)
    assert run(["stage", "tokenizer", str(first.config)]) == 0
    shutil.copytree(first.output / "tokenizer", folder / "tokenizer")
    growing._base.settings["tokenizer"] = {"path": str(folder / "tokenizer")}
    assert growing.project("grown", 0).build() == 0
    shutil.copytree(folder / "grown", folder / "one")
    for number in range(1, PARTS):
        assert growing.project("grown", number).build("--append") == 0
    assert growing.project("whole", *range(PARTS)).build() == 0
    return growing


def contents(database: Database, table: str) -> bytes:
    """Every row of a table, in order."""
    every = np.arange(len(database))
    if table == "documents":
        return str(database.documents.drop(["id"]).to_pydict()).encode()
    column = {"chunks": database.chunks, "embeddings": database.embeddings}[table]
    return column[every].tobytes()


def recall_of(database: Database) -> float:
    every = np.arange(len(database))
    keys = database.embeddings[every]
    documents = database.chunks.documents(every)
    truth, _ = brute_force.neighbors(keys, documents, keys.any(axis=1), 10)
    return brute_force.recall(database.neighbors[every], truth, 10)


def test_appended_three_times_it_equals_one_build(growing: Growing, capsys: Any) -> None:
    grown, whole = (retro_db.open(str(growing.folder / name)) for name in ("grown", "whole"))
    assert grown.manifest.generation == PARTS
    for table in ("documents", "chunks", "embeddings"):
        assert contents(grown, table) == contents(whole, table), table
    texts = [row["id"] for row in grown.documents.to_pylist()]
    assert [Path(name).name for name in texts] == [
        Path(row["id"]).name for row in whole.documents.to_pylist()
    ]
    assert grown.manifest.counts.tokens == whole.manifest.counts.tokens
    assert grown.manifest.sources == whole.manifest.sources
    assert verify_database(str(growing.folder / "grown"), recompute=1.0).problems == []
    assert growing.project("grown", 0).build() == 2
    assert "later generations" in capsys.readouterr().err


def test_refreshed_all_chunks_find_neighbors_among_all(growing: Growing, capsys: Any) -> None:
    shutil.copytree(growing.folder / "one", growing.folder / "refreshed")
    card = growing.folder / "refreshed" / "README.md"
    card.write_text("# Mine")
    for number in range(1, PARTS):
        project = growing.project("refreshed", number)
        assert project.build("--append", "--refresh") == 0
        if number == 1:
            assert "README.md is not as retro-db wrote it, and stays" in capsys.readouterr().out
            assert card.read_text() == "# Mine"
            card.unlink()
    refreshed = project.open()
    assert card.read_bytes() == render_card(refreshed.manifest)
    grown, whole = (retro_db.open(str(growing.folder / name)) for name in ("grown", "whole"))
    assert verify_database(str(project.output), recompute=1.0).problems == []
    assert recall_of(refreshed) >= recall_of(whole) - 0.01
    old = np.arange(refreshed.manifest.tables.chunks[0].rows)
    assert refreshed.neighbors[old].max() > old.max()
    assert grown.neighbors[old].max() <= old.max()
    new = np.arange(len(grown) - (grown.manifest.tables.chunks[-1].rows), len(grown))
    assert np.array_equal(grown.neighbors[new], refreshed.neighbors[new])


def test_readers_of_the_database_before_are_not_disturbed(growing: Growing) -> None:
    shutil.copytree(growing.folder / "one", growing.folder / "read")
    before = retro_db.open(str(growing.folder / "read"))
    rows = before.neighbors[:].copy()
    untouched = {
        path: path.stat().st_mtime_ns for path in (growing.folder / "read").rglob("*.arrow")
    }
    later = retro_db.open(str(growing.folder / "read"))  # opens its files only after the append
    assert growing.project("read", 1).build("--append", "--refresh") == 0
    assert np.array_equal(later.neighbors[:], rows)
    assert np.array_equal(before.neighbors[:], rows)
    kept = retro_db.open(str(growing.folder / "read"), generation=1)
    assert np.array_equal(kept.neighbors[:], rows)
    assert len(retro_db.open(str(growing.folder / "read"))) > len(kept)
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


@pytest.mark.parametrize(
    ("number", "options", "words"),
    [
        (1, ["--set", "neighbors.k=5"], ["neighbors.k: 5", "the database has 20"]),
        (
            1,
            ["--set", "neighbors.max_nprobe=3"],
            ["neighbors.max_nprobe: 3", "the database has None"],
        ),
        (1, ["--set", "dedup.jaccard=0.8"], ["dedup.jaccard: 0.8"]),
        (1, ["--set", "leakage.ngram=8"], ["leakage.ngram: 8", "the database has 13"]),
        (1, ["--set", "chunk.tokens=32"], ["chunk.tokens: 32"]),
        (
            1,
            [
                "--set",
                "corpus.0.name=c0",
                "--set",
                "corpus.0.format=jsonl",
                "--set",
                "corpus.0.id=id",
            ],
            ["c0 has id: null in the database", "here id: id;"],
        ),
        (1, ["--set", "index.key=IVF16,SQ8"], ["index.key", "the trained index stays"]),
        (0, [], ["0-00.txt", "generation 1"]),
    ],
)
def test_what_does_not_fit_is_refused(
    growing: Growing, capsys: Any, number: int, options: list[str], words: list[str]
) -> None:
    if not (growing.folder / "refusing").exists():
        shutil.copytree(growing.folder / "one", growing.folder / "refusing")
    manifest = (growing.folder / "refusing" / "manifest.json").read_bytes()
    capsys.readouterr()
    assert growing.project("refusing", number).build("--append", *options) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in words:
        assert word in message
    assert (growing.folder / "refusing" / "manifest.json").read_bytes() == manifest


def test_nothing_is_appended_to_no_database_and_refresh_needs_append(
    growing: Growing, capsys: Any
) -> None:
    assert growing.project("nowhere", 1).build("--append") == 2
    assert "nowhere: does not exist; check the path" in capsys.readouterr().err
    assert growing.project("grown", 1).build("--refresh") == 2
    assert "--append" in capsys.readouterr().err
    assert not (growing.folder / "nowhere").exists()


def test_in_any_order_the_database_is_what_a_search_finds(tmp_path: Path) -> None:
    """By an index whose candidates are few: what is removed must not take their places."""
    (tmp_path / "asked.txt").write_text("\n".join(python_sources(3)), "utf-8")
    growing = Growing(
        tmp_path,
        index={"key": "IVF5,PQ48x4fs", "partitions": 2},
        neighbors={"rerank": 25},
        queries=[{"name": "asked", "paths": [str(tmp_path / "asked.txt")]}],
    )
    assert growing.project("db", 0).build() == 0
    url = str(tmp_path / "db")

    def is_sound(place: str) -> None:
        checked = verify_database(place, recompute=1.0)
        assert checked.problems == []

    def remove(place: str, step: int) -> None:
        database = retro_db.open(place)
        left = np.setdiff1d(np.arange(len(database.documents)), database.removed)
        ids = database.documents["id"].take(left[::step]).to_pylist()
        assert remove_documents(Path(place), ids) == 0

    assert growing.project("db", 1).build("--append") == 0
    remove(url, 2)
    is_sound(url)
    assert run(["compact", url, f"{url}-1"]) == 0
    is_sound(f"{url}-1")
    assert growing.project("db", 2).build("--append", "--refresh") == 0
    is_sound(url)
    assert growing.project("db-1", 2).build("--append") == 0
    remove(f"{url}-1", 3)
    is_sound(f"{url}-1")
    assert run(["compact", f"{url}-1", f"{url}-2"]) == 0
    is_sound(f"{url}-2")
    tables = [retro_db.open(f"{url}-{number}").manifest.tables for number in (1, 2)]
    assert tables[0].renumbered != tables[1].renumbered


def test_duplicates_among_what_is_appended_are_left_out(tmp_path: Path) -> None:
    growing = Growing(tmp_path, dedup={"jaccard": 0.8})
    assert growing.project("db", 0).build() == 0
    sources = sorted((tmp_path / "c1").iterdir())
    (tmp_path / "c2" / "copy.txt").write_bytes(sources[0].read_bytes())
    assert growing.project("db", 1, 2).build("--append") == 0
    database = retro_db.open(str(tmp_path / "db"))
    assert [source.dropped_by for source in database.manifest.sources] == [{}, {}, {"duplicate": 1}]
    assert verify_database(str(tmp_path / "db")).problems == []


def test_what_an_append_would_pass_on_must_be_what_was_written(
    growing: Growing, capsys: Any
) -> None:
    shutil.copytree(growing.folder / "one", growing.folder / "flipped")
    project = growing.project("flipped", 1)
    partition = project.open().manifest.partition_files[0].path
    data = bytearray((project.output / partition).read_bytes())
    data[-9] ^= 1
    (project.output / partition).write_bytes(data)
    capsys.readouterr()
    assert project.build("--append") == DamagedFileError.exit_code
    assert f"{partition}: its bytes are not those" in capsys.readouterr().err


def test_a_file_that_an_append_has_made_and_that_is_gone_is_named(
    growing: Growing, capsys: Any
) -> None:
    shutil.copytree(growing.folder / "grown", growing.folder / "holed")
    project = growing.project("holed", PARTS - 1)
    path = project.open().manifest.tables.embeddings[-1].path
    (project.output / path).unlink()
    capsys.readouterr()
    assert project.build("--append") == DamagedFileError.exit_code
    assert f"{path} is missing" in capsys.readouterr().err


def test_an_append_that_is_under_way_is_left_alone(
    growing: Growing, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shutil.copytree(growing.folder / "one", growing.folder / "halted")
    project = growing.project("halted", 1)
    with failing_disk_at("halted/manifest.json", monkeypatch):
        assert project.build("--append") == 3
    assert (project.output / "generations" / "0001" / "manifest.json").exists()
    checked = verify_database(str(project.output))
    assert checked.problems == []
    assert "an append is under way" in checked.notes[0]
    assert remove_documents(project.output, [project.open().documents["id"][0].as_py()]) == 2
    assert "an append was stopped" in capsys.readouterr().err
    assert growing.project("halted", 0).build("--dry-run") == 0, "there is no later generation"
    assert project.build("--append") == 0
    assert project.open().manifest.generation == 2


def test_the_same_append_again_changes_nothing(growing: Growing, capsys: Any) -> None:
    before = (growing.folder / "grown" / "manifest.json").read_bytes()
    capsys.readouterr()
    assert growing.project("grown", PARTS - 1).build("--append") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (growing.folder / "grown" / "manifest.json").read_bytes() == before


def test_an_append_that_was_stopped_goes_on(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(growing.folder / "one", growing.folder / "stopped")
    project = growing.project("stopped", 1)
    real, seen = os.replace, 0

    def fail(source: Any, target: Any) -> None:
        nonlocal seen
        seen += "/records/" in str(target)
        if seen == 5:
            raise OSError(5, "Input/output error", str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert project.build("--append") == 3
    assert verify_before(project) == 1
    assert project.build("--append") == 0
    shutil.copytree(growing.folder / "one", growing.folder / "unstopped")
    other = growing.project("unstopped", 1)
    assert other.build("--append") == 0
    assert project.files() == other.files()


def verify_before(project: Project) -> int:
    """The generation of a database that an append left as it was."""
    return json.loads((project.output / "manifest.json").read_bytes())["generation"]


def test_an_append_that_was_stopped_after_its_manifest_is_swept(
    growing: Growing, capsys: Any
) -> None:
    shutil.copytree(growing.folder / "one", growing.folder / "swept")
    project = growing.project("swept", 1)
    capsys.readouterr()
    assert project.build("--append", "--set", "index.recall_target=0.9") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("check ")]
    assert len(told) == 1
    for word in ("about 20 documents", "disk about", "free", "open files"):
        assert word in told[0]
    assert project.open().manifest.config["index"]["recall_target"] == 0.9
    place = project.output / "generations" / "0002"
    left = [
        place / "chunks" / "left.arrow",
        place / "queries" / "asked" / "neighbors" / "left.arrow",
    ]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    assert verify_database(str(project.output)).problems
    assert project.build("--append", "--set", "index.recall_target=0.9") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert verify_database(str(project.output)).problems == []


def test_removed_documents_are_nobody_s_new_neighbors(growing: Growing) -> None:
    shutil.copytree(growing.folder / "one", growing.folder / "thinned")
    before = retro_db.open(str(growing.folder / "thinned"))
    ids = before.documents["id"].to_pylist()[::2]
    assert remove_documents(growing.folder / "thinned", ids) == 0
    project = growing.project("thinned", 1)
    assert project.build("--append") == 0
    database = project.open()
    assert database.manifest.generation == 3
    new = np.arange(len(before), len(database))
    stored = database.column("neighbors", "ids")[new]
    assert not database.is_removed(stored[stored >= 0]).any()
    assert (stored >= 0).all(), "k of what is left"
    assert verify_database(str(project.output), recompute=1.0).problems == []
