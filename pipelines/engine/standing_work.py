"""What of the work under way would be kept if it stopped now: asked by the signal that stops it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_accounts: list[Callable[[], str]] = []


@contextmanager
def accounted(account: Callable[[], str]) -> Iterator[None]:
    """Has `account` asked, in one phrase, if a signal comes in the block."""
    _accounts.append(account)
    try:
        yield
    finally:
        _accounts.pop()


def account_of_work() -> str:
    """What is kept of the work under way; empty where nothing is."""
    return _accounts[-1]() if _accounts else ""
