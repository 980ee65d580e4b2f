"""What the stages of a build took: stored beside the database, since it differs from run to run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from retro_db.meter import Work
from retro_db.search.tuning import Speed
from retro_db.store.entries import read_bounded
from retro_db.store.folder import Folder
from retro_db.store.serialize import DecodeError, from_json, parse_json

STAGE_REPORT = "report/stages.json"
_INTERVALS = 60


@dataclass(frozen=True)
class Pace:
    """The work of a stage over time, in equal intervals from its first task to the end of its last.

    Attributes:
        started: When its first task began, in seconds since 1970.
        seconds: Length of all intervals together.
        done: Units done in each interval; the work of a task counts as spread evenly over its time.
    """

    started: float
    seconds: float
    done: list[float]


@dataclass(frozen=True)
class StageWork:
    """What one stage took, over all its tasks.

    Attributes:
        seconds: Seconds of the tasks, added up; side by side they take less.
        unit: Unit of `work.done`, such as chunks.
        work: Work that was done.
        pace: The work over time; None if a task's time is not known.
    """

    seconds: float
    unit: str
    work: Work
    pace: Pace | None = None


@dataclass(frozen=True)
class StageReport:
    """The content of `report/stages.json`.

    Attributes:
        generation: Generation of the database that the stages made.
        stages: Work of the stages by name, in the order in which they ran.
        scale: Documents of the whole corpus for each document built; above 1 in a smoke build.
        speeds: Speeds of the search settings that were tried, on the machine that tuned them.
    """

    generation: int
    stages: dict[str, StageWork]
    scale: float = 1.0
    speeds: list[Speed] = field(default_factory=list)


def pace_of(tasks: Collection[tuple[float, float, int]]) -> Pace | None:
    """Adds up the work of a stage's tasks over time.

    Args:
        tasks: For each task when it ended, in seconds since 1970, its seconds, and the units that it did.

    Returns:
        The pace; None if it is not known of every task when it ended, or if they took no time.
    """
    if not tasks:
        return None
    ended, seconds, done = np.array(tasks, np.float64).T
    started = float((ended - seconds).min())
    length = float(ended.max()) - started
    if not ended.all() or not length:
        return None
    edges = np.linspace(0, length, _INTERVALS + 1)
    until = np.zeros(_INTERVALS + 1)  # units done until each edge
    for last, took, units in zip(ended - started, seconds, done, strict=True):
        passed = (edges - last + took) / took if took else edges >= last
        until += units * np.clip(passed, 0, 1)
    until[0], until[-1] = 0, done.sum()
    return Pace(round(started, 3), round(length, 3), np.diff(until).round(3).tolist())


def read_stages(folder: Folder) -> StageReport | None:
    """Reads what the last build, append or compaction took; None if another release wrote it."""
    try:
        recorded = read_bounded(folder, STAGE_REPORT)
        return None if recorded is None else from_json(StageReport, parse_json(recorded))
    except DecodeError:
        return None
