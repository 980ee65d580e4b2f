"""Databases that are changed behind the back of their manifest, or with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import retro_db
from retro_db.store.contracts import contract
from retro_db.store.folder import describe
from retro_db.store.tables import IpcFile
from retro_db.store.writing import TableWriter
from support.mutations import sealed

Manifest = dict[str, Any]


def manifest_of(db: Path) -> Manifest:
    return json.loads((db / "manifest.json").read_text())


def seal(db: Path, manifest: Manifest) -> None:
    (db / "manifest.json").write_bytes(sealed(manifest))


def relist(db: Path, path: str, rows: int | None = None) -> None:
    """Makes the manifest list a file as it is now."""
    manifest = manifest_of(db)
    tables = [manifest["tables"], *(query["tables"] for query in manifest["queries"])]
    for entry in (entry for table in tables for entries in table.values() for entry in entries):
        if entry["path"] == path:
            found = describe(db / path, path, entry["rows"] if rows is None else rows)
            entry |= {"bytes": found.bytes, "sha256": found.sha256, "rows": found.rows}
    seal(db, manifest)


def rewrite(db: Path, table: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Other values in a table that the manifest lists as it is then."""
    database = retro_db.open(str(db))
    [entry] = getattr(database.manifest.tables, table)
    agreed = contract(table)
    schema = agreed.schema(**database.parameters)
    if agreed.format == "parquet":
        columns: dict[str, Any] = pq.read_table(db / entry.path).to_pydict()
    else:
        file = IpcFile(db / entry.path, schema, entry.rows, agreed.batch_rows)
        columns = {name: file.read(name).copy() for name in schema.names}
    change(columns)
    (db / entry.path).unlink()
    parquet = agreed.format == "parquet"
    with TableWriter(db / entry.path, schema, agreed.batch_rows, parquet=parquet) as writer:
        writer.append(columns)
    relist(db, entry.path)
