"""What the stages after chunking pass to one another: descriptors of parts, never payload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from retro_db.database import open_table
from retro_db.index.training import PartKeys
from retro_db.manifest import TRAIN
from retro_db.neighbors import Documents
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.tables import ColumnReader


@dataclass(frozen=True)
class Part:
    """One part of the database on its way through the stages.

    Attributes:
        shard: The planned shard that it came from.
        number: Roll-over number within the shard.
        first_id: Global id of its first chunk.
        chunks: Its chunks file.
        documents: Its documents file.
        embeddings: Its embeddings file, once there is one.
    """

    shard: int
    number: int
    first_id: int
    chunks: FileEntry
    documents: FileEntry
    embeddings: FileEntry | None = None

    @property
    def name(self) -> str:
        """As in its file names."""
        return f"part-{self.shard:07d}-{self.number:04d}"

    @property
    def keys_file(self) -> FileEntry:
        """Its embeddings file, which the embed stage wrote.

        Raises:
            ValueError: There is none yet.
        """
        if self.embeddings is None:
            raise ValueError(f"{self.name} is not embedded yet")
        return self.embeddings

    @property
    def rows(self) -> int:
        """Its chunks."""
        return self.chunks.rows or 0


def load_documents(folder: Folder, part: Part) -> Documents:
    """The part's documents that have chunks.

    Args:
        folder: The database.
        part: Which part.

    Returns:
        Where each document's chunks are.

    Raises:
        DamagedFileError: The documents file is missing.
    """
    table = pq.read_table(folder.local(part.documents.path), columns=["first_chunk", "chunk_count"])
    counts = table["chunk_count"].to_numpy()
    return Documents(part.first_id, table["first_chunk"].to_numpy()[counts > 0], counts[counts > 0])


def load_keys(folder: Folder, part: Part, dimension: int) -> PartKeys:
    """The part's keys, and which of them are indexed: of training documents, with a WordPiece.

    Args:
        folder: The database.
        part: Which part; it must be embedded.
        dimension: d.

    Returns:
        The embeddings, and a bool for each.

    Raises:
        DamagedFileError: A file is missing, or of another size than was written.
    """
    [embeddings] = open_table(folder, [part.keys_file], "embeddings", {"dimension": dimension})
    table = pq.read_table(folder.local(part.documents.path), columns=["chunk_count", "split"])
    trained = np.repeat(
        table["split"].to_numpy() == TRAIN, table["chunk_count"].to_numpy().astype(np.int64)
    )
    step = embeddings.batch_rows
    keyed = [
        embeddings.read("vector", start, start + step).any(axis=1)
        for start in range(0, embeddings.rows, step)
    ]
    indexed = trained & np.concatenate([np.empty(0, bool), *keyed])
    return PartKeys(part.first_id, embeddings, indexed)


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
    return ColumnReader(
        open_table(folder, entries, "embeddings", {"dimension": dimension}), "vector"
    )
