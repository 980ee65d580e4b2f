"""Whatever is wrong with a database is found, and nothing is found in one that is sound."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import retro_db
from retro_db.errors import DatabaseError, InputError
from retro_db.index.structure import list_codes, list_ids
from retro_db.manifest.model import Manifest, Tables
from retro_db.manifest.sealing import FILE, write_generation, write_manifest
from retro_db.meter import Work
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.store.tables import IpcFile
from retro_db.store.writing import TableWriter
from retro_db.verify import verify_database
from retro_db_pipelines.commands.cli import run
from support.projects import Project, make_project
from support.soak import amount
from support.texts import python_sources

Columns = dict[str, Any]
DAMAGES = amount(quick=120, soak=1000)
REMOVED = "generations/0002/removed.parquet"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """About 40 chunks in several parts, with a flat index and a query corpus."""
    texts = python_sources(9)
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "asked.txt").write_text(texts[8][:700])
    project = make_project(
        folder,
        [text[:1500] for text in texts[:8]],
        chunk={"part_rows": 12},
        neighbors={"k": 6},
        queries=[{"name": "asked", "paths": [str(folder / "asked.txt")]}],
    )
    assert project.build() == 0
    return project


@pytest.fixture
def copy(small: Project, tmp_path: Path) -> Path:
    """A copy of the database `small`, whose encoder is known."""
    return Path(shutil.copytree(small.output, tmp_path / "db"))


@pytest.fixture
def tiny_copy(tiny: Project, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.output, tmp_path / "db"))


def problems(path: Path, recompute: float = 0.0) -> list[str]:
    return verify_database(str(path), recompute).problems


# Bytes: whatever happens to a file.


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def change(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    place = rng.randrange(len(data))
    data[place] = (data[place] + rng.randrange(1, 256)) % 256
    file.write_bytes(data)


def truncate(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def swap(file: Path, rng: random.Random) -> None:
    """With another file of its table; or else with nothing, so that it is gone."""
    data = file.read_bytes()
    others = [one for one in sorted(file.parent.iterdir()) if one.is_file()]
    others = [one for one in others if one.read_bytes() != data]
    if file.name == FILE or not others:
        file.unlink()
        return
    other = rng.choice(others)
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)


def delete(file: Path, rng: random.Random) -> None:
    file.unlink()


def add(file: Path, rng: random.Random) -> None:
    name = rng.choice([f"{file.name}~", ".tmp-1", "part-9999999-0000.arrow", "odd/part"])
    other = file.parent / name
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(file.read_bytes() if rng.random() < 0.5 else b"")


@contextlib.contextmanager
def restored(db: Path) -> Iterator[None]:
    """Puts every file and folder back as it was."""
    places = set(db.rglob("*"))
    before = {path: path.read_bytes() for path in places if path.is_file()}
    yield
    for path in sorted(set(db.rglob("*")) - places, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for path, data in before.items():
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def test_every_damage_is_found(tiny_copy: Path) -> None:
    files = sorted(path for path in tiny_copy.rglob("*") if path.is_file())
    files = [path for path in files if not {"state", "report", "README.md"} & set(path.parts)]
    kinds = (flip, flip, flip, change, change, truncate, swap, delete, add)
    missed = []
    for seed in range(DAMAGES):
        rng = random.Random(seed)
        kind, file = rng.choice(kinds), rng.choice(files)
        with restored(tiny_copy):
            kind(file, rng)
            try:
                found = problems(tiny_copy)
            except DatabaseError as error:
                found = [str(error)]
        if not found or any("\n" in problem for problem in found):
            missed.append((seed, kind.__name__, str(file.relative_to(tiny_copy)), found))
    assert not missed
    assert problems(tiny_copy) == []


@pytest.mark.parametrize("name", ["odd", ".tmp-1", "chunks/odd/file", "queries/odd/chunks/file"])
def test_strange_files_are_named(tiny_copy: Path, name: str) -> None:
    (tiny_copy / name).parent.mkdir(parents=True, exist_ok=True)
    (tiny_copy / name).touch()
    assert problems(tiny_copy) == [f"{name}: not in {FILE}"]


def test_strange_folders_are_named_and_reports_are_not(tiny_copy: Path) -> None:
    for folder in ("report", "queries/asked/state", "generations/0002/state"):
        (tiny_copy / folder).mkdir(parents=True, exist_ok=True)
        (tiny_copy / folder / "log").touch()
    assert problems(tiny_copy) == []
    (tiny_copy / "nothing").mkdir()
    assert problems(tiny_copy) == [f"nothing: not in {FILE}"]


def test_damage_is_told_by_file_and_what_needs_it_is_noted(tiny_copy: Path) -> None:
    [path, *_] = sorted((tiny_copy / "chunks").iterdir())
    os.truncate(path, 100)
    checked = verify_database(str(tiny_copy), 0.01)
    assert len(checked.problems) == 1
    assert checked.problems[0].startswith(f"chunks/{path.name}: 100 bytes where")
    assert any(note.endswith(f"chunks/{path.name} is damaged") for note in checked.notes)


# Rules: files are what the manifest says, and yet wrong.


def reseal(db: Path, path: str, rows: int | None) -> None:
    """Makes the manifest list a file as it is now."""
    manifest = retro_db.open(str(db)).manifest
    entry = describe(db / path, path, rows)

    def listed(entries: list[FileEntry]) -> list[FileEntry]:
        return [entry if one.path == path else one for one in entries]

    files = {name: listed(entries) for name, entries in vars(manifest.tables).items()}
    index = dataclasses.replace(manifest.index)
    if path == manifest.template_file.path:
        index = dataclasses.replace(index, template_sha256=entry.sha256)
    write_manifest(
        Folder(str(db)),
        dataclasses.replace(
            manifest, tables=Tables(**files), index_files=listed(manifest.index_files), index=index
        ),
    )


def rewrite(db: Path, table: str, alter: Callable[[Columns], None], part: int = 0) -> None:
    """Alters the columns of a table's file in place, and seals it again."""
    database = retro_db.open(str(db))
    entry, agreed = getattr(database.manifest.tables, table)[part], contract(table)
    schema, path = agreed.schema(**database.parameters), db / entry.path
    columns: Columns
    if agreed.format == "parquet":
        held = pq.read_table(path)
        columns = {name: np.array(held[name].to_pylist(), object) for name in schema.names}
    else:
        file = IpcFile(path, schema, entry.rows, agreed.batch_rows)
        columns = {name: file.read(name).copy() for name in schema.names}
    alter(columns)
    path.unlink()
    with TableWriter(path, schema, agreed.batch_rows, parquet=agreed.format == "parquet") as writer:
        writer.append(columns)
    reseal(db, entry.path, writer.rows)


def rewrite_manifest(db: Path, alter: Callable[[Manifest], Manifest]) -> None:
    write_manifest(Folder(str(db)), alter(retro_db.open(str(db)).manifest))


def put_neighbor(db: Path, row: int, position: int, chunk: int) -> None:
    """Makes a chunk a neighbor of a row of the first part; distances and order are right."""
    database = retro_db.open(str(db))
    keys = database.embeddings[:].astype(np.float64)

    def alter(columns: Columns) -> None:
        ids = columns["ids"][row]
        ids[position] = chunk
        away = ((keys[ids] - keys[row]) ** 2).sum(axis=1)
        order = np.lexsort((ids, away.astype(np.float32)))
        columns["ids"][row], columns["distances"][row] = ids[order], away[order]

    rewrite(db, "neighbors", alter)


def own_document(db: Path) -> None:
    assert retro_db.open(str(db)).chunks.documents([1, 2]).tolist() == [0, 0]
    put_neighbor(db, 1, 0, 2)


def validation_chunk(db: Path) -> None:
    documents = retro_db.open(str(db)).documents
    held_out = [row for row in documents.to_pylist()[1:] if row["split"] == "validation"]
    put_neighbor(db, 1, 0, held_out[0]["first_chunk"])


def in_neighbors(alter: Callable[[np.ndarray, np.ndarray], None]) -> Callable[[Path], None]:
    """Alters ids and distances of one row."""
    return lambda db: rewrite(
        db, "neighbors", lambda columns: alter(columns["ids"][1], columns["distances"][1])
    )


def descend(ids: np.ndarray, distances: np.ndarray) -> None:
    ids[:], distances[:] = ids[::-1].copy(), distances[::-1].copy()


def repeat(ids: np.ndarray, distances: np.ndarray) -> None:
    ids[1], distances[1] = ids[0], distances[0]


def leave_a_gap(ids: np.ndarray, distances: np.ndarray) -> None:
    ids[1], distances[1] = -1, np.inf


def shorten(ids: np.ndarray, distances: np.ndarray) -> None:
    ids[-1], distances[-1] = -1, np.inf


def enlarge(ids: np.ndarray, distances: np.ndarray) -> None:
    distances[-1] *= 1.001


def tell_no_distance(ids: np.ndarray, distances: np.ndarray) -> None:
    distances[-1] = np.nan


def go_beyond(ids: np.ndarray, distances: np.ndarray) -> None:
    ids[-1] = 1 << 40


def in_table(table: str, alter: Callable[[Columns], None]) -> Callable[[Path], None]:
    return lambda db: rewrite(db, table, alter)


def cut_short(columns: Columns) -> None:
    columns["length"][0] -= 1


def too_long(columns: Columns) -> None:
    columns["length"][0] = 65


def no_length(columns: Columns) -> None:
    columns["length"][-1] = 0


def pad_otherwise(columns: Columns) -> None:
    row = np.flatnonzero(columns["length"] < 64)[0]
    columns["tokens"][row, -1] += 1


def unknown_token(columns: Columns) -> None:
    columns["tokens"][0, 0] = 65_535


def other_document(columns: Columns) -> None:
    columns["document"][0] += 1


def overlap(columns: Columns) -> None:
    columns["first_chunk"][1] -= 1


def other_split(columns: Columns) -> None:
    columns["split"][1] = "test"


def other_source(columns: Columns) -> None:
    columns["source"][1] = "tset"


def not_finite(columns: Columns) -> None:
    columns["vector"][0, 0] = np.inf


def no_key(columns: Columns) -> None:
    columns["vector"][0] = 0


def in_partition(alter: Callable[[Any, np.ndarray, np.ndarray], None]) -> Callable[[Path], None]:
    """Alters the first list that has entries, in the first partition."""

    def rule(db: Path) -> None:
        [entry, *_] = retro_db.open(str(db)).manifest.partition_files
        index = faiss.read_index(str(db / entry.path))
        ivf = faiss.extract_index_ivf(index)
        number = next(i for i in range(ivf.nlist) if ivf.invlists.list_size(i) > 1)
        ids, codes = list_ids(ivf.invlists, number), list_codes(ivf.invlists, number)
        ivf.invlists.resize(number, 0)
        ids, codes = alter(ivf, ids, codes)
        pointers = faiss.swig_ptr(ids), faiss.swig_ptr(codes)
        ivf.invlists.add_entries(number, len(ids), *pointers)
        entries = sum(ivf.invlists.list_size(i) for i in range(ivf.nlist))
        index.ntotal = ivf.ntotal = entries
        faiss.write_index(index, str(db / entry.path))
        reseal(db, entry.path, entries)

    return rule


def lose(ivf: Any, ids: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ids[1:].copy(), codes[1:].copy()


def double(ivf: Any, ids: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([ids[:1], ids]), np.concatenate([codes[:1], codes])


def take_from_another_list(
    ivf: Any, ids: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    lists = [list_ids(ivf.invlists, number) for number in range(ivf.nlist)]
    ids[0] = np.concatenate(lists)[0]
    return np.sort(ids), codes


def invent(ivf: Any, ids: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ids[-1] = 1 << 40
    return ids, codes


def alter_code(ivf: Any, ids: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if ivf.code_size > 1000:  # flat: the vector itself
        codes.view(np.float32)[0] *= 1.5
    else:
        codes[0] ^= 0xFF
    return ids, codes


def exchange_partitions(db: Path) -> None:
    def exchanged(manifest: Manifest) -> Manifest:
        template, one, other, *rest = manifest.index_files
        return dataclasses.replace(manifest, index_files=[template, other, one, *rest])

    rewrite_manifest(db, exchanged)


def exchange_parts(db: Path) -> None:
    """Of equally many rows, so that only what is in them tells."""

    def exchanged(manifest: Manifest) -> Manifest:
        chunks = manifest.tables.chunks
        return dataclasses.replace(
            manifest, tables=dataclasses.replace(manifest.tables, chunks=[*chunks[1:], chunks[0]])
        )

    rewrite_manifest(db, exchanged)


def counting(**changes: int) -> Callable[[Path], None]:
    """Adds to counts of the manifest."""

    def rule(db: Path) -> None:
        def recounted(manifest: Manifest) -> Manifest:
            more = {name: getattr(manifest.counts, name) + more for name, more in changes.items()}
            return dataclasses.replace(
                manifest, counts=dataclasses.replace(manifest.counts, **more)
            )

        rewrite_manifest(db, recounted)

    return rule


def counting_source(**changes: int) -> Callable[[Path], None]:
    """Adds to the counts of the only source."""

    def rule(db: Path) -> None:
        def recounted(manifest: Manifest) -> Manifest:
            [source] = manifest.sources
            more = {name: getattr(source, name) + more for name, more in changes.items()}
            return dataclasses.replace(manifest, sources=[dataclasses.replace(source, **more)])

        rewrite_manifest(db, recounted)

    return rule


def other_table(table: str, write: Callable[[Path, pa.Table], None]) -> Callable[[Path], None]:
    """Writes the same rows another way."""

    def rule(db: Path) -> None:
        [entry, *_] = getattr(retro_db.open(str(db)).manifest.tables, table)
        path = db / entry.path
        held = pq.read_table(path) if path.suffix == ".parquet" else read_arrow(path)
        path.unlink()
        write(path, held)
        reseal(db, entry.path, entry.rows)

    return rule


def read_arrow(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def compressed(path: Path, held: pa.Table) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    # So that the file is no smaller than its rows.
    schema = held.schema.with_metadata({"more": "x" * held.nbytes})
    with pa.ipc.new_file(str(path), schema, options=options) as writer:
        writer.write_table(held.replace_schema_metadata(schema.metadata))


def in_small_batches(path: Path, held: pa.Table) -> None:
    with pa.ipc.new_file(str(path), held.schema) as writer:
        writer.write_table(held, max_chunksize=7)


def nullable(path: Path, held: pa.Table) -> None:
    schema = pa.schema([field.with_nullable(True) for field in held.schema])
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_table(held.cast(schema))


def with_nulls(path: Path, held: pa.Table) -> None:
    lengths = pa.array([None, *held["length"].to_pylist()[1:]], pa.uint16())
    position = held.schema.get_field_index("length")
    columns = [*held.columns]
    columns[position] = pa.chunked_array([lengths])
    batch = pa.RecordBatch.from_arrays(
        [column.combine_chunks() for column in columns], schema=held.schema
    )
    with pa.ipc.new_file(str(path), held.schema) as writer:
        writer.write_batch(batch)


def no_table(path: Path, held: pa.Table) -> None:
    path.write_bytes(b"ARROW1 and nothing else".ljust(2 * held.nbytes))


def by_snappy(path: Path, held: pa.Table) -> None:
    pq.write_table(held, path, compression="snappy")


def in_small_groups(path: Path, held: pa.Table) -> None:
    pq.write_table(held, path, compression="zstd", row_group_size=2)


def with_one_column_more(path: Path, held: pa.Table) -> None:
    pq.write_table(held.append_column("more", held["id"]), path, compression="zstd")


RULES: dict[str, tuple[Callable[[Path], None], str]] = {
    "own document": (own_document, "has a neighbor of its own document"),
    "validation": (validation_chunk, "a validation chunk is a neighbor"),
    "descending": (in_neighbors(descend), "distances do not ascend"),
    "repeated": (in_neighbors(repeat), "an id is twice in a row"),
    "gap": (in_neighbors(leave_a_gap), "gaps are not at the end"),
    "short": (in_neighbors(shorten), "rows are not full"),
    "distance": (in_neighbors(enlarge), "distances of row 1 are not those of the embeddings"),
    "no distance": (in_neighbors(tell_no_distance), "distance is not finite"),
    "range": (in_neighbors(go_beyond), "an id is out of range"),
    "cut short": (in_table("chunks", cut_short), "a chunk before a document's last is short"),
    "too long": (in_table("chunks", too_long), "a length is not within 1 and 64"),
    "no length": (in_table("chunks", no_length), "a length is not within 1 and 64"),
    "padding": (in_table("chunks", pad_otherwise), "padding is not"),
    "token": (in_table("chunks", unknown_token), "a token is not below the vocabulary size"),
    "document": (in_table("chunks", other_document), "document is wrong"),
    "tiling": (in_table("documents", overlap), "do not tile the chunks"),
    "split": (in_table("documents", other_split), "is neither train nor validation"),
    "source": (in_table("documents", other_source), "source tset: 0 documents"),
    "not finite": (in_table("embeddings", not_finite), "not finite"),
    "no key": (in_table("embeddings", no_key), "2 chunks without an embedding"),
    "not indexed": (in_partition(lose), "1 training chunks that have an embedding are not in it"),
    "indexed twice": (in_partition(double), "do not ascend"),
    "in two lists": (in_partition(take_from_another_list), "is in another list too"),
    "invented": (in_partition(invent), "has an id out of range"),
    "partitions": (exchange_partitions, "its centroids are not those of the trained index"),
    "parts": (exchange_parts, "neighbors has other rows than chunks"),
    "documents count": (counting(documents=1), "counts.documents: 41 is not the sum"),
    "tokens count": (counting(tokens=-1), "the count of tokens"),
    "validation count": (counting(validation_chunks=1), "validation chunks"),
    "indexed count": (counting(indexed_chunks=1), "index: 396 chunks"),
    "keyless count": (counting(keyless_chunks=1), "chunks without an embedding"),
    "source count": (counting_source(tokens=1), "source test: "),
    "source sum": (counting_source(read=1), "read is not kept + dropped + rejected"),
    "compressed": (other_table("chunks", compressed), "is compressed"),
    "batches": (other_table("embeddings", in_small_batches), "batches instead of 1"),
    "nullable": (other_table("neighbors", nullable), "instead of ids: fixed_size_list"),
    "nulls": (other_table("chunks", with_nulls), "has null values"),
    "no table": (other_table("chunks", no_table), "not a readable Arrow file"),
    "snappy": (other_table("documents", by_snappy), "is compressed by SNAPPY"),
    "row groups": (other_table("documents", in_small_groups), "row groups are not of 65536 rows"),
    "columns": (other_table("documents", with_one_column_more), "instead of source: string"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_found(copy: Path, rule: str) -> None:
    broken, message = RULES[rule]
    broken(copy)
    found = problems(copy)
    assert any(message in problem for problem in found), found
    assert not any("\n" in problem for problem in found)


def test_white_space_in_the_manifest_is_found(tiny_copy: Path) -> None:
    path = tiny_copy / FILE
    path.write_bytes(path.read_bytes().replace(b"\n ", b"\n\t", 1))
    assert retro_db.open(str(tiny_copy)).manifest.generation == 1
    assert problems(tiny_copy) == [f"{FILE}: its bytes are not those that were written"]


# Generations, crafted.


def remove(db: Path, rows: list[int], path: str = REMOVED, **counts: int) -> None:
    """A generation in which documents are removed; counts are right where none is given."""
    database = retro_db.open(str(db))
    manifest, documents = database.manifest, database.documents.take(rows)
    agreed = contract("removed")
    (db / path).parent.mkdir(parents=True, exist_ok=True)
    with TableWriter(db / path, agreed.schema(), agreed.batch_rows, parquet=True) as writer:
        sources, ids = (documents[name].to_pylist() for name in ("source", "id"))
        writer.append({"document": np.array(rows, np.int64), "source": sources, "id": ids})
    entry = describe(db / path, path, len(rows))
    removed = {
        "removed_documents": manifest.counts.removed_documents + len(rows),
        "removed_chunks": manifest.counts.removed_chunks
        + sum(documents["chunk_count"].to_pylist()),
    }
    tables = dataclasses.replace(manifest.tables, removed=[*manifest.tables.removed, entry])
    told = dataclasses.replace(manifest.counts, **{**removed, **counts})
    new = dataclasses.replace(manifest, tables=tables, counts=told)
    write_generation(Folder(str(db)), manifest, new)


def test_generations_are_sound(copy: Path) -> None:
    remove(copy, [1, 3])
    remove(copy, [0], "generations/0003/removed.parquet")
    assert retro_db.open(str(copy)).manifest.generation == 3
    assert verify_database(str(copy), 0.05).problems == []


def test_removals_that_are_wrong_are_found(copy: Path) -> None:
    def misname(columns: Columns) -> None:
        columns["id"][0] = "doc-0"

    def misplace(columns: Columns) -> None:
        columns["document"][0] = 10_000

    for alter, message in (
        (misname, "document 1 has another source or id"),
        (misplace, "a document is out of range"),
    ):
        with restored(copy):
            remove(copy, [1, 3])
            rewrite(copy, "removed", alter)
            assert f"{REMOVED}: {message}" in problems(copy)
    with restored(copy):
        remove(copy, [3, 1])
        assert problems(copy) == [f"{REMOVED}: documents do not ascend"]
    with restored(copy):
        remove(copy, [1, 3])
        remove(copy, [3], "generations/0003/removed.parquet")
        found = problems(copy)
        assert "generations/0003/removed.parquet: a document is removed twice" in found
    for count in ("removed_documents", "removed_chunks"):
        with restored(copy):
            remove(copy, [1, 3], **{count: 1})
            [found] = problems(copy)
            assert found.startswith("removed: ")


def test_a_chain_that_is_broken_is_found(copy: Path) -> None:
    kept = copy / "generations/0001" / FILE
    remove(copy, [1])
    with restored(copy):
        rewrite_manifest(copy, lambda manifest: dataclasses.replace(manifest, parent="0" * 64))
        assert problems(copy) == [f"{FILE}: its parent is not generations/0001/{FILE}"]
    with restored(copy):
        rewrite_manifest(copy, lambda manifest: dataclasses.replace(manifest, generation=1))
        assert f"{FILE}: the first generation has a parent" in problems(copy)
    with restored(copy):
        kept.write_bytes(kept.read_bytes().replace(b'"read": 40', b'"read": 41'))
        [found] = problems(copy)
        assert f"generations/0001/{FILE}: its sha256 does not match" in found
    with restored(copy):
        kept.write_bytes(kept.read_bytes() + b"\n")
        assert problems(copy) == [
            f"generations/0001/{FILE}: its bytes are not those that were written"
        ]
    with restored(copy):
        kept.unlink()
        assert problems(copy) == [f"generations/0001/{FILE}: missing"]
    with restored(copy):
        # As an append leaves it that was stopped before it superseded the manifest.
        (copy / "generations/0002" / FILE).write_bytes((copy / FILE).read_bytes())
        assert problems(copy) == []
        (copy / "generations/0002" / FILE).write_bytes(kept.read_bytes())
        assert problems(copy) == [f"generations/0002/{FILE}: not in {FILE}"]


def test_files_of_earlier_generations_may_stay(copy: Path) -> None:
    """Their checksums hold for as long as they are there."""
    old = retro_db.open(str(copy)).manifest
    [entry, *rest] = old.tables.neighbors
    (copy / "generations/0002").mkdir(parents=True)
    path = "generations/0002/part-0000000-0000.arrow"
    shutil.copy(copy / entry.path, copy / path)
    tables = dataclasses.replace(
        old.tables, neighbors=[dataclasses.replace(entry, path=path), *rest]
    )
    write_generation(Folder(str(copy)), old, dataclasses.replace(old, tables=tables))
    assert problems(copy) == []
    with restored(copy):
        flip(copy / entry.path, random.Random(0))
        assert problems(copy) == [f"{entry.path}: its bytes are not those that were written"]
    with restored(copy):
        (copy / entry.path).unlink()
        assert problems(copy) == []


def renumber(db: Path, old: list[int], new: list[int], count: list[int]) -> None:
    agreed = contract("renumbered")
    path = agreed.name(0, 0)
    (db / path).parent.mkdir(exist_ok=True)
    with TableWriter(db / path, agreed.schema(), agreed.batch_rows, parquet=True) as writer:
        runs = {"old_first": old, "new_first": new, "count": count}
        writer.append({name: np.array(values, np.int64) for name, values in runs.items()})
    entry = describe(db / path, path, len(old))
    rewrite_manifest(
        db,
        lambda manifest: dataclasses.replace(
            manifest, tables=dataclasses.replace(manifest.tables, renumbered=[entry])
        ),
    )


def test_renumbered_chunks_tile_the_new_ids(tiny_copy: Path) -> None:
    chunks = len(retro_db.open(str(tiny_copy)))
    renumber(tiny_copy, [2, 10], [0, 5], [5, chunks - 5])
    assert problems(tiny_copy) == []
    for runs, message in (
        (([2, 10], [0, 5], [5, chunks - 6]), "new ids do not tile"),
        (([2, 10], [0, 6], [5, chunks - 5]), "new ids do not tile"),
        (([10, 2], [0, 5], [5, chunks - 5]), "old ids do not ascend"),
        (([2, 6], [0, 5], [5, chunks - 5]), "old ids do not ascend, or overlap"),
        (([2, 10, 90], [0, 5, chunks], [5, chunks - 5, 0]), "a run has no chunk"),
    ):
        renumber(tiny_copy, *runs)
        assert any(message in problem for problem in problems(tiny_copy))


# Computing again.


def test_nothing_is_found_in_sound_databases(small: Project, tiny: Project) -> None:
    assert verify_database(str(small.output), 0.1).problems == []
    checked = verify_database(str(tiny.output), 1.0)
    assert (checked.problems, checked.notes) == ([], [])


def test_an_altered_embedding_is_found(tiny_copy: Path) -> None:
    def alter(columns: Columns) -> None:
        columns["vector"][2, 5] += 0.05

    [path, *_] = (entry.path for entry in retro_db.open(str(tiny_copy)).manifest.tables.embeddings)
    rewrite(tiny_copy, "embeddings", alter)
    assert f"{path}: row 2 is not the embedding of its chunk's text" in problems(tiny_copy, 1.0)


def test_a_worse_neighbor_is_found(tiny_copy: Path) -> None:
    database = retro_db.open(str(tiny_copy))
    [path, *_] = (entry.path for entry in database.manifest.tables.neighbors)
    near, own = database.neighbors[2], database.chunks.documents([2])
    others = np.flatnonzero(database.chunks.documents(np.arange(len(database))) != own)
    put_neighbor(tiny_copy, 2, len(near) - 1, int(np.setdiff1d(others, near)[0]))
    assert problems(tiny_copy) == []
    assert problems(tiny_copy, 1.0) == [f"{path}: row 2 is not what a search finds"]


def test_a_wrong_index_is_not_searched(tiny_copy: Path) -> None:
    in_partition(invent)(tiny_copy)
    checked = verify_database(str(tiny_copy), 1.0)
    assert any("has an id out of range" in problem for problem in checked.problems)
    assert any("nothing was computed again" in note for note in checked.notes)


def test_wrong_neighbors_do_not_end_a_search(tiny_copy: Path) -> None:
    in_neighbors(go_beyond)(tiny_copy)
    assert any("an id is out of range" in found for found in problems(tiny_copy, 1.0))


@pytest.mark.parametrize("kind", ["flat", "product"])
def test_an_altered_code_is_found(kind: str, request: pytest.FixtureRequest) -> None:
    db = request.getfixturevalue("tiny_copy" if kind == "flat" else "copy")
    in_partition(alter_code)(db)
    assert problems(db) == []
    assert any("does not hold the code of chunk" in found for found in problems(db, 1.0))


def appended(db: Path, parts: int) -> None:
    """Makes all parts but the first ones a later generation's: the first have not found theirs."""
    database = retro_db.open(str(db))
    manifest = database.manifest
    held = {name: entries[:parts] for name, entries in vars(manifest.tables).items()}
    chunks = sum(entry.rows for entry in held["chunks"])
    keys = database.embeddings[:chunks].astype(np.float64)
    documents = database.chunks.documents(np.arange(chunks))
    k = manifest.neighbors.k
    for number, entry in enumerate(held["chunks"]):
        first = sum(one.rows for one in held["chunks"][:number])
        rewrite(
            db,
            "neighbors",
            lambda columns, own=slice(first, first + entry.rows): columns.update(
                brute_force(keys, documents, own, k)
            ),
            number,
        )
    manifest = retro_db.open(str(db)).manifest
    held = {name: entries[:parts] for name, entries in vars(manifest.tables).items()}
    there = sum(entry.rows for entry in held["documents"])
    counts = dataclasses.replace(manifest.counts, chunks=chunks, documents=there)
    old = dataclasses.replace(manifest, tables=Tables(**held), counts=counts, queries=[])
    write_manifest(Folder(str(db)), old)
    write_generation(Folder(str(db)), retro_db.open(str(db)).manifest, manifest)


def brute_force(keys: np.ndarray, documents: np.ndarray, own: slice, k: int) -> Columns:
    away = ((keys[own, None] - keys[None]) ** 2).sum(axis=2)
    away[documents[own, None] == documents[None]] = np.inf
    ids = np.argsort(away, axis=1, kind="stable")[:, :k]
    distances = np.take_along_axis(away, ids, axis=1)
    return {
        "ids": np.where(np.isinf(distances), -1, ids),
        "distances": distances.astype(np.float32),
    }


def test_older_generations_are_searched_without_later_chunks(tiny_copy: Path) -> None:
    before = retro_db.open(str(tiny_copy)).neighbors[:]
    appended(tiny_copy, 2)
    assert not np.array_equal(retro_db.open(str(tiny_copy)).neighbors[:], before)
    checked = verify_database(str(tiny_copy), 1.0)
    assert (checked.problems, checked.notes) == ([], [])


def test_what_cannot_be_computed_again_is_said(tiny: Project, tmp_path: Path) -> None:
    project = make_project(tmp_path, tiny.texts[:4], embeddings={"keep": False})
    assert project.build() == 0
    checked = verify_database(str(project.output), 0.5)
    assert checked.problems == []
    assert checked.notes == [
        "embeddings were not kept: neither they nor distances were checked",
        "nothing was computed again: embeddings were not kept",
    ]
    [note] = verify_database(str(tiny.output)).notes
    assert note.startswith("whether embeddings, codes and neighbors are those of the text was not")
    in_partition(lose)(project.output)
    assert any("have an embedding are not in it" in found for found in problems(project.output))


def test_the_encoder_may_have_moved(tiny: Project, tiny_copy: Path) -> None:
    shutil.rmtree(tiny_copy / "state")
    with pytest.raises(InputError, match="does not know where its encoder"):
        verify_database(str(tiny_copy), 0.01)
    encoder = tiny.settings["encoder"]["model"]
    assert verify_database(str(tiny_copy), 0.01, encoder).problems == []


# What people and machines see.


class Shown:
    """Stages, by name, and what was done of what there was at their ends."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[str, int, int]] = {}

    @contextlib.contextmanager
    def __call__(
        self, name: str, unit: str, total: int, progress: Callable[[], Work]
    ) -> Iterator[Callable[[str], None]]:
        yield lambda remark: None
        self.stages[name] = (unit, total, progress().done)


def test_progress_comes_to_its_end(tiny: Project) -> None:
    shown = Shown()
    verify_database(str(tiny.output), 1.0, stage=shown)
    assert {name: unit for name, (unit, _, _) in shown.stages.items()} == {
        "files": "bytes",
        "rules": "rows",
        "recompute": "chunks",
    }
    assert all(total == done for _, total, done in shown.stages.values())


def test_the_command_tells_people_and_machines(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks = len(retro_db.open(str(tiny_copy)))
    assert run(["verify", str(tiny_copy), "--recompute", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"files", "chunks", "problems", "notes"}
    assert (told["chunks"], told["problems"], told["notes"]) == (chunks, [], [])
    assert run(["verify", str(tiny_copy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("files ")
    assert lines[-1].endswith(f"{chunks} chunks: sound")
    os.truncate(tiny_copy / "tokenizer" / "tokenizer.json", 10)
    assert run(["verify", str(tiny_copy), "--json"]) == 1
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert problem.startswith("tokenizer/tokenizer.json: 10 bytes")
