"""Completion records: the commit mark of every task of every stage, which resume trusts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from retro_db.meter import Work
from retro_db.store.entries import check_entry, lines_of, read_bounded
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.serialize import (
    DecodeError,
    canonical,
    digest,
    from_json,
    parse_json,
    to_json,
)

RECORDS = "state/records"
_READERS = 32


@dataclass(frozen=True)
class Record:
    """One finished task.

    Attributes:
        name: Name of the task within its stage.
        depends: A hash of each thing that its output depends on, by name: together its fingerprint.
        files: Files that it wrote.
        result: Result that the stage returned, as JSON.
        seconds: Time that it took.
        work: Units and seconds that it counted.
        stamp: Paths and versions of the input files as they were planned. If it differs, the content
            decides.
        host: Machine that it ran on, so that the output of a faulty one can be found; empty in old records.
        ended: When it ended, in seconds since 1970; 0 in old records.
    """

    name: str
    depends: dict[str, str]
    files: list[FileEntry]
    result: dict[str, Any]
    seconds: float
    work: Work = field(default_factory=Work)
    stamp: str = ""
    host: str = ""
    ended: float = 0.0


def mark_of(value: object) -> str:
    """Hash of one thing that an output depends on, as records keep it.

    Args:
        value: Value that JSON can hold.
    """
    return digest(value)[:32]


class StageRecords:
    """The records of one stage: a file each while it runs, one file for all when it is finished."""

    def __init__(self, folder: Folder, stage: str) -> None:
        self._folder = folder
        self._scattered = f"{RECORDS}/{stage}"
        self._compacted = f"{RECORDS}/{stage}.jsonl"

    def commit(self, record: Record) -> None:
        """Marks a task as done; its files must be in place."""
        self._folder.write(f"{self._scattered}/{record.name}.json", canonical(to_json(record)))

    def load(self) -> dict[str, Record]:
        """All records by name; one that cannot be read counts as missing."""
        names = [name for name in self._folder.list(self._scattered) if name.endswith(".json")]
        records = {}
        for line in chain(lines_of(self._folder, self._compacted), self._committed(names)):
            try:
                record = from_json(Record, parse_json(line))
                for number, entry in enumerate(record.files):
                    check_entry(entry, f"files[{number}]")
            except DecodeError:
                continue
            records[record.name] = record
        return records

    def _committed(self, names: list[str]) -> Iterator[bytes]:
        """The records that lie in a file each."""

        def read(name: str) -> bytes:
            try:
                return read_bounded(self._folder, f"{self._scattered}/{name}") or b""
            except DecodeError:
                return b""

        # An object store takes tens of milliseconds for each file.
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(read, names)

    def keep_only(self, records: list[Record]) -> None:
        """Replaces all records by these, in one file."""
        with self._folder.writing(self._compacted) as path, path.open("wb") as file:
            file.writelines(canonical(to_json(record)) + b"\n" for record in records)
        self._folder.remove(self._scattered)
