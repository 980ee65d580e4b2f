"""The content of the manifest: the one file that makes a folder a database, written last and whole."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from retro_db.store.folder import FileEntry, TableEntry
from retro_db.store.serialize import digest, to_json

FORMAT = "retro-db"
VERSION = "1.5"
Pooling = Literal[
    "mean",
    "mean_without_special",
    "cls",
    "max",
    "last_token",
    "weighted_mean",
    "mean_sqrt_len",
]
POOLINGS: tuple[str, ...] = get_args(Pooling)
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class SourceCounts:
    """Counts of one corpus: `read` = `documents` + `dropped` + `rejected`.

    Attributes:
        name: Name of the corpus.
        weight: Sampling weight in training.
        read: Records in its files.
        documents: Documents that are in the database.
        chunks: Chunks of these documents.
        tokens: Tokens of these documents, without padding.
        dropped: Good documents that the build dropped.
        rejected: Bad records.
        dropped_by: Dropped documents by reason: fraction, name, leakage, duplicate.
        rejected_by: Rejected records by reason.
        characters_without_token: Characters of these documents for which the tokenizer has no token.
    """

    name: str
    weight: float
    read: int
    documents: int
    chunks: int
    tokens: int
    dropped: int
    rejected: int
    dropped_by: dict[str, int] = field(default_factory=dict)
    rejected_by: dict[str, int] = field(default_factory=dict)
    characters_without_token: int = 0


@dataclass(frozen=True)
class Counts:
    """Totals over all sources.

    Attributes:
        documents: Kept documents, rows of the documents table.
        chunks: Rows of the chunks table; ids are 0 to chunks - 1.
        tokens: Tokens without padding.
        validation_chunks: Chunks of the validation split, which have neighbors but are never neighbors.
        keyless_chunks: Chunks without an embedding, such as those without any WordPiece: not indexed, without
            neighbors.
        indexed_chunks: Entries of the index.
        short_rows: Chunks with an embedding that have fewer than k neighbors stored.
        removed_documents: Documents that were removed after the build: readers skip them.
        removed_chunks: Chunks of these documents.
    """

    documents: int
    chunks: int
    tokens: int
    validation_chunks: int
    keyless_chunks: int
    indexed_chunks: int
    short_rows: int
    removed_documents: int = 0
    removed_chunks: int = 0


@dataclass(frozen=True)
class ChunkInfo:
    """Chunk length in tokens, stored token type, the id that pads, and the tokenizer's vocabulary."""

    tokens: int
    token_type: str
    pad_id: int
    vocab_size: int


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer: hash of `tokenizer/tokenizer.json` or `tokenizer/tokenizer.model`."""

    sha256: str


@dataclass(frozen=True)
class EncoderInfo:
    """The frozen encoder.

    Attributes:
        model: Folder without its path, or hub name.
        sha256: Hash of its weights, configuration and tokenizer, and of what else its folder says.
        dimension: d, the length of an embedding.
        pooling: How token vectors become an embedding, such as mean or cls.
        max_length: Most tokens of a text.
        dtype: Type that it computes in.
        device: Type of device that it ran on.
        batch_tokens: Tokens of a batch: with the same number, the same device gives the same bytes.
        prompt: Text put before every chunk.
        pools_prompt: Whether the prompt's own tokens are pooled with the others.
        dense: Folders, in the model's, of the dense layers behind the pooling, in order.
        normalize: Whether an embedding is scaled to length 1.
        equal_lengths: Whether a batch has texts of one length, as padding would change their embeddings.
        identity: Which files `sha256` covers: 1, those of the transformer alone, as up to format 1.4; 2, all
            that the model's folder says too.
    """

    model: str
    sha256: str
    dimension: int
    pooling: str
    max_length: int
    dtype: str
    device: str
    batch_tokens: int | None = None
    prompt: str = ""
    pools_prompt: bool = True
    dense: list[str] = field(default_factory=list)
    normalize: bool = False
    equal_lengths: bool = False
    identity: int = 1

    @property
    def rule(self) -> str:
        """How a text becomes an embedding, in words."""
        words = [f"{self.pooling} of at most {self.max_length} WordPieces"]
        words += [f"dense layer {path}" for path in self.dense]
        words += ["normalized"] if self.normalize else []
        words += [f"prompt {self.prompt!r}"] if self.prompt else []
        words += ["batches of equal length"] if self.equal_lengths else []
        return ", ".join(words)


@dataclass(frozen=True)
class RecallPoint:
    """Recall@10 against exact search over other documents, measured with one way of searching.

    Attributes:
        nprobe: Lists visited.
        recall: Mean over the sampled queries.
        lower_bound: Lower bound of the mean, one-sided, 99%; the mean itself if all chunks were queries.
        rerank: Candidates re-ranked.
        ef_search: Breadth of the search among centroids; None if they have no graph.
        distinct_recall: Mean over the queries without copies, of which `lower_bound` speaks; None in
            databases of format 1.3, whose copies count.
    """

    nprobe: int
    recall: float
    lower_bound: float
    rerank: int = 200
    ef_search: int | None = None
    distinct_recall: float | None = None


@dataclass(frozen=True)
class JoinPoint:
    """Recall@10 of stored neighbors that were found in a number of lists.

    Attributes:
        nprobe: Lists visited.
        recall: Mean over the sampled queries.
        distinct_recall: Mean over the queries without copies.
        lower_bound: Lower bound of the latter, one-sided, 99%; the mean itself if all chunks were queries.
    """

    nprobe: int
    recall: float
    distinct_recall: float
    lower_bound: float


@dataclass(frozen=True)
class IndexInfo:
    """The index and how it is searched.

    Attributes:
        key: Index key as trained: optional transform, coarse quantizer, codes. A trailing `fs` means that the
            4-bit codes are stored plain and become FastScan when loaded.
        lists: Inverted lists.
        partitions: Files of inverted lists.
        nprobe: Lists visited for a query.
        rerank: Candidates of other documents whose exact distances are computed.
        ef_search: Breadth of the search among centroids; None if they have no graph.
        training_points: Embeddings that trained it.
        template_sha256: Hash of `index/trained.faissindex`.
        recall_queries: Queries that the curve was measured with.
        recall: Measured curve; its last point belongs to the settings above.
        fine_size: Bytes of a fine code; 0 if embeddings were kept.
    """

    key: str
    lists: int
    partitions: int
    nprobe: int
    rerank: int
    training_points: int
    template_sha256: str
    recall_queries: int
    recall: list[RecallPoint]
    ef_search: int | None = None
    fine_size: int = 0


@dataclass(frozen=True)
class NeighborsInfo:
    """The stored neighbors, and how they were found.

    Attributes:
        k: Number of neighbors of a chunk.
        nprobe: Lists that a chunk visited, or twice, four times as many where they held fewer than k; 0 if
            neighbors were searched for in the index, as format 1.3 has it.
        recall: Measured curve; its last point belongs to `nprobe`.
    """

    k: int
    nprobe: int = 0
    recall: list[JoinPoint] = field(default_factory=list)


@dataclass(frozen=True)
class Tables:
    """Files of every table, in reading order.

    `embeddings` is empty if they were not kept, `fine` if they were. The files of `dropped`, `removed` and
    `renumbered` do not belong to parts: the tables are empty if no document was dropped for its content,
    if none was removed, and if the database was not compacted.
    """

    documents: list[TableEntry]
    chunks: list[TableEntry]
    embeddings: list[TableEntry]
    neighbors: list[TableEntry]
    dropped: list[TableEntry] = field(default_factory=list)
    fine: list[TableEntry] = field(default_factory=list)
    removed: list[TableEntry] = field(default_factory=list)
    renumbered: list[TableEntry] = field(default_factory=list)

    @property
    def files(self) -> list[TableEntry]:
        """The files of all tables."""
        return [file for table in TABLES for file in getattr(self, table)]


TABLES = tuple(table.name for table in dataclasses.fields(Tables))
QUERIES = "queries"
# The dataset card, which belongs to people, not to the database.
CARD = "README.md"


def query_path(name: str) -> str:
    """Path of a query corpus in the database folder."""
    return f"{QUERIES}/{name}"


@dataclass(frozen=True)
class QueryCorpus:
    """A further corpus whose chunks have neighbors in the database but are never neighbors.

    Attributes:
        source: Its name and its counts.
        keyless_chunks: Chunks without an embedding.
        short_rows: Chunks with an embedding that have fewer than k neighbors.
        tables: Its files, under `queries/<name>/`; chunk ids count from 0 in them.
    """

    source: SourceCounts
    keyless_chunks: int
    short_rows: int
    tables: Tables


@dataclass(frozen=True)
class Manifest:
    """Everything that a reader may trust: counts, identities, settings and files.

    It has no absolute path, clock time, runner or worker count: equal builds have equal bytes.
    """

    counts: Counts
    sources: list[SourceCounts]
    chunk: ChunkInfo
    tokenizer: TokenizerInfo
    encoder: EncoderInfo
    index: IndexInfo
    neighbors: NeighborsInfo
    config: dict[str, Any]
    tables: Tables
    index_files: list[FileEntry]
    tokenizer_files: list[FileEntry]
    queries: list[QueryCorpus] = field(default_factory=list)
    generation: int = 1
    parent: str | None = None
    format: str = FORMAT
    version: str = VERSION
    sha256: str = field(default="")

    @property
    def files(self) -> list[FileEntry]:
        """Every file of the database except the manifest."""
        queried = [file for query in self.queries for file in query.tables.files]
        return [*self.tables.files, *self.index_files, *self.tokenizer_files, *queried]

    @property
    def files_by_table(self) -> dict[str, list[FileEntry]]:
        """The same files by table, then those of the index, of the tokenizer and of all query corpora."""
        return {
            **{table: getattr(self.tables, table) for table in TABLES},
            "index": self.index_files,
            "tokenizer": self.tokenizer_files,
            QUERIES: [file for query in self.queries for file in query.tables.files],
        }

    def setting(self, name: str) -> Any:
        """The recorded value of a setting; None if there is none.

        Args:
            name: Name in the configuration, such as `chunk.tokens`.
        """
        value: Any = self.config
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def template_file(self) -> FileEntry:
        """The trained index without entries."""
        return self.index_files[0]

    @property
    def partition_files(self) -> list[FileEntry]:
        """The index partitions: ranges of inverted lists, in order."""
        return self.index_files[len(self.index_files) - self.index.partitions :]

    @property
    def type_parameters(self) -> dict[str, str | int]:
        """Values for the parameters in the contracts' column types."""
        return {
            "token_type": self.chunk.token_type,
            "chunk_tokens": self.chunk.tokens,
            "dimension": self.encoder.dimension,
            "k": self.neighbors.k,
            "fine_size": self.index.fine_size,
        }

    def sealed(self) -> Manifest:
        """The manifest with its sha256, computed over its canonical JSON without that field."""
        return dataclasses.replace(self, sha256=digest(without_seal(to_json(self))))


def without_seal(data: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a manifest without its sha256, over which that hash is computed."""
    return {key: value for key, value in data.items() if key != "sha256"}
