"""Runs tasks on workers: each commits its files by a completion record, last of all."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from retro_db.meter import Meter, Work
from retro_db.store.ownership import end_with_driver
from retro_db.store.records import Record, StageRecords
from retro_db.store.serialize import to_json

from . import worker_processes
from .beam import Shared, beam
from .briefs import Brief
from .failure_records import recorded_failures
from .jobs import Job, Placement, Task
from .task_progress import TaskProgress


@dataclass
class RunTasks(beam.PTransform):
    """Runs a job over tasks, each of which commits its own output.

    Args:
        stage: Name of the stage.
        job: Brief that holds the job alone.
        placement: Where the tasks run.
        processes: Processes of this machine that share the tasks; 0 if Beam's workers do them.
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
            do = CommitTask(self.stage, self.job)
        run = beam.ParDo(do).with_output_types(str)
        hints = self.placement.hints
        return (
            tasks
            | "Spread" >> self.placement.spread
            | "Run" >> (run.with_resource_hints(**hints) if hints else run)
        )


class CommitTask(beam.DoFn):
    """Runs one task and writes its completion record last."""

    def __init__(self, stage: str, job: Brief) -> None:
        self._stage = stage
        self._brief = job
        self._shared = Shared()
        self._opened: _Opened | None = None

    def setup(self) -> None:
        """Opens what the tasks share, once per process."""
        end_with_driver(self._brief.folder.fence)
        with recorded_failures(self._brief.folder, self._stage, "open"):
            self._opened = self._shared.acquire(lambda: _open(self._brief))

    def process(self, task: Task) -> list[str]:
        """Returns the task's name; nothing if it failed in a way that trying again will not mend."""
        return [task.name] if _commit(self._stage, self._brief, task, self._opened) else []


class HandToProcesses(beam.DoFn):
    """Has the tasks of a bundle done by the processes of this machine, whichever is free."""

    def __init__(self, stage: str, job: Brief, processes: int) -> None:
        self._stage = stage
        self._brief = job
        self._processes = processes
        self._handed: list[Future[None]] = []

    def process(self, task: Task) -> Iterator[str]:
        """Hands the task to whichever process is free next."""
        arguments = (self._stage, self._brief, task)
        self._handed.append(
            worker_processes.submit(self._processes, _commit_in_process, *arguments)
        )
        yield task.name

    def finish_bundle(self) -> None:
        """Waits until the tasks of the bundle are done."""
        handed, self._handed = self._handed, []
        worker_processes.wait_for(handed)


def _commit_in_process(stage: str, brief: Brief, task: Task) -> None:
    """Runs a task in a worker process, which keeps what the stage shares until the next stage."""
    if _kept.brief != brief.key:
        _kept.brief, _kept.opened = brief.key, None
        with recorded_failures(brief.folder, stage, "open"):
            _kept.opened = _open(brief)
    _commit(stage, brief, task, _kept.opened)


def _commit(stage: str, brief: Brief, task: Task, opened: _Opened | None) -> bool:
    """Does a task if what the tasks share could be opened; returns whether it is done."""
    if opened is not None:
        with recorded_failures(brief.folder, stage, task.name):
            _run(task, opened.job, opened.shared)
            return True
    return False


def _run(task: Task, job: Job, shared: Any) -> None:
    """Does a task and writes its completion record."""
    progress = TaskProgress(job, task.name)
    progress.publish(Work())
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
        ended=round(time.time(), 3),
    )
    progress.publish(meter.work)
    StageRecords(job.folder, job.name).commit(record)
    job.done(task.item)


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

    brief: bytes = b""
    opened: _Opened | None = None


_kept = _Kept()
