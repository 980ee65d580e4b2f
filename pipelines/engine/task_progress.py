"""Work that tasks have done so far, for the runner and for the driver."""

from __future__ import annotations

import json
import time
from pathlib import Path

from retro_db.meter import Work
from retro_db.store.folder import Folder
from retro_db.store.serialize import canonical, from_json, to_json

from .beam import beam
from .jobs import Job

_REPORT_SECONDS = 0.5


class TaskProgress:
    """Publishes a task's work: to the runner as its own metrics, and on local folders to the driver."""

    def __init__(self, job: Job, name: str) -> None:
        folder = progress_folder(job.folder, job.name) if job.folder.is_local else None
        self._path = Path(folder, name) if folder else None
        self._stage = job.name
        self._published = Work()
        self._last = time.monotonic()

    def __call__(self, work: Work) -> None:
        """Publishes the sum so far, unless it did so a moment ago."""
        if time.monotonic() - self._last >= _REPORT_SECONDS:
            self.publish(work)

    def publish(self, work: Work) -> None:
        """Publishes the sum so far."""
        self._last = time.monotonic()
        self._count("done", work.done - self._published.done)
        for name, count in work.counts.items():
            self._count(name, count - self._published.counts.get(name, 0))
        for name, seconds in work.seconds.items():
            # Counters are whole numbers.
            before = self._published.seconds.get(name, 0.0)
            self._count(f"{name}_milliseconds", round(1000 * seconds) - round(1000 * before))
        self._published = work
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(canonical(to_json(work)))
            temporary.replace(self._path)

    def _count(self, name: str, more: int) -> None:
        beam.metrics.Metrics.counter(self._stage, name).inc(more)


def progress_folder(folder: Folder, stage: str) -> str:
    """Local folder of the files in which the tasks of a stage count."""
    return folder.locate(f"state/progress/{stage}")


def read_progress(folder: Folder, stage: str) -> Work:
    """The work of all tasks of a stage so far."""
    path = Path(progress_folder(folder, stage))
    files = [file for file in path.glob("*") if file.suffix != ".tmp"]
    return sum((from_json(Work, json.loads(file.read_bytes())) for file in files), Work())
