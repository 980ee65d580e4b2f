"""Documents, the rejects that replace bad records, and a hash of both."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Document:
    """One document: its text, or the tokens that the corpus stores.

    Attributes:
        file: Name of the file that holds it.
        offset: Position in the file: the byte of the decompressed content for JSON lines and text,
            else the row, from 0.
        id: Id that the record gives, or else its file and offset.
        identity: Value that choices by hash depend on: the id that the record gives, or the content.
        text: Text of the document; None if the corpus stores tokens.
        tokens: Token ids, integer [t]; None if the corpus stores text.
    """

    file: str
    offset: int
    id: str
    identity: str | bytes
    text: str | None = None
    tokens: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of characters of the text, or an estimate of it from the tokens."""
        return len(self.text) if self.text is not None else 4 * len(self.tokens)  # type: ignore[arg-type]

    def with_tokens(self, tokens: np.ndarray) -> Document:
        """A copy of the document with other tokens."""
        return dataclasses.replace(self, tokens=tokens)


@dataclass(frozen=True)
class Reject:
    """Consecutive records that cannot be used.

    Attributes:
        file: Name of the file that holds them.
        offset: Position of the first in the file, as for documents.
        reason: Category of the problem, by which rejects are counted.
        detail: Exact description of the problem.
        count: Number of records; 0 for a document that is used, but lost characters.
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
    """Hash of records as they are read: it shows whether a file that was touched has other content."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hash (sha256) of the records so far, in hexadecimal."""
        return self._hasher.hexdigest()

    def watch(self, records: Iterable[Document | Reject]) -> Iterator[Document | Reject]:
        """Passes records on, hashing each of them.

        Args:
            records: Records of one shard, in order.

        Yields:
            The same records.
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
