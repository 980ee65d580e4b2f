"""Cuts documents into chunks of m tokens that never cross a document's end (paper, section 2.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.config import Config
from retro_db.corpus.documents import Content, Document, Reject
from retro_db.corpus.reading import read_shard
from retro_db.corpus.selection import Tally, select
from retro_db.corpus.sharding import Shard
from retro_db.corpus.verdicts import Verdict
from retro_db.hashing import fraction_of
from retro_db.manifest.model import TRAIN, VALIDATION
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.writing import TableWriter
from retro_db.tokens.tokenizer import Tokenizer

# Enough for the tokenizer's threads, little beside the model of one worker.
_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class ChunkedPart:
    """One part: a file of chunks and a file of their documents.

    Attributes:
        chunks: File of the table `chunks`.
        documents: File of the table `documents`.
        tokens: Number of tokens in it, without padding.
        validation_chunks: Number of chunks of documents in the validation split.
    """

    chunks: TableEntry
    documents: TableEntry
    tokens: int
    validation_chunks: int


@dataclass(frozen=True)
class ChunkedShard:
    """What chunking a shard wrote and counted: read = documents kept + dropped + rejected.

    Attributes:
        number: Number of the shard.
        source: Name of the source.
        content: Hash (sha256) of the records that were read.
        parts: Parts of the shard in order; empty if it has no documents.
        read: Number of records in the input.
        dropped: Numbers of dropped documents by reason: fraction, name, leakage, duplicate.
        rejected: Numbers of bad records by reason.
        rejects: The first bad records, every damaged file, and the first documents that lack tokens.
        characters: Number of characters of the documents that were tokenized.
        lacking: Number of these for which the tokenizer has no token.
        left_out: Table of the documents dropped for their content; None if none was.
    """

    number: int
    source: str
    content: str
    parts: list[ChunkedPart]
    read: int
    dropped: dict[str, int]
    rejected: dict[str, int]
    rejects: list[Reject]
    characters: int
    lacking: int
    left_out: TableEntry | None = None


def chunk_documents(
    ids: Sequence[np.ndarray], chunk_tokens: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts documents into chunks from their first token on; the last chunk of each may be short.

    Args:
        ids: Token ids of each document, integer [t_i], t_i >= 0.
        chunk_tokens: Number of tokens in a chunk, m.
        pad_id: Id that fills short chunks.

    Returns:
        tokens [n, m] of the ids' dtype, lengths uint16 [n], and each document's number of chunks, int64 [D].
    """
    counts = np.array([-(-len(document) // chunk_tokens) for document in ids], dtype=np.int64)
    total = int(counts.sum())
    dtype = ids[0].dtype if ids else np.uint16
    tokens = np.full(total * chunk_tokens, pad_id, dtype=dtype)
    lengths = np.full(total, chunk_tokens, dtype=np.uint16)
    end = 0
    for document, count in zip(ids, counts.tolist(), strict=True):
        start, end = end, end + count
        tokens[start * chunk_tokens : start * chunk_tokens + len(document)] = document
        lengths[start:end][-1:] = len(document) - (count - 1) * chunk_tokens
    return tokens.reshape(total, chunk_tokens), lengths, counts


def split_of(document: Document, source: str, validation: float, seed: int) -> str:
    """The split of a document, chosen by its hash.

    Args:
        document: Document to assign.
        source: Name of its source.
        validation: Share of documents, 0 to 1, that is set apart.
        seed: Seed of the choice.

    Returns:
        `train` or `validation`.
    """
    in_validation = fraction_of("split", seed, source, document.identity) < validation
    return VALIDATION if in_validation else TRAIN


def chunk_shard(
    shard: Shard,
    config: Config,
    tokenizer: Tokenizer,
    folder: Folder,
    verdicts: Mapping[int, Verdict],
    report: Callable[[int], None],
) -> ChunkedShard:
    """Reads, tokenizes and cuts one shard, and writes its chunks and documents.

    Args:
        shard: Shard to read.
        config: Configuration of the build.
        tokenizer: Tokenizer of the language model.
        folder: Folder of the database.
        verdicts: Verdicts on the records to drop for their content, by record number.
        report: Called with the number of bytes of the files read since the last call.

    Returns:
        The files of every part and the counts of documents read, kept, dropped and rejected.

    Raises:
        CorpusError: A file vanished or cannot be opened.
    """
    tally, content = Tally(), Content()
    screened_out: list[tuple[str, Verdict]] = []
    records = content.watch(read_shard(shard, config.source(shard.source), report))
    selected = select(records, shard, config, tokenizer, tally)
    documents = _without_screened(selected, verdicts, tally, screened_out)
    parts = _write_parts(documents, shard, config, tokenizer, folder, tally)
    return ChunkedShard(
        number=shard.number,
        source=shard.source,
        content=content.sha256,
        parts=parts,
        read=tally.read,
        dropped=dict(tally.dropped),
        rejected=dict(tally.rejected),
        rejects=tally.rejects,
        characters=tally.characters,
        lacking=tally.lacking,
        left_out=_write_screened_out(screened_out, shard, folder) if screened_out else None,
    )


def _without_screened(
    selected: Iterable[tuple[int, Document]],
    verdicts: Mapping[int, Verdict],
    tally: Tally,
    screened_out: list[tuple[str, Verdict]],
) -> Iterator[Document]:
    """Documents without a verdict; the others are counted, and added to `screened_out` with their ids."""
    for number, document in selected:
        if verdict := verdicts.get(number):
            tally.dropped[verdict.reason] += 1
            screened_out.append((document.id, verdict))
        else:
            yield document


def _write_parts(
    documents: Iterable[Document],
    shard: Shard,
    config: Config,
    tokenizer: Tokenizer,
    folder: Folder,
    tally: Tally,
) -> list[ChunkedPart]:
    """Writes a shard's documents, beginning a new part once one has `chunk.part_rows` chunks."""
    # Batches are small beside a part, so that a part ends near its limit.
    characters = min(_BATCH_CHARACTERS, config.chunk.part_rows * config.chunk.tokens)
    batches = _batched(documents, characters)
    parts: list[ChunkedPart] = []
    batch = next(batches, None)
    while batch is not None:
        part = _Part(shard, len(parts), config, tokenizer, tally)
        with part.open(folder):
            while batch is not None and part.rows < config.chunk.part_rows:
                part.append(batch)
                batch = next(batches, None)
        parts.append(part.result)
    return parts


def _write_screened_out(
    screened_out: Sequence[tuple[str, Verdict]], shard: Shard, folder: Folder
) -> TableEntry:
    """Writes the ids of documents dropped for their content, and why, to the table `dropped`."""
    table = contract("dropped")
    path = table.name(shard.number, 0)
    with folder.writing(path) as file:
        with TableWriter(file, table.schema(), table.batch_rows, parquet=True) as writer:
            writer.append(
                {
                    "source": [shard.source] * len(screened_out),
                    "id": [document_id for document_id, _ in screened_out],
                    "reason": [verdict.reason for _, verdict in screened_out],
                    "by": [verdict.by for _, verdict in screened_out],
                    "similarity": np.array([verdict.similarity for _, verdict in screened_out]),
                }
            )
        return describe(file, path, len(screened_out))


def _batched(documents: Iterable[Document], limit: int) -> Iterator[list[Document]]:
    """Documents in batches of at most `limit` characters; a longer document is a batch alone."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        if batch and (len(batch) == _BATCH_DOCUMENTS or characters + document.size > limit):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += document.size
    if batch:
        yield batch


class _Part:
    """Writes the two files of one part, which get their names when the part is complete."""

    result: ChunkedPart

    def __init__(
        self, shard: Shard, number: int, config: Config, tokenizer: Tokenizer, tally: Tally
    ) -> None:
        self._shard = shard
        self._number = number
        self._config = config
        self._tokenizer = tokenizer
        self._tally = tally
        self._tokens = 0
        self._validation_chunks = 0

    @property
    def rows(self) -> int:
        """Number of chunks written so far."""
        return self._chunks.rows

    @contextlib.contextmanager
    def open(self, folder: Folder) -> Iterator[None]:
        """Opens both files; if the block ends without an error, commits them and sets `result`."""
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
        """Tokenizes and cuts a batch of documents, and writes its chunks and rows."""
        if len(batch) == 1 and batch[0].text is not None:
            counts = self._write_long(batch[0], batch[0].text)
        else:
            ids = self._encode(batch)
            counts = self._write(ids, self._documents.rows + np.arange(len(batch)))
        self._describe(batch, counts)

    def _encode(self, batch: list[Document]) -> list[np.ndarray]:
        lacking: list[int] = []
        with_text = [document for document in batch if document.text is not None]
        encoded = iter(self._tokenizer.encode([str(d.text) for d in with_text], lacking))
        for document, count in zip(with_text, lacking, strict=True):
            self._tally.tokenized(document, count)
        return [next(encoded) if document.tokens is None else document.tokens for document in batch]

    def _write_long(self, document: Document, text: str) -> np.ndarray:
        """Writes one document a segment at a time, and returns its number of chunks, int64 [1]."""
        chunk_tokens, first = self._config.chunk.tokens, self._chunks.rows
        row = np.array([self._documents.rows])
        rest = np.empty(0, self._tokenizer.token_type)
        lacking: list[int] = []
        for ids in self._tokenizer.encode_long(text, lacking):
            ids = np.concatenate([rest, ids])
            whole = len(ids) - len(ids) % chunk_tokens
            self._write([ids[:whole]], row)
            rest = ids[whole:]
        self._write([rest], row)
        self._tally.tokenized(document, sum(lacking))
        return np.array([self._chunks.rows - first])

    def _write(self, ids: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Cuts the ids of documents, given with their rows, and writes the chunks; returns their counts."""
        chunk_tokens, pad_id = self._config.chunk.tokens, self._tokenizer.pad_id
        tokens, lengths, counts = chunk_documents(ids, chunk_tokens, pad_id)
        self._chunks.append(
            {"tokens": tokens, "length": lengths, "document": np.repeat(rows, counts)}
        )
        self._tokens += int(lengths.sum(dtype=np.int64))
        return counts

    def _describe(self, batch: list[Document], counts: np.ndarray) -> None:
        """Writes the rows of a batch of documents, whose chunks were just written."""
        source, config = self._shard.source, self._config
        splits = [
            split_of(document, source, config.split.validation, config.seed) for document in batch
        ]
        first = self._chunks.rows - int(counts.sum())
        self._documents.append(
            {
                "source": [source] * len(batch),
                "id": [document.id for document in batch],
                "first_chunk": first + np.cumsum(counts) - counts,
                "chunk_count": counts,
                "split": splits,
            }
        )
        self._validation_chunks += int(counts[np.array(splits) == VALIDATION].sum())
