"""The generations of a database, and whether each follows from the one before."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

from retro_db.errors import DatabaseError, NotADatabaseError
from retro_db.manifest.model import VERSION, Manifest
from retro_db.manifest.sealing import FILE, generation_path, manifest_path, read_manifest
from retro_db.reader.database import Database
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.records import RECORDS
from retro_db.store.serialize import to_json
from retro_db.verify.ledger import Ledger, one_line


@dataclass(frozen=True)
class History:
    """The manifests of a database, oldest first, the current one last.

    Attributes:
        manifests: Manifests by generation, without those that are missing or damaged.
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
        listed = {entry.path: entry for entry in self.listed}
        return [entry for path, entry in listed.items() if path not in current]

    @property
    def listed(self) -> Iterator[FileEntry]:
        """Entries of the files of all generations, oldest first; most files have several."""
        return itertools.chain.from_iterable(manifest.files for manifest in self.manifests.values())

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
        database: Opened database.
        ledger: Takes a problem for each manifest that is missing or damaged.

    Returns:
        All manifests that could be read.
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
    """Checks that every manifest has the bytes that were written, and names the one before as its parent."""
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
    for entry in history.listed:
        if listed.setdefault(entry.path, entry) != entry:
            yield f"{entry.path}: two generations list it with other contents"


def _written(raw: bytes, manifest: Manifest) -> bytes:
    """Returns what writing the manifest again gives; other versions have other fields than this release's."""
    data = to_json(manifest) if manifest.version == VERSION else json.loads(raw)
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode("ascii")


def begun_update(database: Database) -> str | None:
    """What is running or was stopped, an append or a removal; its files are not the database's yet."""
    folder = generation_path(database.manifest.generation + 1)
    if not database.folder.list(folder):
        return None
    return "an append" if database.folder.exists(f"{folder}/{RECORDS}") else "a removal"
