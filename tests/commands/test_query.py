"""What people see of chunks and their neighbors."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from typing import Any

import pytest

from retro_db_pipelines.commands.cli import run
from support.places import COMMAND
from support.processes import Command
from support.projects import Project

WIDTH = 61
_COLOR = re.compile(r"\x1b\[[\d;]*m")


def on_a_terminal(*arguments: str) -> str:
    """What a command writes to a terminal of a certain width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    environment = {"TERM": "xterm-256color", "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [str(COMMAND), *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how Linux tells that nobody has it open any more
                break
            shown += piece
        assert process.wait() == 0, shown
    os.close(ours)
    return shown.decode()


@pytest.fixture(scope="module")
def told(small: Project) -> dict[str, Any]:
    """A chunk with a continuation, and its neighbors, as a machine is told of them."""
    with Command("query", str(small.output), "--chunk", "20", "-k", "3", "--json") as process:
        shown, _ = process.communicate()
    found: dict[str, Any] = json.loads(shown)
    return found


def test_a_chunk_has_its_stored_neighbors(small: Project, told: dict[str, Any]) -> None:
    database = small.open()
    assert told["chunk"]["id"] == 20
    assert [one["id"] for one in told["neighbors"]] == database.neighbors[20][:3].tolist()
    for one, distance in zip(told["neighbors"], database.neighbors.distances(20)[:3], strict=True):
        assert one["distance"] == pytest.approx(float(distance), abs=1e-4)
        row = int(database.chunks.documents([one["id"]])[0])
        assert one["document"] == database.documents["id"][row].as_py()
    asked = f"{told['chunk']['text']} {told['chunk']['continuation']}".lower()
    for one in told["neighbors"]:
        words = set(re.findall(r"\w{3,}", f"{one['text']} {one['continuation']}".lower()))
        assert one["shared"] == sorted(words & set(re.findall(r"\w{3,}", asked)))


def test_a_terminal_is_filled_not_overrun(small: Project, told: dict[str, Any]) -> None:
    shown = on_a_terminal("query", str(small.output), "--chunk", "20", "-k", "3")
    plain = _COLOR.sub("", shown)
    assert max(len(line) for line in plain.splitlines()) <= WIDTH
    marked = {word.lower() for word in re.findall(r"\x1b\[1;33m(\w+)", shown)}
    assert marked == {word for one in told["neighbors"] for word in one["shared"]}
    flat = "".join(plain.split())
    for one in told["neighbors"]:
        assert "".join(one["text"].split()) in flat
        assert "".join(one["continuation"].split()) in flat


def test_elsewhere_a_text_is_a_line_without_colors(
    small: Project, told: dict[str, Any], capsys: Any
) -> None:
    assert run(["query", str(small.output), "--chunk", "20", "-k", "3"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    lines = [line.strip() for line in shown.splitlines()]
    for one in told["neighbors"]:
        assert " ".join(one["text"].split()) in lines
        assert "... " + " ".join(one["continuation"].split()) in lines


def test_mistakes_are_named(small: Project, capsys: Any) -> None:
    database = str(small.output)
    for arguments in (["query", database], ["query", database, "text", "--chunk", "1"]):
        assert run(arguments) == 2
        assert "give a text or --chunk ID" in capsys.readouterr().err
    last = len(small.open()) - 1
    assert run(["query", database, "--chunk", str(last + 1)]) == 2
    assert f"--chunk {last + 1}: ids go from 0 to {last}" in capsys.readouterr().err


def test_tables_lose_nothing_on_a_narrow_terminal(
    small: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = small.open().manifest.counts
    shown = on_a_terminal("inspect", str(small.output))
    assert "…" not in shown
    assert max(len(line) for line in _COLOR.sub("", shown).splitlines() if "│" in line) <= WIDTH
    assert run(["inspect", str(small.output)]) == 0
    piped = capsys.readouterr().out
    assert re.search(rf"│ test +│ +1 │ +{counts.documents} │ +{counts.chunks} │", piped)
