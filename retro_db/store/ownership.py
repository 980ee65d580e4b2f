"""Who may write to a database folder: one build at a time, and no worker of a build that is over.

On local disks a build holds a `flock`, which ends with its process however it ends. On object stores
it holds a lease: the highest numbered object of a folder, created by a conditional put that one of two
rivals wins, and renewed every few seconds. Whoever finds a lease that is no longer renewed creates the
next number. No clock is compared with another machine's: a rival watches for as long as it takes.

What a build writes passes its fence: a write takes its name only while the build still owns the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from retro_db.errors import ExecutionError, InputError, OwnershipLostError
from retro_db.serialize import DecodeError, canonical, from_json, to_json
from retro_db.store.folder import Folder
from retro_db.store.forks import parents_alone

LOCK = "state/lock"
FENCE = "state/fence"
LEASES = "state/leases"
# A worker ends when its driver has been silent for so long; a rival waits three times as long.
SILENCE_SECONDS = 8.0
_BEAT_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_TRIES, _TRY_SECONDS = 5, 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """One run of a build.

    Attributes:
        token: Unlike that of every other run.
        host: Of its driver, for people.
        machine: Where its driver's pid means something: a container may share the host's name alone.
        pid: Of its driver.
        born: What tells the driver from a later process with its pid.
    """

    token: str
    host: str
    machine: str
    pid: int
    born: str

    @property
    def is_here(self) -> bool:
        """Whether this process is the driver."""
        return (self.machine, self.pid) == (_machine(), os.getpid())

    @property
    def is_gone(self) -> bool:
        """Whether the driver ran on this machine and is dead."""
        return self.machine == _machine() and _born(self.pid) != self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def _machine() -> str:
    """This run of the kernel, and this of its spaces of process numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _born(pid: int) -> str:
    """Ticks from the machine's start to the process's, empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _myself() -> Owner:
    pid = os.getpid()
    return Owner(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, _born(pid))


class Fence(Protocol):
    """What a write passes before it takes its name. Picklable: it goes to the workers."""

    owner: Owner

    def passing(self) -> contextlib.AbstractContextManager[None]:
        """Holds the gate open for the block.

        Raises:
            OwnershipLostError: The build that began the write no longer owns the folder.
        """

    def stands(self) -> bool:
        """Whether the driver is known to be alive, as far as this process can tell."""


@dataclass
class LocalFence:
    """A file with the owner's token. A new owner replaces it when no write is under way.

    Args:
        path: Of the file.
        lock: The file that the driver has locked as long as it lives.
        owner: Whose writes may pass.
    """

    path: str
    lock: str
    owner: Owner

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Holds the gate open for the block, so that no new owner can close it meanwhile."""
        with open(self.path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if file.read().decode("ascii", "replace") != self.owner.token:
                raise OwnershipLostError(
                    f"{self.path}: another build has taken over from {self.owner}"
                )
            yield

    def stands(self) -> bool:
        """Whether the driver still holds its lock, wherever it runs, and owns the folder."""
        try:
            with open(self.lock, "rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return Path(self.path).read_text("ascii") == self.owner.token
        except OSError:
            return False
        return False


class LeaseFence:
    """The numbered lease of one build on an object store.

    Args:
        folder: The database, without a fence.
        number: Of the lease.
        owner: Who holds it.
    """

    def __init__(self, folder: Folder, number: int, owner: Owner) -> None:
        self.owner = owner
        self._folder = folder
        self._number = number
        self._seen: tuple[int, float] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Checks that nobody holds a higher number."""
        if _latest(self._folder) != self._number:
            raise OwnershipLostError(
                f"{self._folder.url}: another build has taken over from {self.owner}"
            )
        yield

    def stands(self) -> bool:
        """Whether the lease was renewed lately, by this process's own clock."""
        if self.owner.is_gone or _latest(self._folder) != self._number:
            return False
        lease = _read_lease(self._folder, self._number)
        now = time.monotonic()
        if lease is None or self._seen is None or lease.beat != self._seen[0]:
            self._seen = (lease.beat if lease else -1, now)
        return now - self._seen[1] < SILENCE_SECONDS


@dataclass(frozen=True)
class _Lease:
    """What a lease object holds: who, how often it was renewed, and whether it was given back."""

    owner: Owner
    beat: int
    released: bool = False


@contextlib.contextmanager
def owning(folder: Folder) -> Iterator[Folder]:
    """Takes a folder for one build.

    Args:
        folder: The database.

    Yields:
        The same folder with a fence: whatever is written through it, here or by workers, is written
        only while this build owns it.

    Raises:
        InputError: Another build is at work there.
        ExecutionError: The filesystem has no locks.
    """
    hold = _locked if folder.is_local else _leased
    with hold(folder) as fence:
        yield folder.behind(fence)


@contextlib.contextmanager
def _locked(folder: Folder) -> Iterator[LocalFence]:
    lock = Path(folder.locate(LOCK))
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, folder)
        parents_alone.add(descriptor)
        owner = _myself()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, canonical(to_json(owner)), 0)
        fence = LocalFence(folder.locate(FENCE), str(lock), owner)
        _close_gate(Path(fence.path), owner)
        yield fence
    finally:
        parents_alone.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: Folder) -> None:
    """Takes the lock; workers of a dead driver may hold it for the moment of a look."""
    try:
        for _ in range(_TRIES):
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(_TRY_SECONDS)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 4096, 0)
        try:
            named = f" ({from_json(Owner, json.loads(holder))})"
        except (ValueError, DecodeError):
            named = ""
        raise InputError(
            f"output: another build is at work on {folder.url}{named}; wait for it, or stop it"
        ) from error
    except OSError as error:
        raise ExecutionError(
            f"output: {folder.url} cannot be locked ({error.strerror}); use a filesystem with flock"
        ) from error


def _close_gate(path: Path, owner: Owner) -> None:
    """Waits for writes that are under way, and lets those of earlier owners pass no more."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(owner.token.encode("ascii"))
        file.flush()


@contextlib.contextmanager
def _leased(folder: Folder) -> Iterator[LeaseFence]:
    number = _wait_for_turn(folder) + 1
    lease = _Lease(_myself(), 0)
    try:
        folder.create(_lease_path(number), canonical(to_json(lease)))
    except FileExistsError as error:
        raise InputError(
            f"output: another build has just taken {folder.url}; wait for it, or stop it"
        ) from error
    fence = LeaseFence(folder, number, lease.owner)
    for name in folder.list(LEASES):
        if name != os.path.basename(_lease_path(number)):
            folder.remove(f"{LEASES}/{name}")
    stop = threading.Event()
    renewing = threading.Thread(target=_renew, args=(folder, number, lease, stop), daemon=True)
    renewing.start()
    try:
        yield fence
    finally:
        stop.set()
        renewing.join()
        if _latest(folder) == number:
            folder.write(_lease_path(number), canonical(to_json(_Lease(lease.owner, 0, True))))


def _renew(folder: Folder, number: int, lease: _Lease, stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(_BEAT_SECONDS):
        beat += 1
        try:
            if _latest(folder) != number:
                return
            folder.write(_lease_path(number), canonical(to_json(_Lease(lease.owner, beat))))
        except Exception:  # stores have errors of their own; a rival waits longer than a moment
            log.exception("%s: the lease could not be renewed; trying again", folder.url)


def _wait_for_turn(folder: Folder) -> int:
    """The number of the last lease, which was given back or is no longer renewed; 0 if there is none.

    Raises:
        InputError: It is renewed.
    """
    number = _latest(folder)
    first = _read_lease(folder, number)
    if number == 0 or first is None or first.released or first.owner.is_gone:
        return number
    for _ in range(round(3 * SILENCE_SECONDS / _LOOK_SECONDS)):
        time.sleep(_LOOK_SECONDS)
        now = _read_lease(folder, number)
        if now is not None and now.released:
            break
        if now != first or _latest(folder) != number:
            raise InputError(
                f"output: another build is at work on {folder.url} ({first.owner}); wait for it, or "
                "stop it"
            )
    return number


def _latest(folder: Folder) -> int:
    """The highest number of a lease; 0 where there is none."""
    names = (name.removesuffix(".json") for name in folder.list(LEASES))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _lease_path(number: int) -> str:
    return f"{LEASES}/{number:08d}.json"


def _read_lease(folder: Folder, number: int) -> _Lease | None:
    """The lease; None where it is gone or torn."""
    try:
        return from_json(_Lease, json.loads(folder.read(_lease_path(number))))
    except (FileNotFoundError, ValueError, DecodeError):
        return None


_watched: set[str] = set()
_watching = threading.Lock()


def end_with_driver(fence: Fence | None) -> None:
    """Ends this worker process soon after its driver, or when another build takes over.

    Args:
        fence: Of the job's folder; None where nobody claimed it.
    """
    if fence is None or fence.owner.is_here:
        return
    with _watching:
        if fence.owner.token in _watched:
            return
        _watched.add(fence.owner.token)
    threading.Thread(target=_watch, args=(fence,), daemon=True).start()


def _watch(fence: Fence) -> None:
    heard = time.monotonic()
    while time.monotonic() - heard < SILENCE_SECONDS:
        try:
            if not fence.stands():
                break
            heard = time.monotonic()
        except Exception:  # stores have errors of their own, and may answer again
            log.exception("the driver cannot be looked for; trying again")
        time.sleep(_LOOK_SECONDS)
    # No orderly end: native threads are at work, and nothing of theirs is wanted.
    os._exit(ExecutionError.exit_code)
