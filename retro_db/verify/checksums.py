"""Files against manifests: checksums, generations, and files that no manifest lists."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from typing import BinaryIO

from retro_db.errors import DamagedFileError
from retro_db.manifest.model import CARD, QUERIES, TABLES
from retro_db.manifest.sealing import FILE, GENERATIONS, generation_path, manifest_path
from retro_db.meter import Meter
from retro_db.reader.database import Database
from retro_db.store.folder import FileEntry, Folder
from retro_db.verify.history import History, begun_update
from retro_db.verify.ledger import Check

_PIECE = 1 << 20
_NOT_DATA = re.compile(rf"({GENERATIONS}/\d{{4,}}/)?({QUERIES}/[^/]+/)?(state|report)/")
_FOLDERS = {*TABLES, "index", "tokenizer", QUERIES, GENERATIONS, "state", "report"}


def file_checks(database: Database, history: History, meter: Meter) -> Iterator[Check]:
    """Yields a check of the checksum of every listed file; files of older generations may be missing.

    Args:
        database: Opened database.
        history: Manifests of the database.
        meter: Counts bytes.

    Yields:
        One check for each file.
    """
    folder = database.folder
    for entry in {entry.path: entry for entry in history.current.files}.values():
        run = functools.partial(_check_bytes, folder, entry, meter)
        yield Check(entry.path, [entry.path], run)
    for entry in history.superseded:
        if folder.exists(entry.path):
            run = functools.partial(_check_bytes, folder, entry, meter)
            yield Check(entry.path, [entry.path], run)


def _check_bytes(folder: Folder, entry: FileEntry, meter: Meter) -> Iterator[str]:
    """Checks that the file exists and has the bytes that the manifest lists."""
    if folder.leads_out(entry.path):
        yield f"{entry.path}: lies outside, behind a link"
        return
    try:
        with folder.streaming(entry.path) as stream:
            size, sha256 = _hash(stream, meter)
    except DamagedFileError:
        yield f"{entry.path}: missing"
    except OSError as error:
        yield f"{entry.path}: cannot be read ({error.strerror or error})"
    else:
        if size != entry.bytes:
            yield f"{entry.path}: {size} bytes where {entry.bytes} were written"
        elif sha256 != entry.sha256:
            yield f"{entry.path}: its bytes are not those that were written"


def _hash(stream: BinaryIO, meter: Meter) -> tuple[int, str]:
    """Returns the size and sha256 of a file, and counts its bytes a piece at a time."""
    hasher, size = hashlib.sha256(), 0
    while piece := stream.read(_PIECE):
        hasher.update(piece)
        size += len(piece)
        meter(len(piece))
    return size, hasher.hexdigest()


def check_strangers(database: Database, history: History) -> Iterator[str]:
    """Checks that a manifest knows every file and every folder, but the card, `state` and `report`."""
    listed = {entry.path for manifest in history.manifests.values() for entry in manifest.files}
    kept = (manifest_path(number) for number in range(1, history.current.generation))
    known = {FILE, CARD, *listed, *kept}
    paths = database.folder.walk()
    copy = manifest_path(history.current.generation)
    if copy in paths and database.folder.read(copy) == database.folder.read(FILE):
        known.add(copy)  # before it is superseded
    if begun_update(database):
        begun = f"{generation_path(history.current.generation + 1)}/"
        known.update(path for path in paths if path.startswith(begun))
    for path in paths:
        if path not in known and not _NOT_DATA.match(path):
            yield f"{path}: not in {FILE}"
    used = {path.split("/")[0] for path in (*listed, *paths)}
    for name in database.folder.list():
        if name not in used | _FOLDERS:
            yield f"{name}: not in {FILE}"
