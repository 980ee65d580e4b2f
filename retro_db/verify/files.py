"""Files against manifests: checksums, generations, and what should not be there."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import fsspec

from retro_db.database import Database
from retro_db.errors import DamagedFileError, DatabaseError, NotADatabaseError
from retro_db.manifest import (
    FILE,
    GENERATIONS,
    QUERIES,
    TABLES,
    VERSION,
    Manifest,
    generation_path,
    manifest_path,
    read_manifest,
)
from retro_db.meter import Meter
from retro_db.serialize import to_json
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.records import RECORDS
from retro_db.verify.ledger import Check, Ledger, one_line

_PIECE = 1 << 20
_NOT_DATA = re.compile(rf"({GENERATIONS}/\d{{4,}}/)?({QUERIES}/[^/]+/)?(state|report)/")
_FOLDERS = {*TABLES, "index", "tokenizer", QUERIES, GENERATIONS, "state", "report"}


@dataclass(frozen=True)
class History:
    """The manifests of a database, oldest first, the current one last.

    Attributes:
        manifests: By generation; one that is missing or damaged is left out.
    """

    manifests: dict[int, Manifest]

    @property
    def current(self) -> Manifest:
        """The manifest that readers trust."""
        return self.manifests[max(self.manifests)]

    @property
    def superseded(self) -> list[FileEntry]:
        """Files that only older generations list."""
        current = {entry.path for entry in self.current.files}
        older = itertools.chain.from_iterable(one.files for one in self.manifests.values())
        return list({entry.path: entry for entry in older if entry.path not in current}.values())

    @functools.cached_property
    def first_listed(self) -> dict[FileEntry, Manifest]:
        """The oldest manifest that lists each file as it is now."""
        return {
            entry: manifest
            for manifest in reversed(self.manifests.values())
            for entry in manifest.files
        }


def read_history(database: Database, ledger: Ledger) -> History:
    """Reads the manifests that earlier generations left.

    Args:
        database: Opened.
        ledger: Told of those that are missing or damaged.

    Returns:
        All that could be read.
    """
    current = database.manifest.generation
    manifests = {}
    for number in range(1, current):
        try:
            manifests[number] = read_manifest(database.folder, manifest_path(number))
        except NotADatabaseError:
            ledger.problems.append(f"{manifest_path(number)}: missing")
        except DatabaseError as error:
            ledger.problems.append(one_line(error))
    return History({**manifests, current: database.manifest})


def check_history(folder: Folder, history: History) -> Iterator[str]:
    """Every manifest is the text that was written, and each names the one before it as its parent."""
    last = history.current.generation
    for number, manifest in history.manifests.items():
        path = FILE if number == last else manifest_path(number)
        if folder.read(path) != _written(folder.read(path), manifest):
            yield f"{path}: its bytes are not those that were written"
        if manifest.generation != number or number < 1:
            yield f"{path}: generation {manifest.generation} where {max(number, 1)} belongs"
        before = history.manifests.get(number - 1)
        if number == 1 and manifest.parent is not None:
            yield f"{path}: the first generation has a parent"
        if before is not None and manifest.parent != before.sha256:
            yield f"{path}: its parent is not {manifest_path(number - 1)}"
    listed: dict[str, FileEntry] = {}
    for entry in itertools.chain.from_iterable(one.files for one in history.manifests.values()):
        if listed.setdefault(entry.path, entry) != entry:
            yield f"{entry.path}: two generations list it with other contents"


def _written(raw: bytes, manifest: Manifest) -> bytes:
    """What writing the manifest again gives; other versions have other fields than this release's."""
    data = to_json(manifest) if manifest.version == VERSION else json.loads(raw)
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode("ascii")


def file_checks(database: Database, history: History, meter: Meter) -> Iterator[Check]:
    """The checksum of every listed file, once; those of older generations may be gone.

    Args:
        database: Opened.
        history: Its manifests.
        meter: Counts bytes.

    Yields:
        A check for each.
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
    """The file is there with its bytes."""
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
    """Size and sha256 of a file, told a piece at a time."""
    hasher, size = hashlib.sha256(), 0
    while piece := stream.read(_PIECE):
        hasher.update(piece)
        size += len(piece)
        meter(len(piece))
    return size, hasher.hexdigest()


def check_strangers(database: Database, history: History) -> Iterator[str]:
    """No file and no folder is there that no manifest knows, but in `state` and `report`."""
    listed = {entry.path for one in history.manifests.values() for entry in one.files}
    kept = (manifest_path(number) for number in range(1, history.current.generation))
    known = {FILE, *listed, *kept}
    found = _walk(database.folder)
    copy = manifest_path(history.current.generation)
    if copy in found and database.folder.read(copy) == database.folder.read(FILE):
        known.add(copy)  # before it is superseded
    if is_begun(database):
        begun = f"{generation_path(history.current.generation + 1)}/"
        known.update(path for path in found if path.startswith(begun))
    for path in found:
        if path not in known and not _NOT_DATA.match(path):
            yield f"{path}: not in {FILE}"
    used = {path.split("/")[0] for path in (*listed, *found)}
    for name in database.folder.list():
        if name not in used | _FOLDERS:
            yield f"{name}: not in {FILE}"


def is_begun(database: Database) -> bool:
    """Whether an append is under way or was stopped; its files are not the database's yet."""
    place = generation_path(database.manifest.generation + 1)
    return database.folder.exists(f"{place}/{RECORDS}")


def _walk(folder: Folder) -> list[str]:
    """Every file below a folder, relative to it."""
    fs, root = fsspec.core.url_to_fs(folder.url)
    fs.invalidate_cache()
    start = len(root.rstrip("/")) + 1
    return sorted(path[start:] for path in fs.find(root))
