"""Commands as processes of their own, and what they start."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support.places import COMMAND
from support.projects import Project


def children(parent: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


def is_running(process: int) -> bool:
    """Whether a process is alive, and not only waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextlib.contextmanager
def building(
    project: Project, stage: str, *options: str, ignoring: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A build in a process group of its own that has begun a stage, as a terminal or a service starts one.

    Args:
        project: What to build.
        stage: Which stage is waited for.
        *options: Of the command.
        ignoring: Whether it ignores Ctrl-C's signal, as what runs in a shell's background does.
    """
    command = [str(COMMAND), "build", str(project.config), *options]
    if ignoring:
        command = ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            while not (project.output / "state" / "progress" / stage).exists():
                assert process.poll() is None, "it ended before the stage began"
                time.sleep(0.01)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
