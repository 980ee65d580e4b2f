"""What the stages of a build took: stored beside the database, since it differs from run to run."""

from __future__ import annotations

from dataclasses import dataclass, field

from retro_db.meter import Work
from retro_db.search.tuning import Speed
from retro_db.store.entries import read_bounded
from retro_db.store.folder import Folder
from retro_db.store.serialize import DecodeError, from_json, parse_json

STAGE_REPORT = "report/stages.json"


@dataclass(frozen=True)
class StageWork:
    """What one stage took, over all its tasks.

    Attributes:
        seconds: Seconds of the tasks, added up; side by side they take less.
        unit: Unit of `work.done`, such as chunks.
        work: Work that was done.
    """

    seconds: float
    unit: str
    work: Work


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


def read_stages(folder: Folder) -> StageReport | None:
    """Reads what the last build, append or compaction took; None if another release wrote it."""
    try:
        recorded = read_bounded(folder, STAGE_REPORT)
        return None if recorded is None else from_json(StageReport, parse_json(recorded))
    except DecodeError:
        return None
