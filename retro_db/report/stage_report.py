"""What the stages of a build took: kept beside the database, as it differs from run to run."""

from __future__ import annotations

from dataclasses import dataclass, field

from retro_db.meter import Work
from retro_db.search.tuning import Speed

STAGES = "report/stages.json"


@dataclass(frozen=True)
class StageWork:
    """What one stage took, over all its tasks.

    Attributes:
        seconds: Of the tasks, added up; side by side they take less.
        unit: What `work.done` counts, such as chunks.
        work: What was done.
    """

    seconds: float
    unit: str
    work: Work


@dataclass(frozen=True)
class StageReport:
    """What `report/stages.json` holds.

    Attributes:
        generation: Of the database that the stages made.
        stages: By name, in the order in which they ran.
        scale: Documents of the whole corpus for each document built; above 1 in a smoke build.
        speeds: What the ways of searching that were tried took, on the machine that tuned them.
    """

    generation: int
    stages: dict[str, StageWork]
    scale: float = 1.0
    speeds: list[Speed] = field(default_factory=list)
