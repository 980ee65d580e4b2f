"""Checks that run side by side, and the problems that they report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import pyarrow as pa

from retro_db.errors import RetroDBError

# Errors that one problem may cause in a later check; without a problem before, they are raised.
_MISLED = (IndexError, KeyError, ValueError, OverflowError, pa.ArrowException)


@dataclass(frozen=True)
class Check:
    """One check of a database.

    Attributes:
        name: Name of the check in the note that it did not run.
        needs: Paths of the files that the check trusts; if one is damaged, the check does not run.
        run: Function that yields a line for each problem.
    """

    name: str
    needs: Sequence[str]
    run: Callable[[], Iterator[str]]


class Ledger:
    """The problems so far, notes on what could not be checked, and the files that are damaged.

    Args:
        pool: Threads that checks run on.
    """

    def __init__(self, pool: Executor) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.damaged: set[str] = set()
        self._pool = pool

    def run(self, checks: Iterable[Check]) -> None:
        """Runs checks side by side, and lists their problems in the order of the checks."""
        for problems in self._pool.map(self._look, self._trusted(checks)):
            self.problems += problems

    def run_on_files(self, checks: Iterable[Check]) -> None:
        """Runs checks as `run` does, and marks the files of a check that reports a problem as damaged."""
        trusted = self._trusted(checks)
        for check, problems in zip(trusted, self._pool.map(self._look, trusted), strict=True):
            self.problems += problems
            if problems:
                self.damaged.update(check.needs)

    def run_here(self, check: Check) -> None:
        """Runs a check that uses the pool itself."""
        self.problems += self._look(check)

    def _trusted(self, checks: Iterable[Check]) -> list[Check]:
        """Returns the checks whose files are not known to be damaged, and notes the others."""
        trusted = []
        for check in checks:
            broken = next((path for path in check.needs if path in self.damaged), None)
            if broken is None:
                trusted.append(check)
            else:
                self.notes.append(f"{check.name} not checked: {broken} is damaged")
        return trusted

    def _look(self, check: Check) -> list[str]:
        problems: list[str] = []
        try:
            problems.extend(check.run())
        except RetroDBError as error:
            problems.append(one_line(error))
        except _MISLED as error:
            if not self.problems:
                raise
            problems.append(f"{check.name} not checkable: {one_line(error)}")
        return problems


def one_line(error: Exception) -> str:
    """Returns the message of an error without line breaks."""
    return " ".join(str(error).split())
