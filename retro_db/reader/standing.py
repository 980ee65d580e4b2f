"""Whether a database on a local disk is still the one that was opened: a build may replace it meanwhile.

A build removes the manifest before it replaces the first table, so that a file which was opened while the
manifest stands is one that it lists.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from retro_db.errors import DatabaseReplacedError, NotADatabaseError
from retro_db.manifest.model import Manifest
from retro_db.manifest.sealing import FILE, manifest_path, read_manifest
from retro_db.store.folder import Folder

# Inode, time and size; None for a file that does not exist.
Stamp = tuple[int, int, int] | None


def stamp_of(folder: Folder, path: str) -> Stamp:
    """What changes when a local file is replaced."""
    if not folder.is_local:
        return None
    try:
        status = os.stat(folder.locate(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def standing(folder: Folder, manifest: Manifest, stamp: Stamp) -> Folder:
    """A folder whose local files are read only while a manifest stands.

    Args:
        folder: Folder of the database.
        manifest: Manifest that was read.
        stamp: Stamp of the current manifest's file before it was read.
    """
    if not folder.is_local:
        return folder  # copies are compared with their checksums
    kept = stamp_of(folder, manifest_path(manifest.generation))
    guard = StandingManifest(folder, manifest.generation, manifest.sha256, (stamp, kept))
    return folder.guarded(guard)


@dataclass
class StandingManifest:
    """The manifest that a reader has opened: the current one, or one that later generations keep.

    Attributes:
        folder: Folder of the database.
        generation: Generation of the manifest.
        sha256: Its seal.
        seen: Stamps of the two files that may hold it, when one of them did.
    """

    folder: Folder
    generation: int
    sha256: str
    seen: tuple[Stamp, Stamp]

    def expect_standing(self) -> None:
        """Looks again, and reads the manifest if its file is another one.

        Raises:
            DatabaseReplacedError: Neither file holds it: another build is at work, or was.
        """
        paths = (FILE, manifest_path(self.generation))
        now = (stamp_of(self.folder, paths[0]), stamp_of(self.folder, paths[1]))
        if now == self.seen:
            return
        if not any(self._holds(path) for path in paths):
            raise DatabaseReplacedError(
                f"{self.folder.url}: another build has replaced the database since it was opened; open it "
                "again when that build has ended"
            )
        self.seen = now

    def _holds(self, path: str) -> bool:
        try:
            return read_manifest(self.folder, path).sha256 == self.sha256
        except NotADatabaseError:
            return False
