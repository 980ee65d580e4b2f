"""What a dry run does about tasks that are not done: it says so, and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from retro_db.store.folder import Folder

from .context import Build, IncompleteError
from .jobs import Result
from .resume import Standing


@dataclass
class DryRun:
    """Says how far every stage is, and writes nothing.

    Attributes:
        pending: Stages with tasks left, by name.
    """

    pending: list[str] = field(default_factory=list)

    def complete(self, build: Build, state: Standing[Result]) -> list[Result]:
        """Says how many tasks are done, and why the others are not.

        Raises:
            IncompleteError: Some are not.
        """
        name = state.stage.name
        build.console.say(f"{name:<10} {build.label}{state.describe()}")
        if not state.is_complete:
            self.pending.append(f"{name} of {build.query}" if build.query else name)
            raise IncompleteError(f"{name}: {len(state.pending):,} tasks are left")
        return state.results

    def foresee(self, build: Build, state: Standing[Result]) -> None:
        """Says how far it is, and ends there."""
        self.complete(build, state)

    def report(self, folder: Folder, path: str, data: bytes) -> None:
        """Writes nothing."""

    def forget(self, folder: Folder, stage: str, task: str) -> None:
        """Forgets nothing."""

    def discard(self, folder: Folder, path: str) -> None:
        """Removes nothing."""
