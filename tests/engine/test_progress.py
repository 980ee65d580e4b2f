"""The line of a stage on a terminal: what matters first, and nothing that does not fit."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console as RichConsole

from retro_db.meter import Work
from retro_db_pipelines.engine.console import Console


def lines_of_a_stage(width: int) -> list[str]:
    """What a stage that takes some seconds draws on a terminal, one line for each refresh."""
    console, screen = Console(), io.StringIO()
    console.rich = RichConsole(
        file=screen, width=width, force_terminal=True, highlight=False, soft_wrap=True
    )
    done = 0

    def progress() -> Work:
        nonlocal done
        done += 400
        counts = {"tokens": 80 * done, "padding": done}
        return Work(done, counts, {"device": 9.0, "tokenize": 0.8, "write": 0.2})

    with console.stage("embed", "chunks", 12_345, progress, label="questions: ") as remark:
        time.sleep(1.1)
        remark("12,345 chunks")
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    return [line for line in re.split(r"[\r\n]+", drawn) if "━" in line or "%" in line]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_line_fits_and_names_the_time_left_before_all_details(width: int) -> None:
    lines = lines_of_a_stage(width)
    assert len(lines) >= 3
    assert max(map(len, lines)) <= width
    last = lines[-1].rstrip()
    assert re.search(r"\d+%, \d:\d\d:\d\d left", last), last
    assert ("chunks/s" in last) == (width >= 80), last
    assert ("tokens" in last) == (width >= 100), last
    assert ("write 2%" in last) == (width >= 160), last
    assert not last.endswith((",", "…"))
