"""Commands as processes of their own, and what they start."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from support.places import COMMAND, TESTS
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


class Command:
    """A command in a process of its own: like `subprocess.Popen`, but forked from what is imported already.

    Args:
        *arguments: Behind `retro-db`.
        stdout: A descriptor; a pipe if left out.
        stderr: A descriptor; a pipe if left out.
        new_session: Whether it is started as a terminal or a service starts one.
        open_files: Its soft and its hard limit; those of this process if left out.
        preloaded: A library whose functions come before those of all others.
        **environment: Variables that differ from those of this process.
    """

    def __init__(
        self,
        *arguments: str,
        stdout: int | None = None,
        stderr: int | None = None,
        new_session: bool = False,
        open_files: tuple[int, int] | None = None,
        preloaded: str = "",
        **environment: str,
    ) -> None:
        self.stdout, out = _output(stdout)
        self.stderr, err = _output(stderr)
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "arguments": arguments,
            "folder": os.getcwd(),
            "environment": {**os.environ, **environment},
            "new_session": new_session,
            "open_files": open_files,
        }
        with open(os.devnull, "rb") as nothing, theirs:
            given = [nothing.fileno(), out, err, theirs.fileno()]
            socket.send_fds(_fork_server(preloaded), [json.dumps(request).encode()], given)
        for ours, descriptor in ((stdout, out), (stderr, err)):
            if ours is None:
                os.close(descriptor)
        self.pid = int(self._status.recv(100))
        self.returncode: int | None = None

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()
        self._status.close()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            self.returncode = int(self._status.recv(100))
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        with contextlib.suppress(BlockingIOError):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it prints, until it ends."""
        with ThreadPoolExecutor(2) as pool:
            streams = (self.stdout, self.stderr)
            reading = [pool.submit(stream.read) if stream else None for stream in streams]
            self.wait(timeout)
            out, err = (read.result() if read else "" for read in reading)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _output(given: int | None) -> tuple[TextIO | None, int]:
    """The end of a new pipe that is read, if none is given, and what the command writes to."""
    if given is not None:
        return None, given
    ours, theirs = os.pipe()
    return open(ours, encoding="utf-8"), theirs


@functools.cache
def _fork_server(preloaded: str) -> socket.socket:
    """What requests are sent to; it ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "support.fork_server", str(theirs.fileno())]
    environment = os.environ | ({"LD_PRELOAD": preloaded} if preloaded else {})
    with theirs:
        subprocess.Popen(
            command,
            cwd=TESTS,
            env=environment,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours


@contextlib.contextmanager
def building(
    project: Project,
    stage: str,
    *options: str,
    place: str = "",
    installed: bool = False,
    ignoring: bool = False,
) -> Iterator[Command | subprocess.Popen[str]]:
    """A build in a process group of its own that has begun a stage, as a terminal or a service starts one.

    Args:
        project: What to build.
        stage: Which stage is waited for.
        *options: Of the command.
        place: Folder in the database in which the stage counts.
        installed: Whether it is the command as it is installed, imports and all.
        ignoring: Whether, moreover, it ignores Ctrl-C's signal, as what runs in a shell's background does.
    """
    arguments = ["build", str(project.config), *options]
    with (
        _start_installed(arguments, ignoring)
        if installed or ignoring
        else Command(*arguments, new_session=True)
    ) as process:
        try:
            while not (project.output / place / "state" / "progress" / stage).exists():
                assert process.poll() is None, "it ended before the stage began"
                time.sleep(0.01)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _start_installed(arguments: list[str], ignoring: bool) -> subprocess.Popen[str]:
    command = [str(COMMAND), *arguments]
    if ignoring:
        command = ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
