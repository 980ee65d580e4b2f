"""What a build does about the tasks of a stage that are not done: runs them, refuses to, or says so."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from retro_db.config import Config
from retro_db.corpus.planning import Shard
from retro_db.errors import ExecutionError, InputError
from retro_db.manifest.files import FILE
from retro_db.manifest.model import query_path
from retro_db.meter import Work
from retro_db.report.stage_report import StageWork
from retro_db.store.folder import Folder
from retro_db.store.records import Record, StageRecords

from .console import Console, details
from .inputs import InputsJob, ReadContent
from .jobs import Result, Stage, Task, fingerprint
from .progress import read_progress
from .resume import Standing, results_of, standing
from .runner import Engine


class NothingYetError(Exception):
    """A dry run cannot go on: what follows depends on results that do not exist yet."""


class Action(Protocol):
    """What is done about a stage of which some tasks may be left."""

    def complete(self, build: Build, state: Standing[Result]) -> list[Result]:
        """Returns the results of all tasks of the stage, in order."""

    def report(self, folder: Folder, path: str, data: bytes) -> None:
        """Keeps what people may want to read of a stage; a file is removed if there is nothing to say."""


@dataclass
class Build:
    """What the stages of one build share.

    Attributes:
        config: Configuration.
        folder: Folder of the tables: the database, or a folder in it for a query corpus.
        home: The database.
        engine: What executes tasks.
        console: What people see.
        shards: Shards of the corpus.
        action: What is done about tasks that are left.
        documents: In a sample build, documents of the whole corpus, about; None in any other. Index keys
            are reduced to what the sample can train.
        query: Name of the query corpus; empty for the corpus itself.
        config_field: Name of what is built in the configuration, for messages.
        stages: What every stage took, by name.
    """

    config: Config
    folder: Folder
    home: Folder
    engine: Engine
    console: Console
    shards: list[Shard]
    action: Action
    documents: int | None = None
    query: str = ""
    config_field: str = "corpus"
    stages: dict[str, StageWork] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Path of `folder` in the database; empty if it is the database."""
        return self.folder.url.removeprefix(self.home.url.rstrip("/")).strip("/")

    @property
    def source_fields(self) -> list[str]:
        """Name of each source in the configuration."""
        if self.query:
            return [self.config_field]
        return [f"corpus.{position}" for position in range(len(self.config.corpus))]

    @property
    def label(self) -> str:
        """What the lines of a query corpus begin with; empty for the corpus itself."""
        return f"{self.query}: " if self.query else ""

    def of_queries(self, name: str) -> Build:
        """A build of a query corpus, which shares the tokenizer, the encoder and the index.

        Args:
            name: Name of the query corpus.
        """
        folder = self.folder.below(query_path(name))
        return replace(self, folder=folder, query=name, stages={})

    def run(self, stage: Stage[Result]) -> list[Result]:
        """Has the tasks of a stage done that are not, as the build's action goes about it.

        Returns:
            The results of all tasks, in order.
        """
        return self.action.complete(self, standing(self.folder, stage))


class Running:
    """Runs the tasks that are left.

    Raises:
        ExecutionError: The engine ended well, yet a task has no record.
    """

    def complete(self, build: Build, state: Standing[Result]) -> list[Result]:
        """Runs what is left, keeps the records of the stage in one file, and notes what it took."""
        state = _compared(build, state)
        stage, kept = state.stage, state.kept
        if not state.is_complete:
            self.begin(build, state)
            kept = _run(build, state)
        records = [kept[task.name] for task in stage.tasks]
        StageRecords(build.folder, stage.name).replace(records)
        seconds = sum(record.seconds for record in records)
        work = sum((record.work for record in records), Work())
        build.stages[stage.name] = StageWork(seconds, stage.unit, work)
        return results_of(stage, records)

    def report(self, folder: Folder, path: str, data: bytes) -> None:
        """Writes the file, or removes an earlier one."""
        if data:
            folder.write(path, data)
        else:
            folder.remove(path)

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
            InputError: An earlier stage has tasks left.
        """
        job = state.stage.job
        name = job.part_of or job.stage
        if name not in self.names:
            raise InputError(
                f"{build.config.output}: {len(state.pending):,} of {len(state.stage.tasks):,} tasks of "
                f"the stage {job.stage} are not done; run retro-db stage {name} with the same "
                "configuration first"
            )
        super().begin(build, state)


@dataclass
class Telling:
    """Says how far every stage is, and writes nothing.

    Attributes:
        pending: Stages with tasks left, by name.
    """

    pending: list[str] = field(default_factory=list)

    def complete(self, build: Build, state: Standing[Result]) -> list[Result]:
        """Says how many tasks are done, and why the others are not.

        Raises:
            NothingYetError: Some are not, so that what follows is unknown.
        """
        name = state.stage.name
        build.console.say(f"{name:<10} {build.label}{state.describe()}")
        if not state.is_complete:
            self.pending.append(f"{name} of {build.query}" if build.query else name)
            raise NothingYetError
        return state.results

    def report(self, folder: Folder, path: str, data: bytes) -> None:
        """Writes nothing."""


def _run(build: Build, state: Standing[Result]) -> dict[str, Record]:
    """Runs the pending tasks; returns the records of all tasks."""
    stage, pending = state.stage, state.pending
    records = StageRecords(build.folder, stage.name)
    # No record may vouch for a file that is about to be replaced.
    records.replace(list(state.kept.values()))
    build.folder.remove(f"state/progress/{stage.name}")
    with build.console.stage(
        stage.name, stage.unit, stage.total, lambda: read_progress(build.folder, stage.name)
    ) as remark:
        build.engine.run(stage.job, pending, stage.placement)
        kept = records.load()
        work = sum((kept[task.name].work for task in pending if task.name in kept), Work())
        count = len(stage.tasks)
        tasks = f"{len(pending):,} of {count:,} tasks, " if count > 1 else ""
        remark(f"{build.label}{tasks}{stage.total:,} {stage.unit}{details(work)}")
    if missing := [task.name for task in stage.tasks if task.name not in kept]:
        raise ExecutionError(
            f"{stage.name}: {missing[0]} was not committed; run the same command again"
        )
    return kept


def _compared(build: Build, state: Standing[Result]) -> Standing[Result]:
    """The same standing once the doubtful inputs are read: tasks whose input changed are pending."""
    kept, reasons = dict(state.kept), dict(state.reasons)
    for task, content in zip(state.doubtful, _read_again(build, state.doubtful), strict=True):
        assert task.reads is not None  # noqa: S101 - else it would not be doubtful
        if kept[task.name].result.get("content") == content:
            kept[task.name] = replace(kept[task.name], stamp=task.reads.stamp)
        else:
            del kept[task.name]
            reasons[task.name] = "changed: content of the input"
    return Standing(state.stage, kept, reasons, [])


def _read_again(build: Build, doubtful: Sequence[Task]) -> list[str]:
    """Hashes of the content that tasks would read now."""
    shards = [task.reads for task in doubtful if task.reads is not None]
    if not shards:
        return []
    tasks = [
        Task(task.name, fingerprint(1, {"input": [shard.identity, shard.stamp]}), shard)
        for task, shard in zip(doubtful, shards, strict=True)
    ]
    job = InputsJob(build.folder, build.config)
    size = sum(shard.bytes for shard in shards)
    # Whichever stage asks, the database stays open until the answer.
    asking = replace(build, action=Adding())
    return [read.content for read in asking.run(Stage(job, tasks, ReadContent, "bytes", size))]
