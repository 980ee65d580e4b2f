"""Rows gathered from all files of a table at once, by their addresses in this process's memory.

The rule that makes it safe: **an address is only read if it is origin + start + place * bytes of a row, and
each of the three terms was checked.** The origin is the address of a file that `Rows.maps` keeps mapped until
the rows are gathered. The start comes from `IpcFile.starts`, which refuses a batch with a column that does
not lie whole within its file. The place is at least 0 and below the rows of that batch: `Table.rows` refuses
ids out of range, and `take_pairs` never reads two rows at the last row of a batch. So every byte that is read
belongs to a column of a file that is mapped. `_gather` and `_memory` do this arithmetic; nothing else does.

Gathering file after file would be simpler, but a batch out of thousands of files takes a hundred times as
long.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from retro_db.store.tables import ColumnLayout, IpcFile, TableFile

# Beyond every address of a process, and the most bytes of an array that NumPy can count.
_MEMORY, _LARGEST = 1 << 48, 1 << 62


@dataclass(frozen=True)
class Rows:
    """Rows of a table, located in its files.

    Attributes:
        shape: Shape of the ids that were asked for.
        batches: Number of each row's batch, counted over all files, int64 [n].
        places: Number of each row in its batch, int64 [n].
        last: Whether a row is the last one of its file, bool [n].
        origins: Address of each row's file, int64 [n].
        maps: The rows' files by number, which stay mapped as long as this object lives.
    """

    shape: tuple[int, ...]
    batches: np.ndarray
    places: np.ndarray
    last: np.ndarray
    origins: np.ndarray
    maps: dict[int, IpcFile]


class Table:
    """All files of an Arrow table, addressed by global row.

    Args:
        files: Files in the manifest's order, all with the same number of rows in a batch.
        schema: Schema of the files; needed if there may be none.
    """

    def __init__(self, files: Sequence[TableFile], schema: pa.Schema | None = None) -> None:
        self.files = files
        rows = np.array([file.rows for file in files], np.int64)
        self._batch_rows = files[0].batch_rows if files else 1
        self._first_rows = np.cumsum([0, *rows], dtype=np.int64)
        self._first_batches = np.cumsum([0, *-(-rows // self._batch_rows)], dtype=np.int64)
        fields = schema or files[0].schema
        self._columns = {field.name: ColumnLayout.of(field.type) for field in fields}
        # Offsets at which the columns of decoded batches begin in their files: int64 [batches].
        batches = int(self._first_batches[-1])
        self._starts = {name: np.zeros(batches, np.int64) for name in self._columns}
        self._decoded = np.zeros(batches, bool)

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def column(self, name: str) -> ColumnReader:
        """One of its columns, addressed by global row."""
        return ColumnReader(self, name)

    def rows(self, ids: np.ndarray | list[int] | int) -> Rows:
        """Finds rows by global id.

        Args:
            ids: Integers of any shape, or a single one.

        Raises:
            IndexError: An id is not an integer, or out of range: -1 marks a missing neighbor, not a row.
            DamagedFileError: A file is missing, is not the listed one, or cannot be decoded.
        """
        given = np.asarray(ids)
        if given.size and given.dtype.kind not in "iu":
            raise IndexError(f"row ids must be integers, not {given.dtype}")
        wanted = given.astype(np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(
                f"row ids must be in [0, {len(self)}), got {wanted.min()} to {wanted.max()}"
            )
        files = np.searchsorted(self._first_rows, wanted, side="right") - 1
        batches, places = np.divmod(wanted - self._first_rows[files], self._batch_rows)
        batches += self._first_batches[files]
        addresses = np.zeros(len(self.files), np.int64)
        addresses[files] = 1
        maps = {
            number: self.files[number].mapped() for number in np.flatnonzero(addresses).tolist()
        }
        for number, mapped in maps.items():
            addresses[number] = mapped.address
        if not self._decoded.all():
            self._decode(batches, maps)
        last = wanted + 1 == self._first_rows[files + 1]
        return Rows(given.shape, batches, places, last, addresses[files], maps)

    def _decode(self, batches: np.ndarray, maps: dict[int, IpcFile]) -> None:
        """Notes the offsets of the columns of batches that were not read before; `maps` holds their files.

        Raises:
            DamagedFileError: A batch cannot be decoded.
        """
        new = np.unique(batches[~self._decoded[batches]])
        files = np.searchsorted(self._first_batches, new, side="right") - 1
        for batch, file in zip(new.tolist(), files.tolist(), strict=True):
            starts = maps[file].starts(batch - int(self._first_batches[file]))
            for name, start in starts.items():
                self._starts[name][batch] = start
            self._decoded[batch] = True

    def take(self, column: str, rows: Rows) -> np.ndarray:
        """Rows of a column: a new array, the shape of the ids followed by that of a row."""
        kind = self._columns[column]
        items = self._gather(column, 1, rows.origins, rows.batches, rows.places)
        return items.view(kind.type).reshape(*rows.shape, *kind.shape)

    def take_pairs(self, column: str, rows: Rows) -> np.ndarray:
        """Each row with the next one in its file: the shape of the ids, then 2, then the shape of a row.

        Zeros follow a file's last row.

        Raises:
            DamagedFileError: The batch of a next row cannot be decoded.
        """
        kind = self._columns[column]
        # The next row does not lie behind the last row of a batch: for that row, the one before is read too.
        ends = rows.places == self._batch_rows - 1
        ends |= rows.last
        places = rows.places - ends
        if places.min(initial=0) < 0:
            return self._take_both(column, rows)
        items = self._gather(column, 2, rows.origins, rows.batches, places)
        if ends.any():
            halves = items.view(np.dtype((np.void, kind.bytes))).reshape(-1, 2)
            halves[ends, 0] = halves[ends, 1]
            halves[ends, 1] = np.void(kind.bytes)
            ends &= ~rows.last
            next_batches = rows.batches[ends] + 1
            self._decode(next_batches, rows.maps)
            halves[ends, 1] = self._gather(column, 1, rows.origins[ends], next_batches, 0)
        return items.view(kind.type).reshape(*rows.shape, 2, *kind.shape)

    def _take_both(self, column: str, rows: Rows) -> np.ndarray:
        """What `take_pairs` returns, if some rows are in batches of a single row."""
        kind = self._columns[column]
        halves = np.zeros((len(rows.places), 2), np.dtype((np.void, kind.bytes)))
        halves[:, 0] = self._gather(column, 1, rows.origins, rows.batches, rows.places)
        more = ~rows.last
        turned, places = np.divmod(rows.places[more] + 1, self._batch_rows)
        batches = rows.batches[more] + turned
        self._decode(batches, rows.maps)
        halves[more, 1] = self._gather(column, 1, rows.origins[more], batches, places)
        return halves.view(kind.type).reshape(*rows.shape, 2, *kind.shape)

    def _gather(
        self,
        column: str,
        width: int,
        origins: np.ndarray,
        batches: np.ndarray,
        places: np.ndarray | int,
    ) -> np.ndarray:
        """`width` rows from each one on, all in its batch, as void items [n]."""
        kind = self._columns[column]
        at = places * kind.bytes + origins
        at += self._starts[column][batches]
        at //= kind.unit
        at -= 1
        return _memory(width * kind.bytes, kind.unit)[at]


@functools.cache
def _memory(size: int, unit: int) -> np.ndarray:
    """This process's memory as an array of void items; item i begins at address (i + 1) * unit.

    NumPy gathers single items several times as fast as rows of an array. The array is only ever indexed by
    `_gather`, with addresses that follow the rule of this module.

    Args:
        size: Bytes of an item; items overlap where it is larger than `unit`.
        unit: Number of bytes that divides every address to be read.
    """
    count = min(_MEMORY // unit - size, _LARGEST // size)
    described = {
        "data": (unit, True),
        "shape": (count,),
        "strides": (unit,),
        "typestr": f"|V{size}",
    }
    return np.asarray(SimpleNamespace(__array_interface__=described | {"version": 3}))


class ColumnReader:
    """One column of a table, addressed by global row.

    Args:
        table: Table of the column.
        column: Name of the column.
    """

    def __init__(self, table: Table, column: str) -> None:
        self._table = table
        self._column = column

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, ids: np.ndarray | list[int] | int | slice) -> np.ndarray:
        """Rows by global id, in the order asked for.

        Args:
            ids: Integers of any shape, a single one, or a slice.

        Returns:
            A new array, of the shape of the ids followed by that of a row.

        Raises:
            IndexError: An id is not an integer, or out of range: -1 marks a missing neighbor, not a row.
            DamagedFileError: A file is missing, is not the listed one, or cannot be decoded.
        """
        if isinstance(ids, slice):
            ids = np.arange(*ids.indices(len(self)))
        return self._table.take(self._column, self._table.rows(ids))
