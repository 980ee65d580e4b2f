"""Bytes of a file on any fsspec filesystem, asked for range by range."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from fsspec import AbstractFileSystem


class RawRange(io.RawIOBase):
    """Bytes start to stop - 1 of a file: each read is a request for what is read, and for nothing behind.

    Args:
        fs: The filesystem.
        path: Path of the file.
        start: First byte.
        stop: One after the last byte.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, start: int, stop: int) -> None:
        self._fs = fs
        self._path = path
        self._next = start
        self._stop = stop

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills a buffer, as far as there are bytes."""
        view = memoryview(buffer)
        end = min(self._next + len(view), self._stop)
        if end == self._next:
            return 0
        content = self._fs.cat_file(self._path, start=self._next, end=end)
        view[: len(content)] = content
        self._next += len(content)
        return len(content)
