"""Servers on this machine that speak an object store's language, and folders there."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from retro_db.store import leases


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, ask: Callable[[], object]) -> Iterator[None]:
    """A server, for the block.

    Args:
        command: What starts it.
        log: File for what it prints.
        ask: Asks something of it, and raises OSError until it answers.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            _wait_for(ask)
            yield
        finally:
            process.kill()


def _wait_for(ask: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            ask()
            return
        except OSError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)


def shorten_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are over soon."""
    monkeypatch.setattr(leases, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.2)
