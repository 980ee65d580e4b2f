"""Counts that a task keeps while it works: units done, further counts, and seconds by activity."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """Work of one task, or of many together.

    Attributes:
        done: Units of the stage's progress, such as chunks.
        counts: Numbers of other things, by name.
        seconds: Time by activity; activities may overlap.
    """

    done: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.done + other.done,
            {
                name: self.counts.get(name, 0) + other.counts.get(name, 0)
                for name in {**self.counts, **other.counts}
            },
            {
                name: self.seconds.get(name, 0.0) + other.seconds.get(name, 0.0)
                for name in {**self.seconds, **other.seconds}
            },
        )


class Meter:
    """Adds up one task's work; its threads may share it.

    Args:
        watch: Called with the sum so far, in the thread that counts units.
    """

    def __init__(self, watch: Callable[[Work], None] = lambda work: None) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self._work = Work()

    @property
    def work(self) -> Work:
        """The sum so far."""
        return self._work

    def __call__(self, done: int, **counts: int) -> None:
        """Adds units that were done, and counts of other things by name."""
        self._add(Work(done, counts))
        self._watch(self._work)

    def spend(self, activity: str, seconds: float) -> None:
        """Adds time that an activity took."""
        self._add(Work(seconds={activity: seconds}))

    @contextmanager
    def timing(self, activity: str) -> Iterator[None]:
        """Adds the time that the block takes to an activity."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spend(activity, time.perf_counter() - start)

    def _add(self, work: Work) -> None:
        with self._lock:
            self._work = self._work + work
