"""Servers on this machine that speak an object store's language, and folders there."""

from __future__ import annotations

import socket

import pytest

from retro_db.store import leases


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def shorten_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are over soon."""
    monkeypatch.setattr(leases, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.2)
