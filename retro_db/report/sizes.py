"""The sizes of a database's tables, as cells of a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from retro_db.config import in_units
from retro_db.manifest.model import Manifest
from retro_db.store.folder import FileEntry

SIZE_HEADERS = ("table", "files", "size", "bytes a chunk")


def size_row(manifest: Manifest, name: str, files: Sequence[FileEntry]) -> list[str]:
    """Returns the cells below `SIZE_HEADERS` for some files of a database."""
    size = sum(file.bytes for file in files)
    share = size / max(manifest.counts.chunks, 1)
    return [name, f"{len(files):,}", in_units(size), f"{share:,.1f}"]


def size_rows(manifest: Manifest) -> list[list[str]]:
    """Returns a row for each table that has any files."""
    return [
        size_row(manifest, table, files)
        for table, files in manifest.files_by_table.items()
        if files
    ]
