"""Locks that end with the process that took them, even if others were forked from it meanwhile."""

from __future__ import annotations

import os

# Descriptors of locked files: a forked child closes its copies, or the lock would outlive its parent.
parents_alone: set[int] = set()


def _close() -> None:
    for descriptor in parents_alone:
        os.close(descriptor)
    parents_alone.clear()


os.register_at_fork(after_in_child=_close)
