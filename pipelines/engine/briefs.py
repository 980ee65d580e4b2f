"""What workers need to know, in files of the database: a pipeline names the files, however long they are.

A job may name every part of a database, and a stage has as many tasks as there are shards. At 30,000 of
them that is tens of megabytes, and Dataflow takes 10 MB to describe a pipeline
(https://docs.cloud.google.com/dataflow/docs/request-quotas).
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from retro_db.errors import DamagedFileError
from retro_db.store.folder import Folder

from .beam import beam

BRIEFS = "state/briefs"


@dataclass(frozen=True)
class Brief:
    """Values for workers, pickled one after another into one file.

    Attributes:
        folder: Folder of the file.
        name: Name of the file.
        sha256: Hash of its bytes: only what the driver wrote is unpickled.
    """

    folder: Folder
    name: str
    sha256: str

    @classmethod
    def write(cls, folder: Folder, name: str, values: Iterable[object]) -> Brief:
        """Writes the file.

        Args:
            folder: The database, or a folder in it.
            name: Name of the file, which replaces an earlier one.
            values: Values for the workers.
        """
        data = b"".join(pickle.dumps(value) for value in values)
        folder.write(f"{BRIEFS}/{name}", data)
        return cls(folder, name, hashlib.sha256(data).hexdigest())

    def read(self) -> Iterator[Any]:
        """The values, in order.

        Raises:
            DamagedFileError: The file is not the one that was written.
        """
        data = self.folder.read(f"{BRIEFS}/{self.name}")
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DamagedFileError(
                f"{self.folder.url}: {BRIEFS}/{self.name} was changed by others; build again"
            )
        stream = io.BytesIO(data)
        while stream.tell() < len(data):
            yield pickle.load(stream)  # noqa: S301 - the driver's own bytes, by their hash


@dataclass
class ReadBrief(beam.PTransform):
    """The values of a brief as a collection.

    Args:
        brief: The brief to read.
    """

    brief: Brief

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """One worker reads; what follows spreads the values."""
        return (
            pipeline
            | "Start" >> beam.Impulse()
            | "Read" >> beam.FlatMap(_read, self.brief).with_output_types(Any)
        )


def _read(_: bytes, brief: Brief) -> Iterator[Any]:
    return brief.read()
