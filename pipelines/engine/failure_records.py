"""Failures of tasks, kept for the driver: not every runner hands them over."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from retro_db.errors import (
    ExecutionError,
    OwnershipLostError,
    RetroDBError,
    error_named,
    of_environment,
)
from retro_db.printing import redacted
from retro_db.store.folder import Folder

log = logging.getLogger(__name__)
FAILURES = "state/failures"


@contextmanager
def recorded_failures(folder: Folder, stage: str, name: str) -> Iterator[None]:
    """Keeps what goes wrong for the driver: not every runner hands it over.

    Raises:
        ExecutionError: Trying again may help; runners do. What would fail again ends the block alone.
    """
    try:
        yield
    except ExecutionError as error:
        _record_failure(folder, stage, name, error)
        raise
    except RetroDBError as error:
        _record_failure(folder, stage, name, error)
    except (OSError, MemoryError) as error:
        failure = of_environment(error)
        _record_failure(folder, stage, name, failure)
        raise failure from error


def _record_failure(folder: Folder, stage: str, name: str, error: RetroDBError) -> None:
    """Keeps an error's class and message for the driver: not every runner hands them over."""
    log.error("%s %s: %s", stage, name, error)
    failure = {"class": type(error).__name__, "message": redacted(str(error))}
    try:
        folder.write(f"{FAILURES}/{stage}-{name}.json", json.dumps(failure).encode())
    except (OSError, OwnershipLostError):
        # A full disk does not take this either; the runner still has the error itself.
        log.exception("%s %s: the failure could not be recorded", stage, name)


def read_failures(folder: Folder) -> Sequence[RetroDBError]:
    """Every failure since the last `folder.remove(FAILURES)`."""
    failures = [json.loads(folder.read(f"{FAILURES}/{name}")) for name in folder.list(FAILURES)]
    return [error_named(failure["class"], failure["message"]) for failure in failures]
