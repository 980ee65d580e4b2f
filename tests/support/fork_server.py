"""A process that has imported everything once, and forks itself for each command that a test runs.

    python -m support.fork_server SOCKET

A command that starts as users start it spends five to eight seconds of processor time on imports. Its
forks have imported all and done nothing, each with its own descriptors, environment, session and exit
code. The few tests that prove something of the start itself start `retro-db` as it is installed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import multiprocessing.util
import os
import pkgutil
import re
import resource
import selectors
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

LONGEST = 1 << 17
# What only some commands import, and late. Beam imports pandas where it is installed.
_LATE = ("apache_beam.runners.runner", "pandas", "transformers.models.bert.modeling_bert")


@dataclass(frozen=True)
class Request:
    """What a command is to be.

    Attributes:
        arguments: Behind the command's name.
        folder: It works in.
        environment: All of it.
        new_session: Whether it leads a session, and with it a process group.
        open_files: Its soft and its hard limit, if they are not those of this process.
    """

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    new_session: bool
    open_files: tuple[int, int] | None


def serve(control: socket.socket) -> Request | None:
    """Forks for each request, and says each child's number and exit code: None when no more can come.

    Returns:
        In a child, what it is to be.
    """
    children: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    process, status = children.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, ended = os.waitpid(process, 0)
                    status.send(str(os.waitstatus_to_exitcode(ended)).encode())
                    status.close()
                    continue
                message, descriptors, *_ = socket.recv_fds(control, LONGEST, 4)
                if not message:
                    for process, _ in children.values():
                        os.kill(process, signal.SIGKILL)
                    return None
                *standard, number = descriptors
                status = socket.socket(fileno=number)
                process = os.fork()
                if process == 0:
                    for descriptor, (_, other) in children.items():
                        os.close(descriptor)
                        other.close()
                    status.close()
                    control.close()
                    _take(standard)
                    return Request(**json.loads(message))
                for descriptor in standard:
                    os.close(descriptor)
                status.send(str(process).encode())
                watched = os.pidfd_open(process)
                children[watched] = (process, status)
                selector.register(watched, selectors.EVENT_READ)


def _take(standard: list[int]) -> None:
    """Makes descriptors stdin, stdout and stderr."""
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)


def become(request: Request) -> None:
    """Makes this process what a start of the command would have made it."""
    if request.new_session:
        os.setsid()
    if request.open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, request.open_files)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        buffering = 1 if name == "stderr" or os.isatty(number) else -1
        stream = open(number, "w", buffering, "utf-8", errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["retro-db", *request.arguments]
    if "--workers" in request.arguments:
        _keep_spare()


def _keep_spare() -> None:
    """Forks what becomes multiprocessing's server of forks, should the command start one.

    The command itself must not be forked later on: it has threads then.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # As the command has it when it starts its server; set before a signal can come.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    spare = os.fork()
    if spare == 0:
        ours.close()
        _wait_for_use(theirs)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    start = multiprocessing.util.spawnv_passfds

    def start_or_use(path: bytes, arguments: list[str], descriptors: list[int]) -> int:
        if "multiprocessing.forkserver" not in arguments[-1] or ours.fileno() < 0:
            return start(path, arguments, descriptors)
        message = {"program": arguments[-1], "environment": dict(os.environ)}
        socket.send_fds(ours, [json.dumps(message).encode()], [0, 1, 2, *descriptors])
        ours.close()
        return spare

    multiprocessing.util.spawnv_passfds = start_or_use


def _wait_for_use(line: socket.socket) -> None:
    """Ends with the command, or when the server of forks does."""
    message, descriptors, *_ = socket.recv_fds(line, LONGEST, 5)
    line.close()
    if message:
        _take(descriptors[:3])
        asked: dict[str, Any] = json.loads(message)
        os.environ.clear()
        os.environ.update(asked["environment"])
        listener, alive = descriptors[3:]
        program = re.sub(r"main\(\d+, \d+", f"main({listener}, {alive}", asked["program"])
        with contextlib.suppress(SystemExit):
            exec(program, {})  # noqa: S102 - multiprocessing's own
    os._exit(0)


def _import_everything() -> None:
    for name in ("retro_db", "retro_db_pipelines"):
        package = importlib.import_module(name)
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not found.name.endswith((".launch", ".__main__")):
                importlib.import_module(found.name)
    for name in _LATE:
        if importlib.util.find_spec(name):
            importlib.import_module(name)


def main() -> None:
    # A terminal's Ctrl-C is for the tests; this process ends when they have gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_everything()
    gc.collect()
    gc.freeze()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request:
        become(request)
        importlib.import_module("retro_db_pipelines.__main__").main()


if __name__ == "__main__":
    main()
