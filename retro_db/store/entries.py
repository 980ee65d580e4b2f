"""Manifests and records, whoever wrote them: how they are read, and how their entries are checked."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from retro_db.errors import DamagedFileError
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.serialize import DecodeError

# Names of folders, files and query corpora: none is hidden, leads upwards or has a meaning in a URL.
FOLDER_NAME = re.compile(r"\w[\w.-]{0,254}", re.ASCII)
_LONGEST_PATH = 1024
_MOST_BYTES = 1_000_000_000
# Whole numbers are below it, so that sums of a few fit in 64 bits.
LIMIT = 1 << 62


def read_bounded(folder: Folder, path: str) -> bytes | None:
    """The content of a manifest or of records.

    Args:
        folder: The database.
        path: Path of the file, relative to the folder.

    Returns:
        The content; None if the file does not exist, or is a folder or a pipe.

    Raises:
        DecodeError: The file is larger than any that is written, or a link leads out of the folder.
    """
    if folder.leads_out(path):
        raise DecodeError("lies outside, behind a link")
    if folder.is_local and not Path(folder.locate(path)).is_file():
        return None
    try:
        size = folder.size(path)
        if size is not None and size > _MOST_BYTES:
            raise DecodeError(f"{size} bytes, more than {_MOST_BYTES}")
        return None if size is None else folder.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def lines_of(folder: Folder, path: str) -> Iterator[bytes]:
    """The lines of a file of records, however many; none if it does not exist, or is no file of the folder.

    Args:
        folder: The database.
        path: Path of the file, relative to the folder.

    Yields:
        Lines. One that is longer than any that is written comes in pieces, which are no records.
    """
    if folder.leads_out(path):
        return
    with contextlib.suppress(DamagedFileError), folder.streaming(path) as stream:
        # A stream of an object store cannot bound its lines itself.
        reader = io.BufferedReader(cast(io.RawIOBase, stream))
        while line := reader.readline(_MOST_BYTES):
            yield line


def check_entry(entry: FileEntry, where: str) -> None:
    """Checks the path and the numbers of an entry.

    Args:
        entry: The entry as decoded.
        where: Field of the entry, for error messages.

    Raises:
        DecodeError: The path does not lie below the folder, or a number is negative or too large.
    """
    parts = entry.path.split("/")
    if len(entry.path) > _LONGEST_PATH or not all(map(FOLDER_NAME.fullmatch, parts)):
        raise DecodeError(
            f"{where}.path: {entry.path[:100]!r} is not a path below the database's folder"
        )
    if not 0 <= entry.bytes < LIMIT:
        raise DecodeError(f"{where}.bytes: {entry.bytes} is not a valid size")
    if entry.rows is not None and not 0 <= entry.rows < LIMIT:
        raise DecodeError(f"{where}.rows: {entry.rows} is not a valid number of rows")
