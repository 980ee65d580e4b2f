"""Reads the bytes of files, with any compression."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, cast

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from retro_db.corpus.compression import BLOCK, MAGIC_BYTES, Damage, Members, compression_of
from retro_db.corpus.hub import failures
from retro_db.corpus.listing import InputFile, filesystem_of
from retro_db.errors import CorpusError, ExecutionError
from retro_db.store.folder import READ_AHEAD


class Content(io.BufferedReader):
    """The bytes of a file, decompressed if need be. They end where the file ends, or at damage."""

    @property
    def damage(self) -> Damage | None:
        """What ended the bytes, if damage did; more of them may still wait in the buffer."""
        return cast(Any, self.raw).damage

    @property
    def sound(self) -> int:
        """Bytes of the file whose content was given so far."""
        return int(cast(Any, self.raw).sound)

    def resume(self) -> bool:
        """Goes on behind the damage; False if nothing is there that can be read."""
        return bool(cast(Any, self.raw).resume())


@contextlib.contextmanager
def open_raw(
    file: InputFile, report: Callable[[int], None] = lambda count: None
) -> Iterator[Content]:
    """Opens a file for buffered reading, without decompressing it: the one that was planned, unchanged.

    Args:
        file: File to open.
        report: Called with the number of bytes of each read.

    Yields:
        The file; what is read of it means nothing if leaving the block raises an error.

    Raises:
        CorpusError: The file vanished, may not be read, or is not what it was when the build was planned.
        ExecutionError: Reading failed in a way that may pass.
    """
    with contextlib.ExitStack() as resources:
        try:
            opened, looked_at = _open(file, resources)
        except FileNotFoundError as error:
            raise CorpusError(
                f"{file.url}: vanished since the build was planned; restore it"
            ) from error
        except PermissionError as error:
            raise CorpusError(f"{file.url}: no permission to read it; grant it") from error
        except failures(file.url.partition("://")[0]) as error:
            raise _unread(file.url, error) from error
        raw = Content(_Counted(opened, file.url, report), BLOCK)
        resources.enter_context(raw)
        _expect_same(file, looked_at())
        try:
            yield raw
        except Exception:
            # What reads as damage may be a change.
            _expect_same(file, looked_at())
            raise
        _expect_same(file, looked_at())


def _open(
    file: InputFile, resources: contextlib.ExitStack
) -> tuple[Any, Callable[[], dict[str, Any]]]:
    """The open file, and what tells which file that is, also once others have closed it."""
    fs, path = filesystem_of(file.url)
    if not isinstance(fs, LocalFileSystem):
        remote = fs.open(path, "rb", block_size=READ_AHEAD)
        return remote, lambda: getattr(remote, "details", None) or {}
    # Without waiting for a writer, should a pipe have taken the file's place.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    resources.callback(os.close, descriptor)
    return os.fdopen(os.dup(descriptor), "rb", buffering=0), lambda: _status(descriptor)


def _status(descriptor: int) -> dict[str, Any]:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return {"size": -1}
    return {"size": status.st_size, "mtime": status.st_mtime}


def _expect_same(file: InputFile, entry: dict[str, Any]) -> None:
    if not file.is_same(entry):
        raise CorpusError(
            f"{file.url}: changed since the build was planned; run the same command again, and leave the "
            "files of the corpus as they are meanwhile"
        )


def _unread(url: str, error: Exception) -> ExecutionError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ExecutionError(f"{url}: cannot be read: {reason}; run the same command again")


def decompressed(raw: Content, name: str, *, is_trusted: bool = False) -> Content:
    """The content of a file, decompressed if need be.

    Args:
        raw: File, at its first byte or at the first byte of a member.
        name: Name of the file, which decides the compression, or else the content does.
        is_trusted: Whether content is given before its checksum is known, as for reading a beginning.

    Returns:
        A stream whose bytes end at the end of the file, or at damage.
    """
    kind = compression_of(name, raw.peek(MAGIC_BYTES))
    return raw if kind is None else Content(Members(raw, kind, is_trusted=is_trusted), BLOCK)


def arrow_file(raw: io.BufferedReader, size: int) -> pa.PythonFile:
    """A raw file for Arrow, whose readers may ask for any number of bytes if a length is damaged.

    Args:
        raw: File to read.
        size: Size of the file in bytes: no read allocates more.
    """
    return pa.PythonFile(_Capped(raw, size), "r")


class _Capped(io.RawIOBase):
    """A raw file whose reads are limited to the bytes before its end."""

    def __init__(self, raw: io.BufferedReader, size: int) -> None:
        self._raw = raw
        self._size = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._raw.tell(), 0)
        return self._raw.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()


class _Counted(io.RawIOBase):
    """A raw file that reports the bytes of each read; it has no checksum that could show damage."""

    damage = None

    def __init__(self, file: Any, url: str, report: Callable[[int], None]) -> None:
        self._file = file
        self._url = url
        self._failures = failures(url.partition("://")[0])
        self._report = report

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True  # every fsspec file is

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except self._failures as error:
            # A failing disk or network does not mean a damaged file: a retry may read it.
            raise _unread(self._url, error) from error
        buffer[: len(data)] = data
        self._report(len(data))
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    @property
    def sound(self) -> int:
        return self.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
