"""Everything that people read: progress, tables and messages, on a terminal or in a log."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from retro_db.meter import Work
from retro_db.printing import printable, redacted

_POLL_SECONDS, _POLL_SHARE = 0.25, 20
_BAR_WIDTH = 20
_LOG_SECONDS = 15.0
_LOG_WIDTH = 200


class Console:
    """Writes to standard output; one live line a stage on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.rich = RichConsole(highlight=False, soft_wrap=True)
        if not self.is_terminal:
            self.rich.width = _LOG_WIDTH

    @property
    def is_terminal(self) -> bool:
        """Whether lines can be redrawn."""
        return self.rich.is_terminal

    def say(self, message: str = "") -> None:
        """Prints one line."""
        self.rich.print(printable(redacted(message)), markup=False)

    def show_table(
        self, headers: Sequence[str], rows: Iterable[Sequence[str]], texts: Collection[int] = ()
    ) -> None:
        """A table; what does not fit a terminal goes on below in its cell.

        Args:
            headers: Headers of the columns. The first column names the rows, the others hold numbers.
            rows: Their cells.
            texts: Columns that hold texts all the same.
        """
        table = Table()
        for number, header in enumerate(headers):
            is_text = number == 0 or number in texts
            table.add_column(header, justify="left" if is_text else "right", overflow="fold")
        for row in rows:
            table.add_row(*(escape(printable(redacted(cell))) for cell in row))
        self.rich.print(table)

    def show_json(self, data: Any) -> None:
        """What a machine reads, colored on a terminal."""
        self.rich.print_json(json.dumps(_without_credentials(data)), ensure_ascii=True)

    def fail(self, message: str) -> None:
        """Prints one line on standard error."""
        RichConsole(stderr=True, highlight=False, soft_wrap=True).print(
            f"error: {printable(redacted(message))}", markup=False
        )

    @contextlib.contextmanager
    def stage(
        self, name: str, unit: str, total: int, progress: Callable[[], Work], *, label: str = ""
    ) -> Iterator[Callable[[str], None]]:
        """Shows a stage's progress while the block runs.

        Args:
            name: Name of the stage.
            unit: What is counted.
            total: How many there are.
            progress: Returns what is done; polled.
            label: What comes first behind the name.

        Yields:
            A function that takes the closing remark, such as counts.
        """
        remark: list[str] = []
        start = time.monotonic()
        stop = threading.Event()
        watch = self._watch_live if self.is_terminal else self._watch_log
        watched = _Watched(f"{name:<10} {label}", unit, total, progress)
        watcher = threading.Thread(target=watch, args=(watched, stop), daemon=True)
        watcher.start()
        try:
            yield remark.append
        finally:
            stop.set()
            watcher.join()
        seconds = time.monotonic() - start
        self.say(f"{name:<10} {label}{' '.join(remark)} ({seconds:,.1f} s)")

    def _watch_live(self, watched: _Watched, stop: threading.Event) -> None:
        width = self.rich.width
        bar_width = min(_BAR_WIDTH, width // 4)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=bar_width),
            _StateColumn(watched.unit, width - bar_width - len(watched.heading) - 2),
        )
        with Progress(*columns, console=self.rich, transient=True) as bar:
            task = bar.add_task(watched.heading.rstrip(), total=watched.total or None, details=())
            pause = _POLL_SECONDS
            while not stop.wait(pause):
                start = time.monotonic()
                work = watched.progress()
                # Thousands of tasks take a while to sum up; that work is not the build's.
                pause = max(_POLL_SECONDS, _POLL_SHARE * (time.monotonic() - start))
                done = min(work.done, watched.total)
                bar.update(task, completed=done, details=_items(work))

    def _watch_log(self, watched: _Watched, stop: threading.Event) -> None:
        start, total = time.monotonic(), watched.total
        while not stop.wait(_LOG_SECONDS):
            work = watched.progress()
            count, seconds = min(work.done, total), time.monotonic() - start
            rate = count / seconds
            left = f", {(total - count) / rate:,.0f} s left" if rate else ""
            self.say(
                f"{watched.heading}{count:,} of {total:,} {watched.unit}, {rate:,.0f}/s{left}"
                f"{details(work)}"
            )


@dataclass(frozen=True)
class _Watched:
    """A stage on its way: the head of its lines, what it counts, how many there are, and what is done."""

    heading: str
    unit: str
    total: int
    progress: Callable[[], Work]


def details(work: Work) -> str:
    """What a stage counts besides its units, behind a comma: tokens, padding, shares of the time."""
    return "".join(f", {item}" for item in _items(work))


def _items(work: Work) -> list[str]:
    items = []
    if tokens := work.counts.get("tokens", 0):
        padding = work.counts.get("padding", 0)
        items += [f"{tokens:,} tokens", f"padding {padding / (tokens + padding):.1%}"]
    if whole := sum(work.seconds.values()):
        items += [f"{name} {seconds / whole:.0%}" for name, seconds in sorted(work.seconds.items())]
    return items


class _StateColumn(ProgressColumn):
    """Share, time left, rate and details, of which the last give way where a line is too short.

    Args:
        unit: What is counted.
        width: Characters that fit.
    """

    def __init__(self, unit: str, width: int) -> None:
        super().__init__()
        self._unit, self._width = unit, width

    def render(self, task: RichTask) -> Text:
        """As many items as fit, at least the first."""
        items = [f"{task.percentage:.0f}%"]
        if task.time_remaining is not None:
            items.append(f"{timedelta(seconds=int(task.time_remaining))} left")
        if task.speed:
            items.append(f"{task.speed:,.0f} {self._unit}/s")
        items += task.fields["details"]
        lengths = accumulate(len(item) + len(", ") for item in items)
        fitting = sum(length - len(", ") <= self._width for length in lengths)
        return Text(", ".join(items[: max(fitting, 1)]))


def _without_credentials(data: Any) -> Any:
    """JSON with every text redacted."""
    if isinstance(data, dict):
        return {key: _without_credentials(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_without_credentials(value) for value in data]
    return redacted(data) if isinstance(data, str) else data


class _Redacting(logging.Formatter):
    """Whatever is logged, tracebacks included, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines for a record."""
        return redacted(super().format(record))


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Goes on: on a full disk, the one line that says so must not drown in logging's own."""

    def close(self) -> None:
        """Lets go of the file, whether or not its last lines could be written."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def chatter_to(path: Path) -> Iterator[None]:
    """Sends the logs and warnings of all libraries to a file while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)
        handler.close()
        sys.stdout.flush()
