"""What a process takes of memory, told by the kernel for the program that it runs.

`getrusage` tells a peak that begins with that of the process which started this one: a test that compares two
such figures in a child of pytest compares pytest with itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.places import TESTS

# For programs that import this module.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS)}
_LOOK_SECONDS = 0.005


def _bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        name, value = line.split(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise LookupError(field)


def peak() -> int:
    """The most bytes that this program has had in memory so far, pages of mapped files among them."""
    return _bytes("VmHWM")


def peak_of_own(work: Callable[[], Any]) -> int:
    """The most bytes of its own that this program has in memory while it works: without mapped files."""
    peaks, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            peaks[0] = max(peaks[0], _bytes("RssAnon"))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        work()
    finally:
        done.set()
        looking.join()
    return peaks[0]
