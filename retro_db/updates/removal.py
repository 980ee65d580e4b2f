"""Removing documents: a new generation in which readers pass over them; no id and no file changes."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retro_db.errors import ExecutionError, InputError
from retro_db.manifest.files import generation_path, read_manifest, write_generation
from retro_db.manifest.model import Manifest
from retro_db.reader.database import Database
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.ownership import owning
from retro_db.store.records import RECORDS
from retro_db.store.writing import TableWriter


@dataclass(frozen=True)
class Removal:
    """What a removal did.

    Attributes:
        documents: Removed now.
        chunks: Of these documents.
        already: Named documents that had been removed before.
        generation: The current one, after it.
    """

    documents: int
    chunks: int
    already: int
    generation: int


@dataclass(frozen=True)
class NamedDocument:
    """A document as a list of them names it: on which line, of which source if it says so, its id."""

    line: int
    source: str | None
    id: str


def remove_documents(url: str, listed: str | Path) -> Removal:
    """Removes the documents that a file lists; nothing changes where all of them were removed before.

    Several documents of one source that share an id go together.

    Args:
        url: The database: a path or any fsspec URL.
        listed: A UTF-8 file with one document per line: its id, or its source, a tab and its id. Blank
            lines are skipped.

    Returns:
        What was removed.

    Raises:
        DatabaseError: There is no database, or it is damaged.
        InputError: The file cannot be read, a line names no document or several sources', or a build is
            at work on the database.
    """
    folder = Folder(str(url))
    database = Database(folder, read_manifest(folder))
    named = read_list(Path(listed), [source.name for source in database.manifest.sources])
    found = find_documents(database, named, str(listed))
    rows = np.setdiff1d(found, database.removals.documents)
    chunks = int(database.documents["chunk_count"].take(rows).to_numpy().sum())
    manifest = database.manifest
    if len(rows):
        with owning(folder) as owned:
            if read_manifest(owned).sha256 != manifest.sha256:
                raise ExecutionError(f"{url}: changed in the meantime; run the same command again")
            next_place = generation_path(manifest.generation + 1)
            if owned.exists(f"{next_place}/{RECORDS}"):
                raise InputError(
                    f"{url}: an append was stopped, and would have to begin anew; finish it by the same "
                    f"build --append, or delete {next_place} first"
                )
            owned.remove(next_place)  # what a removal that was stopped has left
            without = _without(Database(owned, manifest), rows, chunks)
            manifest = write_generation(owned, manifest, without)
    return Removal(len(rows), chunks, len(found) - len(rows), manifest.generation)


def read_list(file: Path, sources: Sequence[str]) -> list[NamedDocument]:
    """Reads a list of documents.

    Args:
        file: As `remove_documents` takes it.
        sources: Names that may stand before a tab; any other tab is part of an id.

    Raises:
        InputError: The file cannot be read, or is not UTF-8.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; convert it") from error
    named = []
    for number, line in enumerate(text.split("\n"), 1):
        name = line.removesuffix("\r")
        source, tab, rest = name.partition("\t")
        if tab and source in sources:
            named.append(NamedDocument(number, source, rest))
        elif name.strip():
            named.append(NamedDocument(number, None, name))
    return named


def find_documents(database: Database, named: Sequence[NamedDocument], file: str) -> np.ndarray:
    """Where documents are.

    Args:
        database: Whose documents they are; those of its query corpora do not count.
        named: The documents.
        file: Where they are listed, for messages.

    Returns:
        Global document rows, int64 [n], ascending, none twice.

    Raises:
        InputError: One is not in the database, or in several sources without its source being given.
    """
    documents = database.documents.select(["source", "id"])
    wanted = pa.array(sorted({one.id for one in named}), pa.string())
    rows = np.flatnonzero(pc.is_in(documents["id"], value_set=wanted).to_numpy())
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, document in zip(rows.tolist(), documents.take(rows).to_pylist(), strict=True):
        places[document["id"]][document["source"]].append(row)
    found = [row for one in named for row in _rows_of(one, places.get(one.id, {}), file)]
    return np.unique(np.array(found, np.int64))


def _rows_of(one: NamedDocument, by_source: dict[str, list[int]], file: str) -> list[int]:
    """The rows of one named document; `by_source` are all that have its id."""
    where = f"{file}: line {one.line}"
    if one.source is not None:
        by_source = {name: rows for name, rows in by_source.items() if name == one.source}
    if not by_source:
        of = "the database" if one.source is None else f"source {one.source}"
        raise InputError(
            f"{where}: no document of {of} has the id {one.id!r}; correct or delete the line"
        )
    if len(by_source) > 1:
        raise InputError(
            f"{where}: id {one.id!r} is in several sources ({', '.join(sorted(by_source))}); put the "
            "source and a tab before it"
        )
    return next(iter(by_source.values()))


def _without(database: Database, rows: np.ndarray, chunks: int) -> Manifest:
    """Writes the table of the removed documents; what the manifest says from then on."""
    manifest = database.manifest
    tables, counts = manifest.tables, manifest.counts
    entry = _write_removed(database, rows)
    return dataclasses.replace(
        manifest,
        tables=dataclasses.replace(tables, removed=[*tables.removed, entry]),
        counts=dataclasses.replace(
            counts,
            removed_documents=counts.removed_documents + len(rows),
            removed_chunks=counts.removed_chunks + chunks,
        ),
    )


def _write_removed(database: Database, rows: np.ndarray) -> TableEntry:
    agreed = contract("removed")
    path = f"{generation_path(database.manifest.generation + 1)}/{agreed.path}"
    documents = database.documents.select(["source", "id"]).take(rows)
    columns = {"document": rows, **documents.to_pydict()}
    with database.folder.writing(path) as temporary:
        with TableWriter(temporary, agreed.schema(), agreed.batch_rows, parquet=True) as writer:
            writer.append(columns)
        return describe(temporary, path, writer.rows)
