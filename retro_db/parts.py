"""What the stages after chunking pass to one another: descriptors of parts, never payload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retro_db.database import open_files, open_table, read_documents
from retro_db.index.training import PartKeys
from retro_db.manifest import TRAIN, Tables
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

    def below(self, place: str) -> Part:
        """The same part, its files seen from further up."""
        embeddings = self.embeddings and self.embeddings.below(place)
        return replace(
            self,
            chunks=self.chunks.below(place),
            documents=self.documents.below(place),
            embeddings=embeddings,
        )

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


def contents_of(part: Part) -> tuple[str, str]:
    """Hashes of what the index is made of, for fingerprints: documents and keys."""
    return part.documents.sha256, part.keys_file.sha256


def load_documents(folder: Folder, part: Part) -> Documents:
    """The part's documents that have chunks.

    Args:
        folder: The database.
        part: Which part.

    Returns:
        Where each document's chunks are; each excludes itself.

    Raises:
        DamagedFileError: The documents file is missing.
    """
    table = read_documents(folder, part.documents, part.rows)
    counts = table["chunk_count"].to_numpy()
    starts, counts = table["first_chunk"].to_numpy()[counts > 0], counts[counts > 0]
    firsts = starts + part.first_id
    own = zip(firsts.tolist(), (firsts + counts).tolist(), strict=True)
    return Documents(starts, counts, [(ids,) for ids in own])


def load_queries(
    folder: Folder, part: Part, parts: Sequence[Part], named: Sequence[str]
) -> Documents:
    """Documents of a query corpus, which must not find documents of the database with their own id.

    Args:
        folder: The database.
        part: Which part of the query corpus.
        parts: All parts of the database.
        named: Sources of the database whose ids can be the queries' own: where both say which field
            names a document. Ids made of places in files agree by chance.

    Returns:
        Where each document's chunks are; each excludes the chunks of its namesakes.

    Raises:
        DamagedFileError: A documents file is missing.
    """
    wanted = pa.array(named, pa.string())
    table = read_documents(folder, part.documents, part.rows)
    table = table.filter(pc.greater(table["chunk_count"], 0))
    namesakes: dict[str, list[tuple[int, int]]] = {}
    for other in parts if named else ():
        held = read_documents(folder, other.documents, other.rows)
        held = held.filter(pc.is_in(held["source"], value_set=wanted))
        held = held.filter(pc.is_in(held["id"], value_set=table["id"].combine_chunks()))
        for row in held.to_pylist():
            first = other.first_id + row["first_chunk"]
            ranges = namesakes.setdefault(row["id"], [])
            ranges.append((first, first + row["chunk_count"]))
    exclude = [tuple(namesakes.get(name, ())) for name in table["id"].to_pylist()]
    starts, counts = table["first_chunk"].to_numpy(), table["chunk_count"].to_numpy()
    return Documents(starts, counts, exclude)


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


def listed_parts(tables: Tables) -> list[Part]:
    """The parts of a finished database, or of a query corpus in it.

    Args:
        tables: As its manifest lists them, with embeddings.

    Returns:
        Every part in order, numbered anew.
    """
    parts: list[Part] = []
    first_id = 0
    files = zip(tables.chunks, tables.documents, tables.embeddings, strict=True)
    for number, (chunks, documents, embeddings) in enumerate(files):
        parts.append(Part(number, 0, first_id, chunks, documents, embeddings))
        first_id += chunks.rows or 0
    return parts
