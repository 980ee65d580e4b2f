"""Who may write to a database folder: one build at a time, and no worker of a build that is over.

On local disks a build holds a `flock`, which ends with its process however it ends. On object stores
it holds a lease: the highest numbered object of a folder, created by a conditional put that one of two
rivals wins, and renewed every few seconds. Whoever finds a lease that is no longer renewed creates the
next number. Clocks of different machines are never compared: a rival watches the lease by its own clock.

Every write of a build passes its fence: a file takes its name only while the build still owns the folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator

from retro_db.errors import ExecutionError
from retro_db.store.fence import Fence
from retro_db.store.folder import Folder
from retro_db.store.leases import SILENCE_SECONDS, leased
from retro_db.store.local_lock import locked

_LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)


@contextlib.contextmanager
def owning(folder: Folder) -> Iterator[Folder]:
    """Takes a folder for one build.

    Args:
        folder: The database.

    Yields:
        The same folder with a fence: every write through it, here or by workers, succeeds only while
        this build owns the folder.

    Raises:
        InputError: Another build is at work there.
        ExecutionError: The filesystem has no locks.
    """
    hold = locked if folder.is_local else leased
    with hold(folder) as fence:
        yield folder.behind(fence)


_watched: set[str] = set()
_watching = threading.Lock()


def end_with_driver(fence: Fence | None) -> None:
    """Ends this worker process soon after its driver, or when another build takes over.

    Args:
        fence: Fence of the job's folder; None if nobody owns it.
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
        except Exception:  # any error of the store, which may answer again
            log.exception("the driver cannot be looked for; trying again")
        time.sleep(_LOOK_SECONDS)
    # Not an orderly exit: native threads are at work, and their output is not wanted.
    os._exit(ExecutionError.exit_code)
