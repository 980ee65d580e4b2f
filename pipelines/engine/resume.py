"""Which tasks of a stage still stand, by their completion records, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic

from retro_db.store.folder import Folder
from retro_db.store.records import Record, StageRecords
from retro_db.store.serialize import from_json

from .jobs import Result, Stage, Task


@dataclass(frozen=True)
class Standing(Generic[Result]):
    """How far a stage is.

    Attributes:
        stage: The stage.
        kept: Records that still hold, by task.
        reasons: Why each of the other tasks is to be done, by task.
        doubtful: Tasks among the kept whose input moved or was touched: only its content can decide.
    """

    stage: Stage[Result]
    kept: dict[str, Record]
    reasons: dict[str, str]
    doubtful: list[Task]

    @property
    def is_complete(self) -> bool:
        """Whether every task is done."""
        return not self.reasons

    @property
    def pending(self) -> list[Task]:
        """Tasks that are to be done, in order."""
        return [task for task in self.stage.tasks if task.name in self.reasons]

    @property
    def results(self) -> list[Result]:
        """What the job returned for every task, in order."""
        return results_of(self.stage, [self.kept[task.name] for task in self.stage.tasks])

    def describe(self) -> str:
        """How many tasks are done, and why the others are not, in one line."""
        parts = [f"{len(self.kept):,} of {len(self.stage.tasks):,} tasks done"]
        counted = Counter(self.reasons.values())
        parts += [f"{count:,} {reason}" for reason, count in counted.most_common()]
        if self.doubtful:
            parts.append(f"{len(self.doubtful):,} moved or touched: will be read again to compare")
        return "; ".join(parts)


def standing(folder: Folder, stage: Stage[Result]) -> Standing[Result]:
    """Compares the records of a stage with its tasks; reads no input and writes nothing.

    Args:
        folder: Folder that the stage writes to.
        stage: The stage.
    """
    records = StageRecords(folder, stage.name).load()
    missing = folder.missing(file for record in records.values() for file in record.files)
    kept: dict[str, Record] = {}
    reasons: dict[str, str] = {}
    doubtful: list[Task] = []
    for task in stage.tasks:
        record = records.get(task.name)
        if record is None:
            reasons[task.name] = "not done yet"
        elif reason := _reason(task, record, missing):
            reasons[task.name] = reason
        else:
            kept[task.name] = record
            if task.reads is not None and task.reads.stamp != record.stamp:
                doubtful.append(task)
    return Standing(stage, kept, reasons, doubtful)


def _reason(task: Task, record: Record, missing: set[str]) -> str | None:
    """Why a recorded task must be done again; None if it need not, as far as its record says."""
    names = sorted({*task.depends, *record.depends})
    if changed := [n for n in names if task.depends.get(n) != record.depends.get(n)]:
        return f"changed: {', '.join(changed)}"
    if any(file.path in missing for file in record.files):
        return "a file is missing or resized"
    return None


def results_of(stage: Stage[Result], records: Iterable[Record]) -> list[Result]:
    """The results in records, as the stage's dataclass."""
    return [
        from_json(stage.result, record.result, f"{stage.name}/{record.name}") for record in records
    ]


def sole(results: Sequence[Result]) -> Result:
    """The result of a stage with one task."""
    [result] = results
    return result
