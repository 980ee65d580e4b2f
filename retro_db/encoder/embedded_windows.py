"""What of a part was embedded before a stop: whole windows in files of `state/`, until the part is whole."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from retro_db.errors import DamagedFileError
from retro_db.store.folder import Folder

PIECES = "state/embedding"
# A piece takes its name when one of them is reached: so much work is lost at most.
_SECONDS = 60.0
_BYTES = 500_000_000
# Behind the embeddings.
_HASH_BYTES = 32


class _NotNeededError(Exception):
    """A piece will not be needed."""


class Pieces:
    """Pieces of one part's embeddings, which continue one another; closing it drops the one under way.

    Whoever embeds the same part beside this process may write and remove the same files.

    Args:
        folder: Folder of the build.
        key: Text that differs where the embeddings may.
        dimension: d of the embeddings.
        window: Rows of a window; a piece has whole windows.
    """

    def __init__(self, folder: Folder, key: str, dimension: int, window: int) -> None:
        self._folder = folder
        self._place = f"{PIECES}/{key}"
        self._dimension = dimension
        self._window = window
        self._end = 0
        self._piece = contextlib.ExitStack()
        self._file: BinaryIO | None = None
        self._hasher = hashlib.sha256()
        self._begun = time.monotonic()

    def stored(self) -> Iterator[np.ndarray]:
        """The pieces of earlier runs in order, float16 [n, d] each, up to the first that is missing."""
        while (piece := self._read(self._end)) is not None:
            self._end += len(piece)
            yield piece

    def append(self, embeddings: np.ndarray) -> None:
        """Takes the next window, and ends the piece under way if it began long ago.

        Args:
            embeddings: float16 [n, d].
        """
        if self._file is None:
            path = self._piece.enter_context(self._folder.writing(self._path(self._end)))
            self._file = self._piece.enter_context(path.open("wb"))
            self._hasher = hashlib.sha256()
        data = embeddings.tobytes()
        self._file.write(data)
        self._hasher.update(data)
        self._end += len(embeddings)
        is_due = time.monotonic() - self._begun >= _SECONDS or self._file.tell() >= _BYTES
        # Behind a window that is not whole there is no more.
        if is_due and len(embeddings) == self._window:
            self._file.write(self._hasher.digest())
            self._file = None
            self._piece.close()
            self._begun = time.monotonic()

    def close(self) -> None:
        """Drops the piece under way."""
        self._file = None
        with contextlib.suppress(_NotNeededError), self._piece:
            raise _NotNeededError

    def remove(self) -> None:
        """Removes all pieces: the part is whole."""
        self._folder.remove(self._place)

    def _path(self, first: int) -> str:
        return f"{self._place}/{first:010d}"

    def _read(self, first: int) -> np.ndarray | None:
        try:
            with self._folder.streaming(self._path(first)) as file:
                data = file.read()
        except (DamagedFileError, FileNotFoundError):
            return None
        data, sha256 = data[:-_HASH_BYTES], data[-_HASH_BYTES:]
        rows, rest = divmod(len(data), 2 * self._dimension)
        if rest or rows == 0 or rows % self._window or hashlib.sha256(data).digest() != sha256:
            return None
        return np.frombuffer(data, np.float16).reshape(rows, self._dimension)
