"""Ctrl-C and SIGTERM end a command at once: every commit is whole, and nothing must be put in order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..engine.standing_work import account_of_work

# For what gives back locks and removes temporary files; Beam and native libraries may take for ever.
_PATIENCE_SECONDS = 2.0
# Exit codes above it name signals, as in shells.
SIGNALED = 128
# Progress hides it.
_SHOW_CURSOR = b"\x1b[?25h"
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal came.

    Attributes:
        exit_code: Exit code of the command.
        kept: What is kept of the stage under way; empty where none is, or as long as it is not known.
    """

    def __init__(self, number: int) -> None:
        super().__init__(_WORDS[signal.Signals(number)])
        self.exit_code = SIGNALED + number
        self.kept = ""

    def __str__(self) -> str:
        """The error, what is kept, and the remedy."""
        kept = f"all earlier stages and {self.kept} are kept; " if self.kept else ""
        return f"{self.args[0]}; {kept}run the same command again to continue"


@contextmanager
def stopping() -> Iterator[None]:
    """Raises `Stopped` in the block when a signal comes; two seconds later the process ends in any case.

    A signal that is ignored, as in a shell's background, stays so.
    """
    standard_error = os.dup(2)  # a stage sends it elsewhere
    came: list[Stopped] = []

    def end() -> None:
        if os.isatty(standard_error):
            os.write(standard_error, _SHOW_CURSOR)
        os.write(standard_error, f"error: {came[0]}\n".encode())
        os._exit(came[0].exit_code)

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(Stopped(number))
        if len(came) > 1:
            end()
        impatient.start()
        came[0].kept = account_of_work()
        raise came[0]

    impatient = threading.Timer(_PATIENCE_SECONDS, end)
    impatient.daemon = True
    before = {number: signal.getsignal(number) for number in _WORDS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        if not came:
            impatient.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(standard_error)
