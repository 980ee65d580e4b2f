"""The embeddings of parts, with what decides which of them are indexed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from retro_db.hashing import fractions_of
from retro_db.manifest.model import TRAIN
from retro_db.manifest.parts import Part
from retro_db.reader.opening import open_files, open_table, read_documents
from retro_db.store.embedded import is_embedded
from retro_db.store.folder import Folder
from retro_db.store.gathering import ColumnReader
from retro_db.store.tables import TableFile


@dataclass(frozen=True)
class PartEmbeddings:
    """One part's embeddings, and which of them may be anyone's neighbor.

    Attributes:
        first_id: Global id of the part's first chunk.
        embeddings: The part's embeddings file.
        in_training_split: bool [rows]; False for chunks outside the training split.
    """

    first_id: int
    embeddings: TableFile
    in_training_split: np.ndarray

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads what is indexed among rows start to stop - 1: row numbers int64 [n], float16 [n, d]."""
        embeddings = self.embeddings.read("vector", start, stop)
        indexed = np.flatnonzero(self.in_training_split[start:stop] & is_embedded(embeddings))
        return start + indexed, embeddings[indexed]

    def below(self, share: float, seed: int) -> Iterator[np.ndarray]:
        """Yields what is indexed and has a hash below a share: float16 [n, d], in the order of ids."""
        step = self.embeddings.batch_rows
        rows = np.flatnonzero(self.in_training_split)
        rows = rows[fractions_of(rows + self.first_id, seed) < share]
        for start in np.unique(rows // step) * step:
            chosen = rows[(rows >= start) & (rows < start + step)] - start
            embeddings = self.embeddings.read("vector", int(start), int(start) + step)[chosen]
            yield embeddings[is_embedded(embeddings)]


def in_training_split(documents: pa.Table) -> np.ndarray:
    """Says which chunks of a part are of training documents: bool [rows].

    Args:
        documents: The part's documents.
    """
    counts = documents["chunk_count"].to_numpy().astype(np.int64)
    return np.repeat(documents["split"].to_numpy() == TRAIN, counts)


def load_embeddings(folder: Folder, part: Part, dimension: int) -> PartEmbeddings:
    """Opens a part's embeddings, and reads which of them belong to training documents.

    Args:
        folder: The database.
        part: An embedded part.
        dimension: d.

    Returns:
        The embeddings, and a bool for each.

    Raises:
        DamagedFileError: A file is missing, or its size is not what was written.
    """
    [embeddings] = open_files(folder, [part.keys_file], "embeddings", {"dimension": dimension})
    table = read_documents(folder, part.documents, part.rows)
    return PartEmbeddings(part.first_id, embeddings, in_training_split(table))


def embedding_column(folder: Folder, parts: Sequence[Part], dimension: int) -> ColumnReader:
    """Opens the embeddings of all parts, by global id.

    Args:
        folder: The database.
        parts: All of its parts, in order.
        dimension: d.

    Returns:
        A reader of float16 [n, d].

    Raises:
        DamagedFileError: A file is missing, or its size is not what was written.
    """
    entries = [part.keys_file for part in parts]
    return open_table(folder, entries, "embeddings", {"dimension": dimension}).column("vector")
