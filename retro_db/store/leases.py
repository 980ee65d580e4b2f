"""Ownership of a folder on an object store: a numbered lease, renewed every few seconds."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retro_db.errors import InputError, OwnershipLostError
from retro_db.store.fence import Owner, this_process
from retro_db.store.folder import Folder
from retro_db.store.serialize import DecodeError, canonical, from_json, to_json

LEASES = "state/leases"
# A worker ends after so many seconds without a sign of its driver; a rival waits three times as long.
SILENCE_SECONDS = 8.0
_BEAT_SECONDS = 2.0
_LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)


class LeaseFence:
    """The numbered lease of one build on an object store.

    Args:
        folder: The database, without a fence.
        number: Number of the lease.
        owner: Owner of the lease.
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
        """Checks that no lease has a higher number."""
        if _latest(self._folder) != self._number:
            raise OwnershipLostError(
                f"{self._folder.url}: another build has taken over from {self.owner}"
            )
        yield

    def stands(self) -> bool:
        """Whether the lease was renewed lately, by the clock of this process."""
        if self.owner.is_gone or _latest(self._folder) != self._number:
            return False
        lease = _read_lease(self._folder, self._number)
        now = time.monotonic()
        if lease is None or self._seen is None or lease.beat != self._seen[0]:
            self._seen = (lease.beat if lease else -1, now)
        return now - self._seen[1] < SILENCE_SECONDS


@dataclass(frozen=True)
class _Lease:
    """Content of a lease object: its owner, how often it was renewed, and whether it was given back."""

    owner: Owner
    beat: int
    released: bool = False


@contextlib.contextmanager
def leased(folder: Folder) -> Iterator[LeaseFence]:
    """Holds the lease of a folder on an object store for the block, as `owning` says."""
    number = _wait_for_turn(folder) + 1
    lease = _Lease(this_process(), 0)
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
            folder.write(
                _lease_path(number), canonical(to_json(_Lease(lease.owner, 0, released=True)))
            )


def _renew(folder: Folder, number: int, lease: _Lease, stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(_BEAT_SECONDS):
        beat += 1
        try:
            if _latest(folder) != number:
                return
            folder.write(_lease_path(number), canonical(to_json(_Lease(lease.owner, beat))))
        except Exception:  # any error of the store; a rival waits longer than a moment
            log.exception("%s: the lease could not be renewed; trying again", folder.url)


def _wait_for_turn(folder: Folder) -> int:
    """Number of the last lease, once it was given back or is no longer renewed; 0 without any lease.

    Raises:
        InputError: Its owner still renews it.
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
    """The highest number of a lease; 0 without any lease."""
    names = (name.removesuffix(".json") for name in folder.list(LEASES))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _lease_path(number: int) -> str:
    return f"{LEASES}/{number:08d}.json"


def _read_lease(folder: Folder, number: int) -> _Lease | None:
    """The lease; None if it was removed or is torn."""
    try:
        return from_json(_Lease, json.loads(folder.read(_lease_path(number))))
    except (FileNotFoundError, ValueError, DecodeError):
        return None
