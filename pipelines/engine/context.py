"""What the stages of one build share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from retro_db.config import Config
from retro_db.corpus.sharding import Shard
from retro_db.errors import InputError
from retro_db.manifest.model import query_path
from retro_db.report.stage_report import StageWork
from retro_db.store.folder import Folder

from .console import Console
from .jobs import Result, Stage
from .resume import Standing, standing
from .runner import Engine


class IncompleteError(InputError):
    """A stage has tasks left, and the build's action does not run them: what follows is unknown."""


class Action(Protocol):
    """What is done about a stage of which some tasks may be left."""

    def complete(self, build: Build, state: Standing[Result]) -> list[Result]:
        """Returns the results of all tasks of the stage, in order.

        Raises:
            IncompleteError: Tasks are left, and this action does not run them.
        """

    def foresee(self, build: Build, state: Standing[Result]) -> None:
        """Notes a stage with tasks left before the stages that prepare it are looked at.

        Raises:
            IncompleteError: This action goes no further.
        """

    def report(self, folder: Folder, path: str, data: bytes) -> None:
        """Writes a report for people, or removes an earlier one if `data` is empty."""

    def discard(self, folder: Folder, path: str) -> None:
        """Removes what a stage has kept to go on after a stop: it is complete."""

    def forget(self, folder: Folder, stage: str, task: str) -> None:
        """Removes the record of a task, which is to be done again."""


@dataclass(kw_only=True)
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
        whole_documents: In a build from a sample, about the number of documents of the whole corpus; None
            in any other build.
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
    whole_documents: int | None = None
    query: str = ""
    config_field: str = "corpus"
    stages: dict[str, StageWork] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Path of `folder` in the database; empty if it is the database."""
        return self.folder.url.removeprefix(self.home.url.rstrip("/")).strip("/")

    @property
    def is_sample(self) -> bool:
        """Whether only a sample of the corpus is built: index keys are reduced to what it can train."""
        return self.whole_documents is not None

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
        """Completes a stage; the action decides what happens to unfinished tasks.

        Returns:
            The results of all tasks, in order.

        Raises:
            IncompleteError: Tasks are left, and the action does not run them.
        """
        return self.action.complete(self, standing(self.folder, stage))

    def run_task(self, stage: Stage[Result]) -> Result:
        """Completes a stage that has a single task, and returns its result."""
        [result] = self.run(stage)
        return result
