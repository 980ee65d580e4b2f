"""Checks that run side by side, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import pyarrow as pa

from retro_db.errors import RetroDBError

# What something wrong can make of a later check; nothing else may.
_MISLED = (IndexError, KeyError, ValueError, OverflowError, pa.ArrowException)


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        name: For the note that it was left out.
        needs: Paths of the files that it trusts; it is left out where one is damaged.
        run: Yields a line for everything that is wrong.
    """

    name: str
    needs: Sequence[str]
    run: Callable[[], Iterator[str]]


class Ledger:
    """What is wrong so far, what could not be checked, and which files are not what was written.

    Args:
        pool: Threads that checks run on.
    """

    def __init__(self, pool: Executor) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.damaged: set[str] = set()
        self._pool = pool

    def run(self, checks: Iterable[Check]) -> None:
        """Runs checks side by side; what they find stands in their order."""
        for found in self._pool.map(self._look, self._trusted(checks)):
            self.problems += found

    def run_on_files(self, checks: Iterable[Check]) -> None:
        """The same; files that a check finds fault with are damaged from then on."""
        trusted = self._trusted(checks)
        for check, found in zip(trusted, self._pool.map(self._look, trusted), strict=True):
            self.problems += found
            if found:
                self.damaged.update(check.needs)

    def run_here(self, check: Check) -> None:
        """Runs a check that uses the pool itself."""
        self.problems += self._look(check)

    def _trusted(self, checks: Iterable[Check]) -> list[Check]:
        """Those whose files are not known to be damaged."""
        trusted = []
        for check in checks:
            broken = next((path for path in check.needs if path in self.damaged), None)
            if broken is None:
                trusted.append(check)
            else:
                self.notes.append(f"{check.name} not checked: {broken} is damaged")
        return trusted

    def _look(self, check: Check) -> list[str]:
        found: list[str] = []
        try:
            found.extend(check.run())
        except RetroDBError as error:
            found.append(one_line(error))
        except _MISLED as error:
            if not self.problems:
                raise
            found.append(f"{check.name} not checkable: {one_line(error)}")
        return found


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())
