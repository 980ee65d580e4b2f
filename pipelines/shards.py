"""How every stage runs: one task in, files and a completion record out; payload never moves."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from retro_db.corpus.planning import Shard
from retro_db.errors import (
    ExecutionError,
    OwnershipLostError,
    RetroDBError,
    error_named,
    of_environment,
)
from retro_db.meter import Meter, Work
from retro_db.redaction import redacted
from retro_db.serialize import canonical, digest, from_json, to_json
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.ownership import end_with_driver
from retro_db.store.records import Record, StageRecords

from . import pool
from .briefs import Brief
from .quiet import Shared, beam

Item = TypeVar("Item")
log = logging.getLogger(__name__)
FAILURES = "state/failures"
_REPORT_SECONDS = 0.5
# The system, the runner's own processes, and the libraries of ours.
_MACHINE_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Task(Generic[Item]):
    """One shard of one stage.

    Attributes:
        name: Of the shard, and of its completion record.
        depends: A hash of each thing that its output depends on, by name.
        item: The descriptor that the job gets.
        reads: What it reads of the corpus, if it does; its content decides whether it is done.
    """

    name: str
    depends: dict[str, str]
    item: Item
    reads: Shard | None = None


@dataclass
class Deal(beam.PTransform):
    """Deals descriptors out to the workers, each by its own name.

    `beam.Reshuffle` would deal by chance, and Spark gives a job up when it loses an executor and with
    it data whose order was of chance ("indeterminate output").

    Args:
        name: Function that tells a descriptor's name; a task's own where left out.
    """

    name: Callable[[Any], str] = attrgetter("name")

    def expand(self, descriptors: beam.PCollection) -> beam.PCollection:
        """Groups by the names."""
        return (
            descriptors
            | "Name" >> beam.Map(_named, self.name).with_output_types(tuple[str, Any])
            | "Group" >> beam.GroupByKey()
            | "Take" >> beam.FlatMap(_grouped).with_output_types(Any)
        )


def _named(descriptor: Any, name: Callable[[Any], str]) -> tuple[str, Any]:
    return name(descriptor), descriptor


def _grouped(named: tuple[str, Iterable[Any]]) -> Iterable[Any]:
    return named[1]


@dataclass(frozen=True)
class Placement:
    """Where a stage's tasks run.

    Attributes:
        spread: How they reach the workers; one that shuffles may fill in what they work on.
        hints: Beam's resource hints, by name: what a worker must have.
        alone: Whether a task wants a machine for itself: all its cores, and its memory.
    """

    spread: beam.PTransform = field(default_factory=Deal)
    hints: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False

    @classmethod
    def in_memory(cls, budget: int) -> Placement:
        """On workers with the memory that a task may take, one task at a time.

        Args:
            budget: Bytes, `index.memory`; what a machine needs besides is added.
        """
        return cls(hints={"min_ram": f"{budget + _MACHINE_BYTES}B"}, alone=True)


class Job(Protocol):
    """What a stage does to one item; picklable, with the pure function of the library inside.

    `stage` names it in lower case letters, in records and in pipelines alike.
    """

    stage: str
    folder: Folder

    def open(self) -> Any:
        """What all tasks of a process share: a tokenizer, a model, an index."""

    def run(self, shared: Any, item: Any, meter: Meter, /) -> Any:
        """Does one item and returns a dataclass."""

    def files(self, result: Any) -> list[FileEntry]:
        """What `run` wrote."""


def fingerprint(version: int, inputs: Mapping[str, object]) -> dict[str, str]:
    """What decides a task's output: a short hash of each thing, so that a changed one can be named.

    Args:
        version: Of the stage's code.
        inputs: Anything that JSON can hold, by the name that a user knows it by.
    """
    return {name: digest(value)[:32] for name, value in {"code": version, **inputs}.items()}


@dataclass
class RunShards(beam.PTransform):
    """Runs a job over tasks, each of which commits its own output.

    Args:
        stage: Of the job.
        job: A brief that holds the job alone.
        placement: Where.
        processes: Processes of this machine that share the tasks; none where the workers do them.
    """

    stage: str
    job: Brief
    placement: Placement = field(default_factory=Placement)
    processes: int = 0

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """Spreads the descriptors over the workers."""
        if self.processes:
            do: beam.DoFn = HandToProcesses(self.stage, self.job, self.processes)
        else:
            do = CommitShard(self.stage, self.job)
        run = beam.ParDo(do).with_output_types(str)
        hints = self.placement.hints
        return (
            tasks
            | "Spread" >> self.placement.spread
            | "Run" >> (run.with_resource_hints(**hints) if hints else run)
        )


class CommitShard(beam.DoFn):
    """Runs one task and writes its completion record last."""

    def __init__(self, stage: str, job: Brief) -> None:
        self._stage = stage
        self._brief = job
        self._shared = Shared()
        self._opened: _Opened | None = None

    def setup(self) -> None:
        """Opens what the tasks share, once per process."""
        end_with_driver(self._brief.folder.fence)
        with _failing(self._brief.folder, self._stage, "open"):
            self._opened = self._shared.acquire(lambda: _open(self._brief))

    def process(self, task: Task) -> list[str]:
        """Returns the task's name; nothing where it failed in a way that trying again will not mend."""
        return [task.name] if _commit(self._stage, self._brief, task, self._opened) else []


class HandToProcesses(beam.DoFn):
    """Has the tasks of a bundle done by the processes of this machine, whichever is free."""

    def __init__(self, stage: str, job: Brief, processes: int) -> None:
        self._stage = stage
        self._brief = job
        self._processes = processes
        self._handed: list[Future[None]] = []

    def process(self, task: Task) -> Iterator[str]:
        """Hands a task over."""
        arguments = (self._stage, self._brief, task)
        self._handed.append(pool.submit(self._processes, _commit_in_process, *arguments))
        yield task.name

    def finish_bundle(self) -> None:
        """Waits for all of them."""
        handed, self._handed = self._handed, []
        pool.wait_for(handed)


def _commit_in_process(stage: str, brief: Brief, task: Task) -> None:
    """Does a task in a process that keeps what the tasks of the stage share, until the next stage."""
    if _kept.brief != brief.sha256:
        _kept.brief, _kept.opened = brief.sha256, None
        with _failing(brief.folder, stage, "open"):
            _kept.opened = _open(brief)
    _commit(stage, brief, task, _kept.opened)


def _commit(stage: str, brief: Brief, task: Task, opened: _Opened | None) -> bool:
    """Does a task, if what the tasks share could be opened; whether it is done."""
    if opened is not None:
        with _failing(brief.folder, stage, task.name):
            _run(task, opened.job, opened.shared)
            return True
    return False


def _run(task: Task, job: Job, shared: Any) -> None:
    """Does it and writes its record."""
    progress = _Progress(job, task.name)
    progress.tell(Work())
    meter = Meter(progress)
    start = time.monotonic()
    result = job.run(shared, task.item, meter)
    record = Record(
        name=task.name,
        depends=task.depends,
        files=job.files(result),
        result=to_json(result),
        seconds=round(time.monotonic() - start, 3),
        work=meter.work,
        stamp=task.reads.stamp if task.reads else "",
        host=socket.gethostname(),
    )
    progress.tell(meter.work)
    StageRecords(job.folder, job.stage).commit(record)


@contextmanager
def _failing(folder: Folder, stage: str, name: str) -> Iterator[None]:
    """Keeps what goes wrong for the driver: not every runner hands it over.

    Raises:
        ExecutionError: Trying again may help; runners do. What would fail again ends the block alone.
    """
    try:
        yield
    except ExecutionError as error:
        _record_failure(folder, stage, name, error)
        raise
    except RetroDBError as error:
        _record_failure(folder, stage, name, error)
    except (OSError, MemoryError) as error:
        failure = of_environment(error)
        _record_failure(folder, stage, name, failure)
        raise failure from error


@dataclass
class _Opened:
    """Lets any value be shared: Shared keeps weak references, which some types do not allow."""

    job: Job
    shared: Any


def _open(brief: Brief) -> _Opened:
    [job] = brief.read()
    return _Opened(job, job.open())


@dataclass
class _Kept:
    """What a process shares among the tasks of a stage."""

    brief: str = ""
    opened: _Opened | None = None


_kept = _Kept()


class _Progress:
    """Tells others of a task's work: the runner by its own metrics, and on local folders the driver."""

    def __init__(self, job: Job, name: str) -> None:
        folder = progress_folder(job.folder, job.stage) if job.folder.is_local else None
        self._path = Path(folder, name) if folder else None
        self._stage = job.stage
        self._told = Work()
        self._last = time.monotonic()

    def __call__(self, work: Work) -> None:
        """Tells, if the last time is long enough ago."""
        if time.monotonic() - self._last >= _REPORT_SECONDS:
            self.tell(work)

    def tell(self, work: Work) -> None:
        """Tells the sum so far."""
        self._last = time.monotonic()
        self._count("done", work.done - self._told.done)
        for name, count in work.counts.items():
            self._count(name, count - self._told.counts.get(name, 0))
        for name, seconds in work.seconds.items():
            # Counters are whole numbers.
            told = self._told.seconds.get(name, 0.0)
            self._count(f"{name}_milliseconds", round(1000 * seconds) - round(1000 * told))
        self._told = work
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(canonical(to_json(work)))
            temporary.replace(self._path)

    def _count(self, name: str, more: int) -> None:
        beam.metrics.Metrics.counter(self._stage, name).inc(more)


def progress_folder(folder: Folder, stage: str) -> str:
    """Where the tasks of a stage count."""
    return folder.locate(f"state/progress/{stage}")


def read_progress(folder: Folder, stage: str) -> Work:
    """The work of all tasks of a stage so far."""
    path = Path(progress_folder(folder, stage))
    found = [file for file in path.glob("*") if file.suffix != ".tmp"]
    return sum((from_json(Work, json.loads(file.read_bytes())) for file in found), Work())


def _record_failure(folder: Folder, stage: str, name: str, error: RetroDBError) -> None:
    """Keeps an error's class and message for the driver: not every runner hands them over."""
    log.error("%s %s: %s", stage, name, error)
    failure = {"class": type(error).__name__, "message": redacted(str(error))}
    try:
        folder.write(f"{FAILURES}/{stage}-{name}.json", json.dumps(failure).encode())
    except (OSError, OwnershipLostError):
        # A full disk does not take this either; the runner still has the error itself.
        log.exception("%s %s: the failure could not be recorded", stage, name)


def read_failures(folder: Folder) -> Sequence[RetroDBError]:
    """Every failure since the last `folder.remove(FAILURES)`."""
    failures = [json.loads(folder.read(f"{FAILURES}/{name}")) for name in folder.list(FAILURES)]
    return [error_named(failure["class"], failure["message"]) for failure in failures]
