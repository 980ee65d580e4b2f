"""How much a test does: little for every change, much in a long run, which `RETRO_DB_SOAK` asks for."""

from __future__ import annotations

import os

SOAKING = "RETRO_DB_SOAK" in os.environ


def amount(*, quick: int, soak: int) -> int:
    """The first for every change, the second in a long run."""
    return soak if SOAKING else quick
