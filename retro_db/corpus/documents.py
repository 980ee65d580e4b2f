"""Documents, and the rejects that stand in for bad records."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Document:
    """One document: its text, or the tokens that it was stored as.

    Attributes:
        file: Where it is.
        offset: Where in it: the byte of the decompressed content for JSON lines and text, else the
            row, from 0.
        id: Its own, or its place in the corpus.
        identity: What decides hashed choices: its own id, or its content.
        text: The text; None where it is tokens already.
        tokens: Token ids, integer [t]; None where it is text.
    """

    file: str
    offset: int
    id: str
    identity: str | bytes
    text: str | None = None
    tokens: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Characters of the text, or about as many for its tokens."""
        return len(self.text) if self.text is not None else 4 * len(self.tokens)  # type: ignore[arg-type]

    def with_tokens(self, tokens: np.ndarray) -> Document:
        """The same document with other tokens."""
        return dataclasses.replace(self, tokens=tokens)


@dataclass(frozen=True)
class Reject:
    """Records that cannot be used.

    Attributes:
        file: Where they are.
        offset: Where in it the first is, as for documents.
        reason: One of few, to be counted.
        detail: What exactly is wrong.
        count: How many.
    """

    file: str
    offset: int
    reason: str
    detail: str = ""
    count: int = 1

    def __str__(self) -> str:
        problem = f"{self.reason} ({self.detail})" if self.detail else self.reason
        return f"{self.file} at {self.offset}: {problem}"


class Content:
    """The sha256 of records as they are read: what decides where a file's time of change differs."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the records so far, in hexadecimal."""
        return self._hasher.hexdigest()

    def watch(self, records: Iterable[Document | Reject]) -> Iterator[Document | Reject]:
        """The same records, each hashed as it passes.

        Args:
            records: Of one shard, in order.

        Yields:
            Each of them.
        """
        for record in records:
            if isinstance(record, Reject):
                self._add(repr(record).encode("utf-8", "surrogatepass"))
            else:
                self._add(f"{record.file}\0{record.offset}\0{record.id}".encode(errors="replace"))
                if record.text is None:
                    self._add(np.ascontiguousarray(record.tokens).tobytes())
                else:
                    self._add(record.text.encode("utf-8", "surrogatepass"))
            yield record

    def _add(self, data: bytes) -> None:
        self._hasher.update(len(data).to_bytes(8, "little"))
        self._hasher.update(data)
