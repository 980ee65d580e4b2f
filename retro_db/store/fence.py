"""The fence of the build that owns a folder: every write passes it before it takes its name."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Owner:
    """One run of a build.

    Attributes:
        token: Text that no other run has.
        host: Name of its driver's host, for people.
        machine: Identity of the machine on which the driver's pid is valid: a container may have the same
            host name as another, but not the same process numbers.
        pid: Process number of its driver.
        born: Start time of its driver, so that a later process with its pid is not taken for it.
    """

    token: str
    host: str
    machine: str
    pid: int
    born: str

    @property
    def is_here(self) -> bool:
        """Whether this process is the driver."""
        return (self.machine, self.pid) == (this_machine(), os.getpid())

    @property
    def is_gone(self) -> bool:
        """Whether the driver ran on this machine and is dead."""
        if self.machine != this_machine():
            return False
        born = _born(self.pid)
        return born != self.born if born else not is_alive(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def this_machine() -> str:
    """Identity of this boot of the kernel and of this process's pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _born(pid: int) -> str:
    """Ticks from the machine's start to the process's; empty if there is none, or it is hidden."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Whether there is a process on this machine, also where `/proc` hides those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def this_process() -> Owner:
    """This process as the owner, that is the driver of a new run."""
    pid = os.getpid()
    return Owner(uuid.uuid4().hex, socket.gethostname(), this_machine(), pid, _born(pid))


class Fence(Protocol):
    """Stops the writes of a build that no longer owns its folder. Picklable: it goes to the workers."""

    owner: Owner

    def passing(self) -> contextlib.AbstractContextManager[None]:
        """Holds the gate open for the block.

        Raises:
            OwnershipLostError: The build that began the write no longer owns the folder.
        """

    def stands(self) -> bool:
        """Whether the driver is known to be alive, as far as this process can tell."""
