"""Memory of programs, without mapped files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_LOOK_SECONDS = 0.01
Result = TypeVar("Result")


def own_memory() -> int:
    """Returns the bytes of memory of this process, without mapped files."""
    return 1024 * _kilobytes(_status(Path("/proc/self/status")))


def memory_of_all() -> int:
    """Returns the bytes of memory of this process and of all that it has started."""
    statuses: dict[int, dict[str, str]] = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            status = _status(path)
        except (OSError, UnicodeDecodeError):
            continue  # it has ended
        statuses[int(status["Pid"])] = status

    def is_own(process: int) -> bool:
        if process == os.getpid():
            return True
        return process in statuses and is_own(int(statuses[process]["PPid"]))

    return 1024 * sum(_kilobytes(status) for process, status in statuses.items() if is_own(process))


def peak_while(measure: Callable[[], int], work: Callable[[], Result]) -> tuple[Result, int]:
    """Returns what the work returns, and the most bytes that were measured meanwhile."""
    peaks, done = [measure()], threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            peaks[0] = max(peaks[0], measure())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        return work(), peaks[0]
    finally:
        done.set()
        looking.join()


def _status(path: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in path.read_text("utf-8").splitlines())


def _kilobytes(status: dict[str, str]) -> int:
    # A process of the kernel has none.
    return int(status.get("RssAnon", "0 kB").split()[0])
