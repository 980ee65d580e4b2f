"""What the stages of one build share, and how a stage skips what is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from retro_db.config import Config
from retro_db.corpus.planning import Shard
from retro_db.errors import ExecutionError, InputError
from retro_db.manifest.files import FILE
from retro_db.meter import Work
from retro_db.report.stage_report import StageWork
from retro_db.store.folder import Folder
from retro_db.store.records import Record, StageRecords
from retro_db.store.serialize import from_json

from .console import Console, details
from .inputs import InputsJob, ReadContent
from .jobs import Job, Placement, Task, fingerprint
from .progress import read_progress
from .runner import Engine

Result = TypeVar("Result")
# Modules that run several stages.
_MODULES = {
    **dict.fromkeys(("evaluation", "screen", "pairs", "resolve"), "screen"),
    "probe": "embed",
    **dict.fromkeys(("train", "encode", "assemble", "sample", "truth", "tune"), "index"),
}


class NothingYetError(Exception):
    """A dry run cannot go on: what follows depends on results that are not there."""


@dataclass(frozen=True)
class Standing:
    """How far a stage is.

    Attributes:
        kept: Records that still hold, by task.
        reasons: Why the other tasks are to be done.
        doubtful: Tasks among the kept whose input is still to be compared, in a dry run.
    """

    kept: dict[str, Record]
    reasons: dict[str, str]
    doubtful: int


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
        stages: What every stage took, by name.
        dry_run: Nothing is done or written; what would be is told.
        pending: In a dry run, the stages that have work left.
        adds: Whether what is built is added to the database as it is, which stays open meanwhile.
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
    stages: dict[str, StageWork] = field(default_factory=dict)
    dry_run: bool = False
    pending: list[str] = field(default_factory=list)
    adds: bool = False

    @property
    def place(self) -> str:
        """Where `folder` lies in the database; empty where it is the database."""
        return self.folder.url.removeprefix(self.home.url.rstrip("/")).strip("/")

    def tell(self, stage: str, tasks: int, standing: Standing) -> None:
        """Says how many shards of a stage are done, and why the others are not."""
        told = [f"{len(standing.kept):,} of {tasks:,} shards done"]
        reasons = Counter(standing.reasons.values())
        told += [f"{count:,} {reason}" for reason, count in reasons.most_common()]
        if standing.doubtful:
            told.append(
                f"{standing.doubtful:,} with files of another place or time: read again to compare"
            )
        self.console.say(f"{stage:<10} {'; '.join(told)}")
        if standing.reasons:
            self.pending.append(stage)

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
    """Runs the tasks of a stage that are not done yet; in a dry run, tells which those are.

    Args:
        build: The build.
        job: What to do.
        tasks: All of the stage's, in order.
        result: The dataclass that the job returns.
        unit: What progress counts.
        total: Units in all tasks.
        placement: Where the tasks run, if that matters.

    Returns:
        The results of all tasks, in order; in a dry run, of those that are done.

    Raises:
        InputError: Another stage was asked for, and this one has work left.
        ExecutionError: The engine ended well and a task has no record all the same.
    """
    records = StageRecords(build.folder, job.stage)
    standing = _stand(build, job.stage, tasks, records.load())
    kept = standing.kept
    todo = [task for task in tasks if task.name not in kept]
    if build.dry_run:
        build.tell(job.stage, len(tasks), standing)
        return [_result(result, job.stage, kept[task.name]) for task in tasks if task.name in kept]
    if todo:
        module = _MODULES.get(job.stage, job.stage)
        if build.only not in (None, module):
            raise InputError(
                f"{build.config.output}: {len(todo)} of {len(tasks)} shards of the stage {job.stage} "
                f"are not done; run python -m retro_db_pipelines.{module} first"
            )
        # No reader may trust the folder, and no record may vouch for what is about to be replaced.
        if not build.adds:
            build.home.remove(FILE)
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
    build.stages[job.stage] = StageWork(
        sum(record.seconds for record in ordered),
        unit,
        sum((record.work for record in ordered), Work()),
    )
    return [_result(result, job.stage, record) for record in ordered]


def _result(kind: type[Result], stage: str, record: Record) -> Result:
    return from_json(kind, record.result, f"{stage}/{record.name}")


def _stand(
    build: Build, stage: str, tasks: Sequence[Task], found: Mapping[str, Record]
) -> Standing:
    """Which tasks are done, by their records, their files and what they read."""
    kept: dict[str, Record] = {}
    reasons: dict[str, str] = {}
    doubtful: list[Task] = []
    missing = build.folder.missing(file for record in found.values() for file in record.files)
    for task in tasks:
        record = found.get(task.name)
        if reason := _reason(task, record, missing):
            reasons[task.name] = reason
            continue
        assert record is not None  # noqa: S101 - without one there is a reason
        kept[task.name] = record
        if task.reads is not None and task.reads.stamp != record.stamp:
            doubtful.append(task)
    if build.dry_run:
        return Standing(kept, reasons, len(doubtful))
    for task, content in zip(doubtful, _read_again(build, doubtful), strict=True):
        if kept[task.name].result.get("content") == content:
            kept[task.name] = replace(kept[task.name], stamp=task.reads.stamp)  # type: ignore[union-attr]
        else:
            del kept[task.name]
            reasons[task.name] = "changed: content of the input"
    return Standing(kept, reasons, 0)


def _reason(task: Task, record: Record | None, missing: set[str]) -> str | None:
    """Why a task is not done; None where it is, as far as can be told without reading."""
    if record is None:
        return "not done yet"
    names = {*task.depends, *record.depends}
    if changed := sorted(n for n in names if task.depends.get(n) != record.depends.get(n)):
        return f"changed: {', '.join(changed)}"
    if any(file.path in missing for file in record.files):
        return "a file is missing or resized"
    return None


def _read_again(build: Build, doubtful: Sequence[Task]) -> list[str]:
    """The content of what tasks read, whose files moved or have another time of change."""
    shards = [task.reads for task in doubtful if task.reads is not None]
    if not shards:
        return []
    tasks = [
        Task(task.name, fingerprint(1, {"input": [shard.identity, shard.stamp]}), shard)
        for task, shard in zip(doubtful, shards, strict=True)
    ]
    size = sum(shard.bytes for shard in shards)
    # Whatever stage was asked for: it is this one's question. The database stays until the answer.
    anyone = replace(build, only=None, adds=True)
    job = InputsJob(build.config, build.folder)
    return [read.content for read in run_stage(anyone, job, tasks, ReadContent, "bytes", size)]


def sole(results: Sequence[Result]) -> Result:
    """The result of a stage with one task.

    Raises:
        NothingYetError: It is not there, in a dry run.
    """
    if not results:
        raise NothingYetError
    [result] = results
    return result
