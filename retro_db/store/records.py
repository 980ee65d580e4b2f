"""Completion records: the commit mark of every shard of every stage, and what resume trusts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from retro_db.meter import Work
from retro_db.serialize import DecodeError, canonical, from_json, to_json
from retro_db.store.folder import FileEntry, Folder


@dataclass(frozen=True)
class Record:
    """One finished task.

    Attributes:
        name: Of the task within its stage.
        fingerprint: Of everything that its output depends on.
        files: What it wrote.
        result: The stage's own result, as JSON.
        seconds: How long it took.
        work: What it counted.
    """

    name: str
    fingerprint: str
    files: list[FileEntry]
    result: dict[str, Any]
    seconds: float
    work: Work = field(default_factory=Work)


class StageRecords:
    """The records of one stage: a file each while it runs, one file for all when it is finished."""

    def __init__(self, folder: Folder, stage: str) -> None:
        self._folder = folder
        self._scattered = f"state/records/{stage}"
        self._compacted = f"state/records/{stage}.jsonl"

    def commit(self, record: Record) -> None:
        """Marks a task as done; its files must be in place."""
        self._folder.write(f"{self._scattered}/{record.name}.json", canonical(to_json(record)))

    def load(self) -> dict[str, Record]:
        """Every record by name; those that cannot be read count as missing."""
        lines: list[bytes] = []
        if self._folder.exists(self._compacted):
            lines += self._folder.read(self._compacted).splitlines()
        for name in self._folder.list(self._scattered):
            if name.endswith(".json"):
                lines.append(self._folder.read(f"{self._scattered}/{name}"))
        records = {}
        for line in lines:
            try:
                record = from_json(Record, json.loads(line))
            except (ValueError, DecodeError):
                continue
            records[record.name] = record
        return records

    def replace(self, records: list[Record]) -> None:
        """Keeps these records alone, in one file."""
        text = b"".join(canonical(to_json(record)) + b"\n" for record in records)
        self._folder.write(self._compacted, text)
        self._folder.remove(self._scattered)
