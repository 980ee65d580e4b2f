"""Jobs and their tasks: what a stage does, to what, and where."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar, Generic, TypeVar

from retro_db.corpus.sharding import Shard
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.records import mark_of

from .beam import beam

Item = TypeVar("Item")
Result = TypeVar("Result")
# What the system, the runner's processes and our libraries take.
_MACHINE_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Task(Generic[Item]):
    """One unit of work of a stage, of retry and of resume.

    Attributes:
        name: Name of the task, and of its completion record.
        depends: Hash of each thing that its output depends on, by name.
        item: Descriptor that the job gets.
        reads: Shard of the corpus that it reads, if any; the content decides whether the task is done.
    """

    name: str
    depends: dict[str, str]
    item: Item
    reads: Shard | None = None


@dataclass
class Deal(beam.PTransform):
    """Deals descriptors out to the workers, each by its own name.

    `beam.Reshuffle` distributes at random, and Spark aborts a job when it loses an executor that holds
    randomly ordered data ("indeterminate output").

    Args:
        name: Function that returns a descriptor's name; by default the name of a task.
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
        spread: Transform that brings them to the workers; one that shuffles may fill in their items.
        hints: Beam's resource hints, by name: what a worker must have.
        alone: Whether a task takes a whole machine: all its cores, and its memory.
    """

    spread: beam.PTransform = field(default_factory=Deal)
    hints: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False

    @classmethod
    def in_memory(cls, budget: int) -> Placement:
        """On workers with the memory that a task may take, one task at a time.

        Args:
            budget: Bytes that a task may take, `index.memory`; what the machine itself needs is added.
        """
        return cls(hints={"min_ram": f"{budget + _MACHINE_BYTES}B"}, alone=True)


@dataclass
class Job(abc.ABC):
    """What a stage does to one task; picklable, with the pure function of the library inside.

    Attributes:
        stage: Name of the stage in lower case letters, in records, pipelines and what is printed.
        part_of: Stage of the command line that runs this one too; the stage itself if None.
        folder: Folder that its files and records are written to.
    """

    stage: ClassVar[str]
    part_of: ClassVar[str | None] = None
    folder: Folder

    @property
    def name(self) -> str:
        """Name in records and in what is printed: the stage, if that is done once."""
        return self.stage

    def open(self) -> Any:
        """Returns what all tasks of a process share, such as a tokenizer, a model or an index."""
        return None

    @abc.abstractmethod
    def run(self, shared: Any, item: Any, meter: Meter, /) -> Any:
        """Does one task.

        Args:
            shared: What `open` returned.
            item: Descriptor of the task.
            meter: Counts the units that are done.

        Returns:
            A dataclass, which the completion record keeps.
        """

    def done(self, item: Any) -> None:
        """Removes what a task has kept to go on after a stop: its record is written."""
        return

    def files(self, result: Any) -> list[FileEntry]:
        """Returns the files that `run` wrote; none if the result is all there is."""
        return []


@dataclass(frozen=True)
class Stage(Generic[Result]):
    """One stage: a job, and everything that it is done to.

    Attributes:
        job: What each task does.
        tasks: All tasks, in order.
        result: Dataclass that the job returns.
        unit: What its progress counts, such as chunks: what the job's `run` adds to the meter.
        total: Units of all tasks, about.
        placement: Where the tasks run.
    """

    job: Job
    tasks: Sequence[Task]
    result: type[Result]
    unit: str
    total: int
    placement: Placement = field(default_factory=Placement)

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.job.name


def fingerprint(version: int, inputs: Mapping[str, object]) -> dict[str, str]:
    """Hashes what decides a task's output, each thing by itself, so that a changed one can be named.

    Args:
        version: Version of the stage's code.
        inputs: Values that JSON can hold, by the names that users know them by.
    """
    return {name: mark_of(value) for name, value in {"code": version, **inputs}.items()}
