"""Ownership of a folder on a local disk: a `flock`, which ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retro_db.errors import ExecutionError, InputError, OwnershipLostError
from retro_db.store.fence import Owner, this_process
from retro_db.store.folder import Folder, make_folders
from retro_db.store.forks import parents_alone
from retro_db.store.serialize import DecodeError, canonical, from_json, to_json

LOCK = "state/lock"
FENCE = "state/fence"
_TRIES, _TRY_SECONDS = 5, 0.05


@dataclass
class LocalFence:
    """A file with the owner's token. A new owner replaces the token when no write is under way.

    Args:
        path: Path of the file.
        lock: Path of the file that the driver keeps locked as long as it lives.
        owner: Owner whose writes may pass.
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
        """Whether the driver still holds its lock and owns the folder."""
        try:
            with open(self.lock, "rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return Path(self.path).read_text("ascii") == self.owner.token
        except OSError:
            return False
        return False


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[LocalFence]:
    """Locks a local folder for the block, as `owning` says."""
    for path in (LOCK, FENCE):
        folder.expect_inside(path)
    lock = Path(folder.locate(LOCK))
    make_folders(lock.parent)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, folder)
        parents_alone.add(descriptor)
        owner = this_process()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, canonical(to_json(owner)), 0)
        fence = LocalFence(folder.locate(FENCE), str(lock), owner)
        _close_gate(Path(fence.path), owner)
        yield fence
    finally:
        parents_alone.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: Folder) -> None:
    """Takes the lock; workers of a dead driver may hold it for a moment while they look for the driver."""
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
    """Waits for writes that are under way; from then on no write of an earlier owner passes."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(owner.token.encode("ascii"))
        file.flush()
