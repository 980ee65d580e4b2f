"""Ctrl-C and SIGTERM stop a build at once, leave no process, and nothing that must be mended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from retro_db.verify import verify_database
from retro_db_pipelines.commands.demo import encoder_folder
from support.processes import building, children, is_running
from support.projects import Project, make_project
from support.texts import python_sources

TOLD = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# What a stage gets to put things in order, and some for a busy machine.
AT_ONCE = 2.0 + 3.0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A second of embedding by MiniLM, in some shards."""
    folder = tmp_path_factory.mktemp("sound")
    encoder = {"model": str(encoder_folder())}
    project = make_project(
        folder, python_sources(15), chunk={"shard_size": 10_000}, encoder=encoder
    )
    assert project.build() == 0
    return project


@pytest.mark.parametrize(
    ("number", "workers", "stage"),
    [
        (signal.SIGINT, "1", "embed"),
        (signal.SIGINT, "2", "chunk"),
        (signal.SIGINT, "2", "tune"),
        (signal.SIGTERM, "1", "tune"),
        (signal.SIGTERM, "2", "embed"),
    ],
)
def test_a_stopped_build_ends_at_once_and_goes_on(
    sound: Project,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    workers: str,
    stage: str,
) -> None:
    project = Project(tmp_path, sound.texts, sound.settings | {"output": str(tmp_path / "db")})
    with building(project, stage, "--workers", workers) as process:
        others = children(process.pid)
        assert len(others) >= 2 or workers == "1"
        start = time.monotonic()
        # A terminal sends Ctrl-C to all of them, a service SIGTERM to one.
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, message = process.communicate(timeout=60)
        assert time.monotonic() - start < AT_ONCE
        assert process.returncode == 128 + number
        kept = re.fullmatch(
            rf"error: {TOLD[number]}; all earlier stages and (\d+) of (\d+) {stage} tasks are kept; "
            "run the same command again to continue",
            message.strip(),
        )
        assert kept, message
        end = time.monotonic() + 1
        while any(is_running(other) for other in others):
            assert time.monotonic() < end, "a process is left"
            time.sleep(0.01)
    assert not (project.output / "manifest.json").exists()
    capsys.readouterr()
    assert project.build() == 0
    done = re.findall(
        rf"^{stage} +(?:(\d+) of \d+ tasks, )?[\d,]+ ", capsys.readouterr().out, re.MULTILINE
    )
    assert sum(int(tasks or 1) for tasks in done) <= int(kept[2]) - int(kept[1])
    assert project.files() == sound.files()
    assert verify_database(str(project.output)).problems == []


def test_in_a_shells_background_only_sigterm_stops_it(sound: Project, tmp_path: Path) -> None:
    project = Project(tmp_path, sound.texts, sound.settings | {"output": str(tmp_path / "db")})
    with building(project, "embed", "--workers", "2", ignoring=True) as process:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM


def test_what_a_terminal_sends_to_its_processes_does_not_end_them(
    sound: Project, tmp_path: Path
) -> None:
    """However early it comes: an end of theirs would be told beside the interruption."""
    project = Project(tmp_path, sound.texts, sound.settings | {"output": str(tmp_path / "db")})
    told: set[int] = set()
    with building(project, "", "--workers", "2", installed=True) as process:
        while process.poll() is None:
            for child in children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGINT)
                told.add(child)
        _, message = process.communicate(timeout=60)
    assert process.returncode == 0, message
    assert len(told) >= 3, "a server of forks, and two workers"
