"""Jobs and their tasks: what a stage does, to what, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from retro_db.corpus.planning import Shard
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.serialize import digest

from .beam import beam

Item = TypeVar("Item")
# The system, the runner's own processes, and the libraries of ours.
_MACHINE_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Task(Generic[Item]):
    """One shard of one stage.

    Attributes:
        name: Of the shard, and of its completion record.
        depends: A hash of each thing that its output depends on, by name.
        item: The descriptor that the job gets.
        reads: What it reads of the corpus, if it does; its content decides whether it is done.
    """

    name: str
    depends: dict[str, str]
    item: Item
    reads: Shard | None = None


@dataclass
class Deal(beam.PTransform):
    """Deals descriptors out to the workers, each by its own name.

    `beam.Reshuffle` would deal by chance, and Spark gives a job up when it loses an executor and with
    it data whose order was of chance ("indeterminate output").

    Args:
        name: Function that tells a descriptor's name; a task's own where left out.
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
        spread: How they reach the workers; one that shuffles may fill in what they work on.
        hints: Beam's resource hints, by name: what a worker must have.
        alone: Whether a task wants a machine for itself: all its cores, and its memory.
    """

    spread: beam.PTransform = field(default_factory=Deal)
    hints: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False

    @classmethod
    def in_memory(cls, budget: int) -> Placement:
        """On workers with the memory that a task may take, one task at a time.

        Args:
            budget: Bytes, `index.memory`; what a machine needs besides is added.
        """
        return cls(hints={"min_ram": f"{budget + _MACHINE_BYTES}B"}, alone=True)


class Job(Protocol):
    """What a stage does to one item; picklable, with the pure function of the library inside.

    `stage` names it in lower case letters, in records and in pipelines alike.
    """

    stage: str
    folder: Folder

    def open(self) -> Any:
        """What all tasks of a process share: a tokenizer, a model, an index."""

    def run(self, shared: Any, item: Any, meter: Meter, /) -> Any:
        """Does one item and returns a dataclass."""

    def files(self, result: Any) -> list[FileEntry]:
        """What `run` wrote."""


def fingerprint(version: int, inputs: Mapping[str, object]) -> dict[str, str]:
    """What decides a task's output: a short hash of each thing, so that a changed one can be named.

    Args:
        version: Of the stage's code.
        inputs: Anything that JSON can hold, by the name that a user knows it by.
    """
    return {name: digest(value)[:32] for name, value in {"code": version, **inputs}.items()}
