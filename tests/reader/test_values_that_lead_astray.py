"""Values in sound files that lead outside of the database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retro_db
from retro_db.errors import DamagedFileError
from retro_db.store.contracts import contract
from retro_db.store.folder import describe
from retro_db.store.writing import TableWriter
from support.hostile import manifest_of, rewrite, seal


def change_item(column: str, row: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(columns: dict[str, Any]) -> None:
        columns[column][row] = value

    return change


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("neighbors", change_item("ids", (0, 0), 1 << 40), "an id is out of range"),
        ("neighbors", change_item("ids", (0, 1), -(1 << 63)), "an id is out of range"),
        ("documents", change_item("chunk_count", 0, 1 << 62), "do not tile the chunks"),
        ("documents", change_item("chunk_count", 0, -1), "do not tile the chunks"),
        ("documents", change_item("first_chunk", 1, (1 << 63) - 1), "do not tile the chunks"),
        ("documents", change_item("first_chunk", 0, -(1 << 63)), "do not tile the chunks"),
    ],
)
def test_ids_that_lead_nowhere_are_refused(
    db: Path, table: str, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(db, table, change)
    database = retro_db.open(str(db))
    with pytest.raises(DamagedFileError, match=f"{message}.*run verify"):
        retro_db.RetroDataset(database, 64 * 8, k=2)[0]


def test_lengths_and_documents_that_are_wrong_do_no_harm(db: Path) -> None:
    def change(columns: dict[str, Any]) -> None:
        columns["length"][:] = 65_535
        columns["document"][:] = np.resize([-(1 << 63), (1 << 63) - 1], len(columns["document"]))

    rewrite(db, "chunks", change)
    database = retro_db.open(str(db))
    assert retro_db.RetroDataset(database, 64 * 8, k=2)[0]["mask"].all()
    assert database.chunks.values(np.arange(len(database))).shape == (len(database), 128)


@pytest.mark.parametrize("rows", [[1 << 40], [-1], [1, 1]])
def test_removed_documents_must_be_there(db: Path, rows: list[int]) -> None:
    path, agreed = "generations/0002/removed.parquet", contract("removed")
    (db / path).parent.mkdir(parents=True)
    with TableWriter(db / path, agreed.schema(), agreed.batch_rows, parquet=True) as writer:
        writer.append({"document": rows, "source": ["s"] * len(rows), "id": ["i"] * len(rows)})
    manifest = manifest_of(db)
    manifest["tables"]["removed"] = [vars(describe(db / path, path, len(rows)))]
    seal(db, manifest)
    with pytest.raises(DamagedFileError, match=r"removed: .*run verify"):
        retro_db.open(str(db)).neighbors[[0]]
