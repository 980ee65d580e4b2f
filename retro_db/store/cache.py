"""Copies of remote files on this machine: whole, checked, within a bound, shared by its processes.

A listed file's copy is named by its sha256, so that no copy is ever stale and a warm one is found without
a request. A copy takes its name in one step, once its bytes were compared, and is never written to: it can
only be removed. A process that has mapped it reads on, and a lock on it (`flock`, shared) keeps it there.

While a file is fetched, the folder holds two more files: the bytes that have come so far, and a claim. The
claim is a sparse file of the same size, locked by the process that fetches, and reserves the room. Locks end
with their process, however it ends: files of a fetch that nobody has locked are swept. Nothing else in the
folder is touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from retro_db.errors import DamagedFileError, ExecutionError, InputError
from retro_db.store.forks import parents_alone

_COPY = "retro-db-"
_COMING = ".retro-db-tmp-"
_CLAIM = ".retro-db-get-"
_GATE = ".retro-db-lock"
# The time of change of a copy whose bytes were compared: whatever writes to it later sets another.
_COMPARED_NS = 0
# How long a fetch waits for room that others take, and how often it looks.
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmgtp]?)(i?)b?", re.IGNORECASE)

# Copies that this process keeps until it ends, each with the descriptor that locks it.
_kept: dict[Path, int] = {}


class _OtherBytesError(Exception):
    """The bytes that were fetched are not those that the manifest or the records list."""


@dataclass(frozen=True)
class Wanted:
    """A remote file.

    Attributes:
        key: Text that no other file has.
        bytes: Size of the file.
        sha256: Hash of its content; None if nothing lists it.
        where: The remote file's name, for error messages.
    """

    key: str
    bytes: int
    sha256: str | None
    where: str

    @property
    def name(self) -> str:
        """Name of its copy: the hash of the key, since a manifest may say anything as a key."""
        return hashlib.sha256(self.key.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder on a local disk with copies of remote files, for the processes of one user.

    Attributes:
        folder: Path of the folder; if empty, `retro-db-cache-UID` in the folder for temporary files.
        limit: Bytes that the copies may take together, including those being fetched; if None, half of
            what the disk has free besides them. The least recently used copies are removed first.
    """

    folder: str = ""
    limit: int | None = None

    @contextlib.contextmanager
    def holding(self, wanted: Wanted, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """A copy that stays in the cache for the block; maps of it can be read after the block, too.

        Args:
            wanted: The remote file.
            fetch: Writes its content to a new local file.

        Raises:
            DamagedFileError: The content is not the listed one.
            InputError: The cache has no room for it.
            ExecutionError: The disk of the cache is full.
        """
        descriptor = self._hold(wanted, fetch)
        try:
            yield self._copy(wanted)
        finally:
            _let_go(descriptor)

    def keep(self, wanted: Wanted, fetch: Callable[[Path], None]) -> Path:
        """A copy that stays in the cache until this process ends; arguments and errors as of `holding`."""
        copy = self._copy(wanted)
        descriptor = _kept.get(copy)
        if descriptor is None or not os.fstat(descriptor).st_nlink:
            _kept[copy] = self._hold(wanted, fetch)
        return copy

    def _copy(self, wanted: Wanted) -> Path:
        return self._place() / f"{_COPY}{wanted.name}"

    def _place(self) -> Path:
        """The folder; made if it does not exist."""
        if self.folder:
            place = Path(self.folder)
            place.mkdir(parents=True, exist_ok=True)
            return place
        place = Path(tempfile.gettempdir()) / f"retro-db-cache-{os.getuid()}"
        place.mkdir(mode=0o700, exist_ok=True)
        if place.lstat().st_uid != os.getuid():
            raise InputError(f"{place}: belongs to somebody else; name another folder as the cache")
        return place

    def _hold(self, wanted: Wanted, fetch: Callable[[Path], None]) -> int:
        """A descriptor with a shared lock on a whole copy."""
        copy = self._copy(wanted)
        while True:
            descriptor = _lock(copy, fcntl.LOCK_SH)
            if descriptor is None:
                descriptor = self._fetch(wanted, fetch)
            if descriptor is not None:
                if _is_right(copy, descriptor, wanted):
                    use(copy, os.fstat(descriptor).st_ino)
                    return descriptor
                # Others may have it mapped, but nobody opens it any more.
                copy.unlink(missing_ok=True)
                _let_go(descriptor)

    def _fetch(self, wanted: Wanted, fetch: Callable[[Path], None]) -> int | None:
        """Fetches a copy and locks it as `_hold` does; None if another process has fetched it meanwhile."""
        place, copy = self._place(), self._copy(wanted)
        coming = place / f"{_COMING}{wanted.name}"
        with _claiming(place / f"{_CLAIM}{wanted.name}") as claim:
            if copy.exists():
                return None
            self._reserve(claim, wanted)
            try:
                fetch(coming)
                _compare(coming, wanted)
                with _gate(place):
                    descriptor = _lock(coming, fcntl.LOCK_SH)
                    coming.replace(copy)
                    os.ftruncate(claim, 0)
                return descriptor
            except _OtherBytesError as error:
                raise DamagedFileError(
                    f"{wanted.where}: its bytes are not those that were written; restore it or build again"
                ) from error
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ExecutionError(
                    f"cache: {place}: {error.strerror}, for {wanted.where} of {wanted.bytes:,} bytes; make "
                    "room, give it fewer cache_bytes, or name another folder"
                ) from error
            finally:
                coming.unlink(missing_ok=True)

    def _reserve(self, claim: int, wanted: Wanted) -> None:
        """Makes room, and reserves it.

        Raises:
            InputError: The cache has no room, even after waiting for other processes.
        """
        place = self._place()
        os.ftruncate(claim, 0)  # a killed process may have left one that has a size
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with _gate(place):
                _sweep(place)
                short, limit = self._make_room(place, wanted.bytes)
                if short <= 0:
                    os.ftruncate(claim, wanted.bytes)
                    return
            kept = [item for copy, item in list(_kept.items()) if copy.parent == place]
            kept_bytes = sum(os.fstat(descriptor).st_size for descriptor in kept)
            if wanted.bytes + kept_bytes > limit or time.monotonic() > end:
                raise InputError(
                    f"cache_bytes: {wanted.where} has {wanted.bytes:,} bytes and does not fit in {place}, "
                    f"which may hold {limit:,}, of which {limit + short - wanted.bytes:,} are in use; give "
                    "it more, or another folder"
                )
            time.sleep(_LOOK_SECONDS)

    def _make_room(self, place: Path, size: int) -> tuple[int, int]:
        """Removes the least recently used copies; returns the bytes that are still short, and the limit."""
        copies = _stats(place, _COPY)
        claims = _stats(place, _CLAIM).values()
        taken = sum(stat.st_size for stat in (*copies.values(), *claims))
        limit = self.limit
        if limit is None:
            limit = (shutil.disk_usage(place).free + taken) // 2
        short = taken + size - limit
        for copy in sorted(copies, key=lambda copy: copies[copy].st_atime_ns):
            if short > 0 and _remove(copy):
                short -= copies[copy].st_size
        return short, limit


def use(copy: Path, inode: int) -> bool:
    """Marks a copy as used now.

    Args:
        copy: Path of the copy.
        inode: Inode of the copy that is meant, as another may have taken its name.

    Returns:
        Whether it is still there, unchanged.
    """
    try:
        stat = copy.stat()
        if (stat.st_ino, stat.st_mtime_ns) != (inode, _COMPARED_NS):
            return False
        os.utime(copy, ns=(time.time_ns(), _COMPARED_NS))
    except FileNotFoundError:
        return False
    return True


def parse_bytes(size: int | str) -> int:
    """A number of bytes, or a text such as `200MB` and `2GiB`.

    Raises:
        InputError: It is neither.
    """
    if isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise InputError(
            f"cache_bytes: {size!r} is not a size; write a number of bytes, or a text such as 200MB or 2GiB"
        )
    number, prefix, binary = match.groups()
    power = " kmgtp".index(prefix.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def _lock(path: Path, kind: int, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor with a lock on the file of that name; None if there is none, or it is locked."""
    while True:
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        _let_go(descriptor)


def _let_go(descriptor: int) -> None:
    """Unlocks a file and closes it; also unlocked for processes that were forked meanwhile."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The exclusive lock on a lock file, which is made if it does not exist; waits for the lock."""
    descriptor = _lock(path, fcntl.LOCK_EX, os.O_RDWR | os.O_CREAT)
    assert descriptor is not None  # noqa: S101 - the file is made, and the lock waited for
    parents_alone.add(descriptor)
    try:
        yield descriptor
    finally:
        parents_alone.discard(descriptor)
        _let_go(descriptor)


@contextlib.contextmanager
def _claiming(claim: Path) -> Iterator[int]:
    """The right to fetch one file: a descriptor of the claim, which reserves its room."""
    with _locked(claim) as descriptor:
        try:
            yield descriptor
        finally:
            claim.unlink(missing_ok=True)


def _gate(place: Path) -> contextlib.AbstractContextManager[int]:
    """Lets one process at a time count the copies and remove some."""
    return _locked(place / _GATE)


def _sweep(place: Path) -> None:
    """Removes the files of fetches whose process is dead."""
    for claim in _stats(place, _CLAIM):
        descriptor = _lock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is not None:
            coming = f"{_COMING}{claim.name.removeprefix(_CLAIM)}"
            (place / coming).unlink(missing_ok=True)
            claim.unlink(missing_ok=True)
            _let_go(descriptor)


def _stats(place: Path, prefix: str) -> dict[Path, os.stat_result]:
    """The files with a prefix; other processes may remove some meanwhile."""
    stats = {}
    for path in place.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            stats[path] = path.stat()
    return stats


def _remove(copy: Path) -> bool:
    """Removes a copy, unless a process has locked it; returns whether it was removed."""
    descriptor = _lock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return False
    copy.unlink(missing_ok=True)
    _let_go(descriptor)
    return True


def _is_right(copy: Path, descriptor: int, wanted: Wanted) -> bool:
    """Whether a copy is unchanged since its bytes were compared; compares again if it was touched."""
    stat = os.fstat(descriptor)
    if stat.st_size != wanted.bytes:
        return False
    if stat.st_mtime_ns != _COMPARED_NS:
        try:
            _compare(copy, wanted)
        except _OtherBytesError:
            return False
    return True


def _compare(file: Path, wanted: Wanted) -> None:
    """Compares size and sha256, and marks the file as compared, for good.

    Raises:
        _OtherBytesError: They differ.
    """
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    if file.stat().st_size != wanted.bytes or wanted.sha256 not in (None, sha256):
        raise _OtherBytesError
    os.utime(file, ns=(time.time_ns(), _COMPARED_NS))
