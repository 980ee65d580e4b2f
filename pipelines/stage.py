"""What the stages of one build share, and how a stage skips what is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from retro_db import manifest
from retro_db.config import Config
from retro_db.corpus.planning import Shard
from retro_db.errors import ExecutionError, InputError
from retro_db.meter import Work
from retro_db.serialize import from_json
from retro_db.store.folder import Folder
from retro_db.store.records import Record, StageRecords

from .console import Console, details
from .engine import Engine
from .shards import Job, Placement, Task, read_progress

Result = TypeVar("Result")
# Modules that run several stages.
_MODULES = {
    **dict.fromkeys(("evaluation", "screen", "pairs", "resolve"), "screen"),
    "probe": "embed",
    **dict.fromkeys(("train", "encode", "assemble", "sample", "truth", "tune"), "index"),
}


@dataclass
class Build:
    """One build on its way.

    Attributes:
        config: What is wanted.
        folder: Where the tables go: the database, or a folder in it for a query corpus.
        home: The database.
        engine: What executes.
        console: What people see.
        shards: The plan.
        smoke: In a sample build, about how many documents the whole corpus has; index keys are
            then reduced to what the sample can train.
        only: The one module whose stages may run; None for all.
        queries: Of a query corpus, its place in the configuration; None for the corpus itself.
        seconds: What every stage took, by name, over all tasks.
        work: What every stage counted.
    """

    config: Config
    folder: Folder
    home: Folder
    engine: Engine
    console: Console
    shards: list[Shard]
    smoke: int | None = None
    only: str | None = None
    queries: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)

    @property
    def config_field(self) -> str:
        """What the configuration calls what is built, for messages."""
        return "corpus" if self.queries is None else f"queries.{self.queries}"

    @property
    def source_fields(self) -> list[str]:
        """What it calls each source."""
        if self.queries is not None:
            return [self.config_field]
        return [f"corpus.{position}" for position in range(len(self.config.corpus))]


def run_stage(
    build: Build,
    job: Job,
    tasks: Sequence[Task],
    result: type[Result],
    unit: str,
    total: int,
    placement: Placement | None = None,
) -> list[Result]:
    """Runs the tasks of a stage that are not done yet.

    Args:
        build: The build.
        job: What to do.
        tasks: All of the stage's, in order.
        result: The dataclass that the job returns.
        unit: What progress counts.
        total: Units in all tasks.
        placement: Where the tasks run, if that matters.

    Returns:
        The results of all tasks, in order.

    Raises:
        InputError: Another stage was asked for, and this one has work left.
        ExecutionError: The engine ended well and a task has no record all the same.
    """
    records = StageRecords(build.folder, job.stage)
    found = records.load()
    kept = {task.name: found[task.name] for task in tasks if _holds(build.folder, task, found)}
    todo = [task for task in tasks if task.name not in kept]
    if todo:
        module = _MODULES.get(job.stage, job.stage)
        if build.only not in (None, module):
            raise InputError(
                f"{build.config.output}: {len(todo)} of {len(tasks)} shards of the stage {job.stage} "
                f"are not done; run python -m retro_db_pipelines.{module} first"
            )
        # No reader may trust the folder, and no record may vouch for what is about to be replaced.
        build.home.remove(manifest.FILE)
        records.replace(list(kept.values()))
        build.folder.remove(f"state/progress/{job.stage}")
        with build.console.stage(
            job.stage, unit, total, lambda: read_progress(build.folder, job.stage)
        ) as remark:
            build.engine.run(job, todo, placement or Placement())
            done = f"{len(todo)} of {len(tasks)} shards, " if len(tasks) > 1 else ""
            kept = records.load()
            work = sum((kept[task.name].work for task in todo if task.name in kept), Work())
            remark(f"{done}{total:,} {unit}{details(work)}")
        if missing := [task.name for task in tasks if task.name not in kept]:
            raise ExecutionError(
                f"{job.stage}: {missing[0]} was not committed; run the same command again"
            )
    ordered = [kept[task.name] for task in tasks]
    records.replace(ordered)
    build.seconds[job.stage] = sum(record.seconds for record in ordered)
    build.work[job.stage] = sum((record.work for record in ordered), Work())
    return [from_json(result, record.result, f"{job.stage}/{record.name}") for record in ordered]


def _holds(folder: Folder, task: Task, found: dict[str, Record]) -> bool:
    """Whether a record vouches for the task as it is now, and its files are there."""
    record = found.get(task.name)
    if record is None or record.fingerprint != task.fingerprint:
        return False
    return all(folder.size(file.path) == file.bytes for file in record.files)


def sole(results: Sequence[Result]) -> Result:
    """The result of a stage with one task."""
    [result] = results
    return result
