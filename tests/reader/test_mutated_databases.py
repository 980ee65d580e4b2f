"""Hostile databases by the thousand: no reader crashes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from support.places import SUPPORT
from support.projects import Project
from support.soak import amount

CASES = amount(quick=800, soak=10_000)
PROCESSES = 2


def test_no_reader_crashes(six: Project, tmp_path: Path) -> None:
    share = CASES // PROCESSES
    running = []
    for number in range(PROCESSES):
        numbers = [str(number * share), str((number + 1) * share)]
        place = str(tmp_path / str(number))
        program = [sys.executable, str(SUPPORT / "mutations.py")]
        with open(f"{place}.out", "w") as out, open(f"{place}.err", "w") as err:
            running.append(
                subprocess.Popen(
                    [*program, str(six.output), place, *numbers], stdout=out, stderr=err
                )
            )
    outcomes: Counter[str] = Counter()
    for number, process in enumerate(running):
        code = process.wait(600)
        lines = (tmp_path / f"{number}.out").read_text().splitlines()
        error = (tmp_path / f"{number}.err").read_text()
        assert code == 0, f"case {lines[-1] if lines else 'none'}: {error[-3000:]}"
        outcomes.update(json.loads(lines[-1]))
    print(dict(outcomes))
    assert sum(outcomes.values()) == share * PROCESSES
    for kind, outcome in (
        *(("manifest", name) for name in ("ManifestError", "DamagedFileError", "read")),
        *(("records", name) for name in ("missing", "DamagedFileError", "read")),
        *(("table", name) for name in ("DamagedFileError", "read")),
    ):
        assert outcomes[f"hostile_{kind} {outcome}"] > 0
