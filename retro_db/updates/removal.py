"""Removing documents: a new generation in which readers pass over them; no id and no file changes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_db.errors import ExecutionError, InputError
from retro_db.manifest.model import Manifest
from retro_db.manifest.sealing import FILE, generation_path, read_manifest, write_generation
from retro_db.reader.database import Database
from retro_db.report.card import write_card
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.ownership import owning
from retro_db.store.records import RECORDS
from retro_db.store.writing import TableWriter
from retro_db.updates.document_lists import find_documents, read_list


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


def remove_documents(url: str, listed: str | Path) -> Removal:
    """Removes the documents that a file lists; nothing changes if all of them were removed before.

    Several documents of one source that share an id are removed together.

    Args:
        url: Path or fsspec URL of the database.
        listed: UTF-8 file with one document per line: its id, or its source, a tab and its id; named
            `.jsonl`, an object with `id` and, where ids repeat, `source`. Blank lines are skipped.

    Returns:
        The result of the removal.

    Raises:
        DatabaseError: The folder has no database, or a damaged one.
        InputError: The file cannot be read, a line names a document that does not exist or that is in several
            sources, an id is one that a plain list cannot say, or a build is running on the database.
    """
    folder = Folder(str(url))
    database = Database(folder, read_manifest(folder))
    sources = [source.name for source in database.manifest.sources]
    listed_rows = find_documents(database, read_list(Path(listed), sources))
    rows = np.setdiff1d(listed_rows, database.removals.documents)
    chunks = int(database.documents["chunk_count"].take(rows).to_numpy().sum())
    manifest = database.manifest
    if len(rows):
        with owning(folder) as owned:
            owned.watch(FILE)
            if read_manifest(owned).sha256 != manifest.sha256:
                raise ExecutionError(f"{url}: changed in the meantime; run the same command again")
            next_folder = generation_path(manifest.generation + 1)
            if owned.exists(f"{next_folder}/{RECORDS}"):
                raise InputError(
                    f"{url}: an append was stopped, and would have to start over; finish it by the same "
                    f"build --append, or delete {next_folder} first"
                )
            owned.sweep()
            owned.remove(next_folder)  # files of a removal that was stopped
            without = _without(Database(owned, manifest), rows, chunks)
            manifest = write_generation(owned, manifest, without)
            write_card(owned, manifest)
    else:
        # An earlier run may have been stopped between the manifest and the card.
        with owning(folder) as owned:
            owned.sweep()
            write_card(owned, read_manifest(owned))
    return Removal(len(rows), chunks, len(listed_rows) - len(rows), manifest.generation)


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
