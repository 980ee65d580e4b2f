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
from retro_db.manifest.model import Manifest
from retro_db.manifest.sealing import generation_path, read_manifest, write_generation
from retro_db.reader.database import Database
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.ownership import owning
from retro_db.store.records import RECORDS
from retro_db.store.writing import TableWriter


@dataclass(frozen=True)
class Removal:
    """The result of a removal.

    Attributes:
        documents: Number of documents that it removed.
        chunks: Number of chunks of these documents.
        already: Number of listed documents that had been removed before.
        generation: Current generation after the removal.
    """

    documents: int
    chunks: int
    already: int
    generation: int


@dataclass(frozen=True)
class NamedDocument:
    """A document in a list of documents: its line, its source if the line names one, and its id."""

    line: int
    source: str | None
    id: str


def remove_documents(url: str, listed: str | Path) -> Removal:
    """Removes the documents that a file lists; nothing changes if all of them were removed before.

    Several documents of one source that share an id are removed together.

    Args:
        url: Path or fsspec URL of the database.
        listed: UTF-8 file with one document per line: its id, or its source, a tab and its id. Blank
            lines are skipped.

    Returns:
        The result of the removal.

    Raises:
        DatabaseError: The folder has no database, or a damaged one.
        InputError: The file cannot be read, a line names a document that does not exist or that is in several
            sources, or a build is running on the database.
    """
    folder = Folder(str(url))
    database = Database(folder, read_manifest(folder))
    named = read_list(Path(listed), [source.name for source in database.manifest.sources])
    listed_rows = find_documents(database, named, str(listed))
    rows = np.setdiff1d(listed_rows, database.removals.documents)
    chunks = int(database.documents["chunk_count"].take(rows).to_numpy().sum())
    manifest = database.manifest
    if len(rows):
        with owning(folder) as owned:
            if read_manifest(owned).sha256 != manifest.sha256:
                raise ExecutionError(f"{url}: changed in the meantime; run the same command again")
            next_folder = generation_path(manifest.generation + 1)
            if owned.exists(f"{next_folder}/{RECORDS}"):
                raise InputError(
                    f"{url}: an append was stopped, and would have to start over; finish it by the same "
                    f"build --append, or delete {next_folder} first"
                )
            owned.remove(next_folder)  # files of a removal that was stopped
            without = _without(Database(owned, manifest), rows, chunks)
            manifest = write_generation(owned, manifest, without)
    return Removal(len(rows), chunks, len(listed_rows) - len(rows), manifest.generation)


def read_list(file: Path, sources: Sequence[str]) -> list[NamedDocument]:
    """Reads a list of documents.

    Args:
        file: List in the format of `remove_documents`.
        sources: Names that may precede a tab; any other tab is part of an id.

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
    """Finds the rows of listed documents.

    Args:
        database: Database of the documents, without its query corpora.
        named: Documents to find.
        file: Path of their list, for messages.

    Returns:
        Global document rows, int64 [n], ascending, none twice.

    Raises:
        InputError: The database lacks a document, or has it in several sources and its line names none.
    """
    documents = database.documents.select(["source", "id"])
    wanted = pa.array(sorted({document.id for document in named}), pa.string())
    rows = np.flatnonzero(pc.is_in(documents["id"], value_set=wanted).to_numpy())
    by_id: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, columns in zip(rows.tolist(), documents.take(rows).to_pylist(), strict=True):
        by_id[columns["id"]][columns["source"]].append(row)
    listed = [row for document in named for row in _rows_of(document, by_id, file)]
    return np.unique(np.array(listed, np.int64))


def _rows_of(
    document: NamedDocument, by_id: dict[str, dict[str, list[int]]], file: str
) -> list[int]:
    """Returns the rows of a listed document; `by_id` has the rows of all documents by id, then source."""
    where, by_source = f"{file}: line {document.line}", by_id.get(document.id, {})
    if document.source is not None:
        by_source = {name: rows for name, rows in by_source.items() if name == document.source}
    if not by_source:
        of = "the database" if document.source is None else f"source {document.source}"
        raise InputError(
            f"{where}: no document of {of} has the id {document.id!r}; correct or delete the line"
        )
    if len(by_source) > 1:
        raise InputError(
            f"{where}: id {document.id!r} is in several sources ({', '.join(sorted(by_source))}); put "
            "the source and a tab before it"
        )
    return next(iter(by_source.values()))


def _without(database: Database, rows: np.ndarray, chunks: int) -> Manifest:
    """Writes the table of the removed documents, and returns the manifest that lists it."""
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
