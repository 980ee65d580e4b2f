"""Tables on object stores: a copy of each file is mapped while it is in the cache, and fetched when read."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from retro_db.store.cache import use
from retro_db.store.folder import Folder, TableEntry
from retro_db.store.tables import IpcFile, TableFile

# Marking a copy as used and checking that it still exists takes as long as reading a row or two.
_LOOK_SECONDS = 1.0
_open: weakref.WeakValueDictionary[int, CopiedFile] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class _Mapped:
    """A copy that is mapped; the inode identifies it among files that had its name."""

    file: IpcFile
    copy: Path
    inode: int

    def use(self) -> bool:
        """Marks the copy as used now; returns whether it is still in the cache."""
        return use(self.copy, self.inode)

    def has_left(self) -> bool:
        """Whether the copy is no longer in the cache."""
        try:
            return self.copy.stat().st_ino != self.inode
        except FileNotFoundError:
            return True


class CopiedFile(TableFile):
    """An Arrow file in a folder that is not on a local disk.

    Args:
        folder: Folder of the file.
        entry: The file as its manifest or records list it.
        schema: What the file must hold.
        batch_rows: Rows of every batch but the last.
    """

    def __init__(
        self, folder: Folder, entry: TableEntry, schema: pa.Schema, batch_rows: int
    ) -> None:
        super().__init__(schema, entry.rows, batch_rows)
        self._folder = folder
        self._entry = entry
        self._mapped: _Mapped | None = None
        self._looked = 0.0
        _open[id(self)] = self

    def view(self, column: str, batch: int) -> np.ndarray:
        """One batch's column, from the map of a copy; arguments and result are those of `TableFile.view`.

        Raises:
            DamagedFileError: The file is missing, is not the listed one, or cannot be decoded.
            InputError: The cache has no room for it.
        """
        return self.mapped().view(column, batch)

    def mapped(self) -> IpcFile:
        """The map of a copy that is in the cache, as of a moment ago.

        Raises:
            DamagedFileError: The file is missing, is not the listed one, or cannot be decoded.
            InputError: The cache has no room for it.
        """
        mapped, now = self._mapped, time.monotonic()
        if mapped is None or now - self._looked > _LOOK_SECONDS:
            self._looked = now
            if mapped is None or not mapped.use():
                mapped = self._map()
        return mapped.file

    def _map(self) -> _Mapped:
        where = f"{self._folder.url}: {self._entry.path}"
        with self._folder.holding(self._entry) as copy:
            file = IpcFile(copy, self.schema, self.rows, self.batch_rows, where)
            self._mapped = mapped = _Mapped(file, copy, copy.stat().st_ino)
        # A copy that was removed for this one takes its bytes of the disk until its last map is closed.
        for reference in _open.valuerefs():
            if (other := reference()) is not None:
                other.forget()
        return mapped

    def forget(self) -> None:
        """Closes the map if its copy has left the cache."""
        mapped = self._mapped
        if mapped is not None and mapped.has_left():
            self._mapped = None
