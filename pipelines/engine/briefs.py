"""What workers need to know, in files of the database: a pipeline names the files, however long they are.

A job may name every part of a database, and a stage has as many tasks as there are shards. At 30,000 of
them that is tens of megabytes, and Dataflow takes 10 MB to describe a pipeline
(https://docs.cloud.google.com/dataflow/docs/request-quotas).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from retro_db.errors import DamagedFileError
from retro_db.store.folder import Folder

from .beam import beam

BRIEFS = "state/briefs"


@dataclass(frozen=True)
class Brief:
    """Values for workers, pickled one after another into one file.

    It is encrypted, as URLs of a corpus may carry credentials, and a driver that is killed leaves it behind.

    Attributes:
        folder: Folder of the file.
        name: Name of the file.
        key: Key that only the driver and its pipeline have: nothing else that lies there is unpickled.
    """

    folder: Folder
    name: str
    key: bytes

    @classmethod
    def write(cls, folder: Folder, name: str, values: Iterable[object]) -> Brief:
        """Writes the file.

        Args:
            folder: The database, or a folder in it.
            name: Name of the file, which replaces an earlier one.
            values: Values for the workers.
        """
        key = Fernet.generate_key()
        data = b"".join(pickle.dumps(value) for value in values)
        folder.write(f"{BRIEFS}/{name}", Fernet(key).encrypt(data))
        return cls(folder, name, key)

    def read(self) -> Iterator[Any]:
        """The values, in order.

        Raises:
            DamagedFileError: The file is not the one that was written.
        """
        try:
            data = Fernet(self.key).decrypt(self.folder.read(f"{BRIEFS}/{self.name}"))
        except InvalidToken as error:
            raise DamagedFileError(
                f"{self.folder.url}: {BRIEFS}/{self.name} was changed by others; build again"
            ) from error
        stream = io.BytesIO(data)
        while stream.tell() < len(data):
            yield pickle.load(stream)  # noqa: S301 - the driver's own bytes, by its key


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
