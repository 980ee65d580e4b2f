"""The embeddings of parts, with what decides which of them are indexed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.index.structure import keyed
from retro_db.manifest.model import TRAIN
from retro_db.manifest.parts import Part
from retro_db.reader.opening import open_files, open_table, read_documents
from retro_db.store.folder import Folder
from retro_db.store.gathering import ColumnReader
from retro_db.store.tables import TableFile


@dataclass(frozen=True)
class PartKeys:
    """One part's keys, and which of them may be anyone's neighbor.

    Attributes:
        first_id: Global id of its first chunk.
        embeddings: The part's file.
        trained: bool [rows]; False for chunks outside the training split.
    """

    first_id: int
    embeddings: TableFile
    trained: np.ndarray

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """What is indexed among rows start to stop - 1: their numbers int64 [n], keys float16 [n, d]."""
        keys = self.embeddings.read("vector", start, stop)
        here = np.flatnonzero(self.trained[start:stop] & keyed(keys))
        return start + here, keys[here]


def load_keys(folder: Folder, part: Part, dimension: int) -> PartKeys:
    """The part's keys, and which of them are of training documents.

    Args:
        folder: The database.
        part: Which part; it must be embedded.
        dimension: d.

    Returns:
        The embeddings, and a bool for each.

    Raises:
        DamagedFileError: A file is missing, or of another size than was written.
    """
    [embeddings] = open_files(folder, [part.keys_file], "embeddings", {"dimension": dimension})
    table = read_documents(folder, part.documents, part.rows)
    trained = np.repeat(
        table["split"].to_numpy() == TRAIN, table["chunk_count"].to_numpy().astype(np.int64)
    )
    return PartKeys(part.first_id, embeddings, trained)


def key_column(folder: Folder, parts: Sequence[Part], dimension: int) -> ColumnReader:
    """The keys of all parts by global id.

    Args:
        folder: The database.
        parts: All of them, in order.
        dimension: d.

    Returns:
        A reader of float16 [n, d].

    Raises:
        DamagedFileError: A file is missing, or of another size than was written.
    """
    entries = [part.keys_file for part in parts]
    return open_table(folder, entries, "embeddings", {"dimension": dimension}).column("vector")
