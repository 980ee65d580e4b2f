"""How every stage runs: one task in, files and a completion record out; payload never moves."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from retro_db.errors import ExecutionError, RetroDBError
from retro_db.serialize import digest, to_json
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.records import Record, StageRecords

from .quiet import Shared, beam

Item = TypeVar("Item")
log = logging.getLogger(__name__)
FAILURES = "state/failures"
_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Task(Generic[Item]):
    """One shard of one stage.

    Attributes:
        name: Of the shard, and of its completion record.
        fingerprint: Of everything that its output depends on.
        item: The descriptor that the job gets.
    """

    name: str
    fingerprint: str
    item: Item


class Job(Protocol):
    """What a stage does to one item; picklable, with the pure function of the library inside."""

    stage: str
    folder: Folder

    def open(self) -> Any:
        """What all tasks of a process share: a tokenizer, a model, an index."""

    def run(self, shared: Any, item: Any, report: Callable[[int], None]) -> Any:
        """Does one item and returns a dataclass."""

    def files(self, result: Any) -> list[FileEntry]:
        """What `run` wrote."""


def fingerprint(stage: str, version: int, *inputs: object) -> str:
    """Of a task: its stage, the version of the stage's code and everything that decides its output."""
    return digest([stage, version, *inputs])


@dataclass
class RunShards(beam.PTransform):
    """Runs a job over tasks, each of which commits its own output.

    Args:
        job: What to do.
        spread: How the tasks reach the workers; one that shuffles may fill in what they work on.
    """

    job: Job
    spread: beam.PTransform = field(default_factory=beam.Reshuffle)

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """Spreads the descriptors over the workers."""
        return (
            tasks
            | "Spread" >> self.spread
            | "Run" >> beam.ParDo(CommitShard(self.job)).with_output_types(str)
        )


class CommitShard(beam.DoFn):
    """Runs one task and writes its completion record last."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shared = Shared()
        self._opened: _Opened | None = None

    def setup(self) -> None:
        """Opens what the tasks share, once per process."""
        try:
            self._opened = self._shared.acquire(lambda: _Opened(self._job.open()))
        except RetroDBError as error:
            self._opened = None
            _record_failure(self._job, "open", error)

    def process(self, task: Task) -> list[str]:
        """Returns the task's name; nothing where it failed in a way that trying again will not mend."""
        if self._opened is None:
            return []
        progress = ProgressFile(self._job, task.name)
        start = time.monotonic()
        try:
            result = self._job.run(self._opened.value, task.item, progress.add)
        except ExecutionError:
            raise  # trying again may help
        except RetroDBError as error:
            _record_failure(self._job, task.name, error)
            return []
        record = Record(
            name=task.name,
            fingerprint=task.fingerprint,
            files=self._job.files(result),
            result=to_json(result),
            seconds=round(time.monotonic() - start, 3),
        )
        progress.finish()
        StageRecords(self._job.folder, self._job.stage).commit(record)
        return [task.name]


@dataclass
class _Opened:
    """Lets any value be shared: Shared keeps weak references, which some types do not allow."""

    value: Any


class ProgressFile:
    """A count that the driver reads while a task runs; on local folders only."""

    def __init__(self, job: Job, name: str) -> None:
        folder = progress_folder(job.folder, job.stage) if job.folder.is_local else None
        self._path = os.path.join(folder, name) if folder else None
        self._count = 0
        self._written = time.monotonic()

    def add(self, count: int) -> None:
        """So many more units are done."""
        self._count += count
        if time.monotonic() - self._written >= _REPORT_SECONDS:
            self.finish()

    def finish(self) -> None:
        """Writes the count. A torn write shows a wrong number for half a second: no harm."""
        self._written = time.monotonic()
        if self._path:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with open(self._path, "w", encoding="ascii") as file:
                file.write(str(self._count))


def progress_folder(folder: Folder, stage: str) -> str:
    """Where the tasks of a stage count."""
    return folder.locate(f"state/progress/{stage}")


def read_progress(folder: Folder, stage: str) -> int:
    """Units done by all tasks of a stage."""
    path = progress_folder(folder, stage)
    total = 0
    for name in os.listdir(path) if os.path.isdir(path) else []:
        with open(os.path.join(path, name), encoding="ascii") as file:
            total += int(file.read() or 0)
    return total


def _record_failure(job: Job, name: str, error: RetroDBError) -> None:
    """Keeps an error's class and message for the driver: not every runner hands them over."""
    log.error("%s %s: %s", job.stage, name, error)
    failure = {"class": type(error).__name__, "message": str(error)}
    job.folder.write(f"{FAILURES}/{job.stage}-{name}.json", json.dumps(failure).encode())


def read_failures(folder: Folder) -> Sequence[tuple[str, str]]:
    """Class and message of every failure since the last `folder.remove(FAILURES)`."""
    failures = [json.loads(folder.read(f"{FAILURES}/{name}")) for name in folder.list(FAILURES)]
    return [(failure["class"], failure["message"]) for failure in failures]
