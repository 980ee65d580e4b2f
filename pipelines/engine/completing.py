"""What a build does about tasks that are not done: it runs them, or refuses to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from retro_db.corpus.sharding import Shard
from retro_db.errors import ExecutionError
from retro_db.manifest.sealing import FILE
from retro_db.meter import Work
from retro_db.report.stage_report import StageWork, pace_of
from retro_db.store.folder import Folder
from retro_db.store.records import Record, StageRecords

from .console import details
from .context import Build, IncompleteError
from .inputs import InputsJob, ReadContent
from .jobs import Result, Stage, Task, fingerprint
from .resume import Standing, results_of
from .standing_work import accounted
from .task_progress import read_progress


class Running:
    """Runs the tasks that are left."""

    def complete(self, build: Build, state: Standing[Result]) -> list[Result]:
        """Runs what is left, keeps the records of the stage in one file, and notes what it took.

        Raises:
            ExecutionError: The engine ended well, yet a task has no record.
        """
        state = _compared(build, state)
        stage, kept = state.stage, state.kept
        if not state.is_complete:
            self.begin(build, state)
            kept = _run(build, state)
        records = [kept[task.name] for task in stage.tasks]
        StageRecords(build.folder, stage.name).keep_only(records)
        seconds = sum(record.seconds for record in records)
        work = sum((record.work for record in records), Work())
        spans = [(record.ended, record.seconds, record.work.done) for record in records]
        build.stages[stage.name] = StageWork(seconds, stage.unit, work, pace_of(spans))
        return results_of(stage, records)

    def foresee(self, build: Build, state: Standing[Result]) -> None:
        """Goes on: the stages that prepare it run first."""

    def report(self, folder: Folder, path: str, data: bytes) -> None:
        """Writes the file, or removes an earlier one."""
        if data:
            folder.write(path, data)
        else:
            folder.remove(path)

    def discard(self, folder: Folder, path: str) -> None:
        """Removes it."""
        folder.remove(path)

    def forget(self, folder: Folder, stage: str, task: str) -> None:
        """Removes the record."""
        records = StageRecords(folder, stage)
        records.keep_only([record for name, record in records.load().items() if name != task])

    def begin(self, build: Build, state: Standing[Result]) -> None:
        """Takes the manifest away: no reader may trust a folder whose files are about to change."""
        build.home.remove(FILE)


class Adding(Running):
    """Runs the tasks that are left, and leaves the database open: its own files do not change."""

    def begin(self, build: Build, state: Standing[Result]) -> None:
        """Leaves the manifest in place."""


@dataclass
class RunningAlone(Running):
    """Runs some stages alone: the others must be complete.

    Args:
        names: Stages that may run.
    """

    names: Collection[str]

    def begin(self, build: Build, state: Standing[Result]) -> None:
        """Refuses a stage that was not asked for.

        Raises:
            IncompleteError: It has tasks left.
        """
        job = state.stage.job
        name = job.part_of or job.stage
        if name not in self.names:
            raise IncompleteError(
                f"{build.config.output}: {build.label}{len(state.pending):,} of "
                f"{len(state.stage.tasks):,} tasks of the stage {job.name} are not done; run "
                f"retro-db stage {name} with the same configuration first"
            )
        super().begin(build, state)


def _run(build: Build, state: Standing[Result]) -> dict[str, Record]:
    """Runs the pending tasks; returns the records of all tasks."""
    stage, pending = state.stage, state.pending
    records, count = StageRecords(build.folder, stage.name), len(stage.tasks)
    # No record may vouch for a file that is about to be replaced.
    records.keep_only(list(state.kept.values()))
    build.folder.remove(f"state/progress/{stage.name}")
    with build.console.stage(
        stage.name,
        stage.unit,
        stage.total,
        lambda: read_progress(build.folder, stage.name),
        label=build.label,
    ) as remark:
        with accounted(
            lambda: f"{build.label}{len(records.load()):,} of {count:,} {stage.name} tasks"
        ):
            build.engine.run(stage.job, pending, stage.placement)
        kept = records.load()
        work = sum((kept[task.name].work for task in pending if task.name in kept), Work())
        tasks = f"{len(pending):,} of {count:,} tasks, " if count > 1 else ""
        remark(f"{tasks}{stage.total:,} {stage.unit}{details(work)}")
    if missing := [task.name for task in stage.tasks if task.name not in kept]:
        raise ExecutionError(
            f"{stage.name}: {build.label}{missing[0]} was not committed; run the same command again"
        )
    return kept


def _compared(build: Build, state: Standing[Result]) -> Standing[Result]:
    """The same standing once the doubtful inputs are read: tasks whose input changed are pending."""
    kept, reasons = dict(state.kept), dict(state.reasons)
    shards = [task.reads for task in state.doubtful if task.reads is not None]
    for task, shard, content in zip(state.doubtful, shards, read_again(build, shards), strict=True):
        if kept[task.name].result.get("content") == content:
            kept[task.name] = replace(kept[task.name], stamp=shard.stamp)
        else:
            del kept[task.name]
            reasons[task.name] = "changed: content of the input"
    return Standing(state.stage, kept, reasons, [])


def read_again(build: Build, shards: Sequence[Shard]) -> list[str]:
    """Hashes of the content that shards have now.

    Args:
        build: The build; its database stays open meanwhile.
        shards: Shards of its corpus.
    """
    if not shards:
        return []
    tasks = [
        Task(
            shard.task_name,
            fingerprint(1, {"input": [shard.identity, shard.stamp, touched]}),
            shard,
        )
        for shard in shards
        for touched in [[piece.file.touched_now for piece in shard.pieces]]
    ]
    job = InputsJob(build.folder, build.config)
    size = sum(shard.bytes for shard in shards)
    # Whichever stage asks, the database stays open until the answer.
    asking = replace(build, action=Adding())
    return [read.content for read in asking.run(Stage(job, tasks, ReadContent, "bytes", size))]
