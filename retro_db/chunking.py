"""Documents to chunks of m tokens, none of which crosses a document (paper, section 2.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from retro_db.config import Config
from retro_db.corpus.planning import Shard
from retro_db.corpus.reading import Document, Reject, read_shard
from retro_db.hashing import fraction_of
from retro_db.manifest import TRAIN, VALIDATION
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.store.tables import TableWriter
from retro_db.tokenizer import Tokenizer

# Enough for the tokenizer's threads, little beside the model of one worker.
_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 4_000_000
_SAMPLED_REJECTS = 20


@dataclass(frozen=True)
class ChunkedPart:
    """One pair of files: rows `chunks` and `documents`, and what they hold."""

    chunks: FileEntry
    documents: FileEntry
    tokens: int
    validation_chunks: int


@dataclass(frozen=True)
class ChunkedShard:
    """What became of a shard: read = documents kept + dropped + rejected.

    Attributes:
        source: Name of the corpus.
        parts: Its files in order; a shard without documents has none.
        read: Records in the input.
        dropped: Documents left out by `fraction`.
        rejected: Bad records.
        rejects: The first of them.
    """

    source: str
    parts: list[ChunkedPart]
    read: int
    dropped: int
    rejected: int
    rejects: list[Reject] = field(default_factory=list)


def chunk_documents(
    ids: Sequence[np.ndarray], chunk_tokens: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts documents from their first token into chunks; the last one of each may be short.

    Args:
        ids: Token ids of each document, integer [t_i], t_i >= 0.
        chunk_tokens: m, tokens of a chunk.
        pad_id: Fills the rest of short chunks.

    Returns:
        tokens [n, m] of the ids' dtype, lengths uint16 [n], and chunks of each document int64 [D].
    """
    sizes = np.array([len(document) for document in ids], dtype=np.int64)
    counts = -(-sizes // chunk_tokens)
    total = int(counts.sum())
    dtype = ids[0].dtype if ids else np.uint16
    tokens = np.full(total * chunk_tokens, pad_id, dtype=dtype)
    lengths = np.full(total, chunk_tokens, dtype=np.uint16)
    if total:
        first_row = np.cumsum(counts) - counts
        shift = first_row * chunk_tokens - (np.cumsum(sizes) - sizes)
        tokens[np.arange(sizes.sum()) + np.repeat(shift, sizes)] = np.concatenate(ids)
        last_row = (first_row + counts - 1)[counts > 0]
        lengths[last_row] = (sizes - (counts - 1) * chunk_tokens)[counts > 0]
    return tokens.reshape(total, chunk_tokens), lengths, counts


def split_of(document: Document, source: str, validation: float, seed: int) -> str:
    """The split that a document's hash decides.

    Args:
        document: What is split.
        source: Name of its corpus.
        validation: Share of documents, 0 to 1, that is set apart.
        seed: Another seed, another choice.

    Returns:
        `train` or `validation`.
    """
    in_validation = fraction_of("split", seed, source, document.identity) < validation
    return VALIDATION if in_validation else TRAIN


def is_kept(document: Document, source: str, fraction: float, seed: int) -> bool:
    """Whether a document's hash lies in the source's share; larger shares contain smaller ones.

    Args:
        document: What is kept or dropped.
        source: Name of its corpus.
        fraction: Share of documents, 0 to 1, that is kept.
        seed: Another seed, another choice.

    Returns:
        True for about `fraction` of all documents.
    """
    return fraction >= 1.0 or fraction_of("keep", seed, source, document.identity) < fraction


def chunk_shard(
    shard: Shard,
    config: Config,
    tokenizer: Tokenizer,
    folder: Folder,
    report: Callable[[int], None],
) -> ChunkedShard:
    """Reads, tokenizes and cuts one shard, and writes its chunks and documents.

    Args:
        shard: What to read.
        config: Of the build.
        tokenizer: Of the language model.
        folder: The database.
        report: Told, now and again, how many more characters are done.

    Returns:
        The files of every part and the counts of documents read, kept, dropped and rejected.

    Raises:
        CorpusError: A file vanished or cannot be opened.
    """
    source = next(source for source in config.corpus if source.name == shard.source)
    tally = _Tally()
    documents = _kept(read_shard(shard, source), shard, config.seed, tally)
    parts: list[ChunkedPart] = []
    # Batches are small beside a part, so that a part ends near its limit.
    characters = min(_BATCH_CHARACTERS, config.chunk.part_rows * config.chunk.tokens)
    batches = _batched(documents, characters)
    batch = next(batches, None)
    while batch is not None:
        part = _Part(shard, len(parts), config, tokenizer)
        with part.open(folder):
            while batch is not None and part.rows < config.chunk.part_rows:
                part.append(batch)
                report(sum(len(document.text) for document in batch))
                batch = next(batches, None)
        parts.append(part.result)
    return ChunkedShard(
        source=shard.source,
        parts=parts,
        read=tally.read,
        dropped=tally.dropped,
        rejected=tally.rejected,
        rejects=tally.rejects,
    )


@dataclass
class _Tally:
    read: int = 0
    dropped: int = 0
    rejected: int = 0
    rejects: list[Reject] = field(default_factory=list)


def _kept(
    records: Iterable[Document | Reject], shard: Shard, seed: int, tally: _Tally
) -> Iterator[Document]:
    for record in records:
        tally.read += 1
        if isinstance(record, Reject):
            tally.rejected += 1
            if len(tally.rejects) < _SAMPLED_REJECTS:
                tally.rejects.append(record)
        elif is_kept(record, shard.source, shard.fraction, seed):
            yield record
        else:
            tally.dropped += 1


def _batched(documents: Iterable[Document], limit: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= limit:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Part:
    """The two files of one part being written; they take their names when it is closed."""

    result: ChunkedPart

    def __init__(self, shard: Shard, number: int, config: Config, tokenizer: Tokenizer) -> None:
        self._shard = shard
        self._number = number
        self._config = config
        self._tokenizer = tokenizer
        self._tokens = 0
        self._validation_chunks = 0

    @property
    def rows(self) -> int:
        """Chunks so far."""
        return self._chunks.rows

    @contextlib.contextmanager
    def open(self, folder: Folder) -> Iterator[None]:
        """Opens both files; on a good end describes them in `result` and commits them."""
        chunks, documents = contract("chunks"), contract("documents")
        chunks_path = chunks.name(self._shard.number, self._number)
        documents_path = documents.name(self._shard.number, self._number)
        schema = chunks.schema(
            token_type=self._tokenizer.token_type.name, chunk_tokens=self._config.chunk.tokens
        )
        with folder.writing(chunks_path) as chunks_file, folder.writing(documents_path) as file:
            with (
                TableWriter(chunks_file, schema, chunks.batch_rows) as self._chunks,
                TableWriter(
                    file, documents.schema(), documents.batch_rows, parquet=True
                ) as self._documents,
            ):
                yield
            self.result = ChunkedPart(
                chunks=describe(chunks_file, chunks_path, self._chunks.rows),
                documents=describe(file, documents_path, self._documents.rows),
                tokens=self._tokens,
                validation_chunks=self._validation_chunks,
            )

    def append(self, batch: list[Document]) -> None:
        """Tokenizes, cuts and writes documents."""
        config, source = self._config, self._shard.source
        ids = self._tokenizer.encode([document.text for document in batch])
        tokens, lengths, counts = chunk_documents(ids, config.chunk.tokens, self._tokenizer.pad_id)
        splits = [
            split_of(document, source, config.split.validation, config.seed) for document in batch
        ]
        first_chunks = self._chunks.rows + np.cumsum(counts) - counts
        rows = np.repeat(self._documents.rows + np.arange(len(batch)), counts)
        self._chunks.append({"tokens": tokens, "length": lengths, "document": rows})
        self._documents.append(
            {
                "source": [source] * len(batch),
                "id": [document.id for document in batch],
                "first_chunk": first_chunks,
                "chunk_count": counts,
                "split": splits,
            }
        )
        self._tokens += int(lengths.sum(dtype=np.int64))
        self._validation_chunks += int(counts[np.array(splits) == VALIDATION].sum())
