"""Parts of a database: descriptors that stages pass to one another instead of payload."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retro_db.manifest.model import Tables
from retro_db.store.folder import TableEntry


@dataclass(frozen=True)
class Part:
    """One part of the database on its way through the stages.

    Attributes:
        shard: Number of the planned shard that it came from.
        number: Roll-over number within the shard.
        first_id: Global id of its first chunk.
        chunks: Its chunks file.
        documents: Its documents file.
        embeddings: Its embeddings file; None before the embed stage has written it.
    """

    shard: int
    number: int
    first_id: int
    chunks: TableEntry
    documents: TableEntry
    embeddings: TableEntry | None = None

    @property
    def name(self) -> str:
        """Name of the part, as in its file names."""
        return f"part-{self.shard:07d}-{self.number:04d}"

    def below(self, place: str) -> Part:
        """The same part, the paths of its files relative to a folder further up; see `FileEntry.below`."""
        embeddings = self.embeddings and self.embeddings.below(place)
        return replace(
            self,
            chunks=self.chunks.below(place),
            documents=self.documents.below(place),
            embeddings=embeddings,
        )

    @property
    def keys_file(self) -> TableEntry:
        """Its embeddings file, which the embed stage wrote.

        Raises:
            ValueError: The part is not embedded yet.
        """
        if self.embeddings is None:
            raise ValueError(f"{self.name} is not embedded yet")
        return self.embeddings

    @property
    def rows(self) -> int:
        """Number of its chunks, the rows of its chunks file."""
        return self.chunks.rows


def contents_of(part: Part) -> tuple[str, str]:
    """Hashes of a part's documents and embeddings, of which the index is made, for fingerprints."""
    return part.documents.sha256, part.keys_file.sha256


def listed_parts(tables: Tables) -> list[Part]:
    """The parts of a finished database, or of a query corpus in it.

    Args:
        tables: Tables as its manifest lists them, with embeddings.

    Returns:
        Every part in order, as shards 0, 1, and so on.
    """
    parts: list[Part] = []
    first_id = 0
    files = zip(tables.chunks, tables.documents, tables.embeddings, strict=True)
    for number, (chunks, documents, embeddings) in enumerate(files):
        parts.append(Part(number, 0, first_id, chunks, documents, embeddings))
        first_id += chunks.rows
    return parts
