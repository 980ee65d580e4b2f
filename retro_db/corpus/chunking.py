"""Documents to chunks of m tokens, none of which crosses a document (paper, section 2.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.config import Config
from retro_db.corpus.documents import Content, Document, Reject
from retro_db.corpus.planning import Shard
from retro_db.corpus.reading import read_shard
from retro_db.corpus.selection import Tally, select
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
    """One pair of files: rows `chunks` and `documents`, and what they hold."""

    chunks: TableEntry
    documents: TableEntry
    tokens: int
    validation_chunks: int


@dataclass(frozen=True)
class ChunkedShard:
    """What became of a shard: read = documents kept + dropped + rejected.

    Attributes:
        number: Of the shard.
        source: Name of the corpus.
        content: The sha256 of what was read.
        parts: Its files in order; a shard without documents has none.
        read: Records in the input.
        dropped: Documents left out, by reason: fraction, name, leakage, duplicate.
        rejected: Bad records, by reason.
        rejects: The first of them.
        left_out: The table of documents left out for their content; None where there are none.
    """

    number: int
    source: str
    content: str
    parts: list[ChunkedPart]
    read: int
    dropped: dict[str, int]
    rejected: dict[str, int]
    rejects: list[Reject]
    left_out: TableEntry | None = None


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
        shard: What to read.
        config: Of the build.
        tokenizer: Of the language model.
        folder: The database.
        verdicts: Records, by number, that are left out for their content.
        report: Told, now and again, how many more bytes of the files are read.

    Returns:
        The files of every part and the counts of documents read, kept, dropped and rejected.

    Raises:
        CorpusError: A file vanished or cannot be opened.
    """
    source = next(source for source in config.corpus if source.name == shard.source)
    tally = Tally()
    left_out: list[tuple[str, Verdict]] = []
    content = Content()
    records = content.watch(read_shard(shard, source, report))
    selected = select(records, shard, config, tokenizer, tally)
    documents = _pass_over(selected, verdicts, tally, left_out)
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
                batch = next(batches, None)
        parts.append(part.result)
    return ChunkedShard(
        number=shard.number,
        source=shard.source,
        content=content.sha256,
        parts=parts,
        read=tally.read,
        dropped=dict(tally.dropped),
        rejected=dict(tally.rejected),
        rejects=tally.rejects,
        left_out=_write_left_out(left_out, shard, folder) if left_out else None,
    )


def _pass_over(
    selected: Iterable[tuple[int, Document]],
    verdicts: Mapping[int, Verdict],
    tally: Tally,
    left_out: list[tuple[str, Verdict]],
) -> Iterator[Document]:
    for number, document in selected:
        if verdict := verdicts.get(number):
            tally.dropped[verdict.reason] += 1
            left_out.append((document.id, verdict))
        else:
            yield document


def _write_left_out(
    left_out: Sequence[tuple[str, Verdict]], shard: Shard, folder: Folder
) -> TableEntry:
    table = contract("dropped")
    path = table.name(shard.number, 0)
    with folder.writing(path) as file:
        with TableWriter(file, table.schema(), table.batch_rows, parquet=True) as writer:
            writer.append(
                {
                    "source": [shard.source] * len(left_out),
                    "id": [name for name, _ in left_out],
                    "reason": [verdict.reason for _, verdict in left_out],
                    "by": [verdict.by for _, verdict in left_out],
                    "similarity": np.array([verdict.similarity for _, verdict in left_out]),
                }
            )
        return describe(file, path, len(left_out))


def _batched(documents: Iterable[Document], limit: int) -> Iterator[list[Document]]:
    """Documents gathered up to a limit of characters; a long one comes alone."""
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
        if len(batch) == 1 and batch[0].text is not None:
            counts = self._write_long(batch[0].text)
        else:
            ids = self._encode(batch)
            counts = self._write(ids, self._documents.rows + np.arange(len(batch)))
        self._describe(batch, counts)

    def _encode(self, batch: list[Document]) -> list[np.ndarray]:
        texts = [document.text for document in batch if document.text is not None]
        encoded = iter(self._tokenizer.encode(texts))
        return [next(encoded) if document.tokens is None else document.tokens for document in batch]

    def _write_long(self, text: str) -> np.ndarray:
        """Writes one document a segment at a time, and returns its number of chunks, int64 [1]."""
        m, first = self._config.chunk.tokens, self._chunks.rows
        row = np.array([self._documents.rows])
        rest = np.empty(0, self._tokenizer.token_type)
        for ids in self._tokenizer.encode_long(text):
            ids = np.concatenate([rest, ids])
            whole = len(ids) - len(ids) % m
            self._write([ids[:whole]], row)
            rest = ids[whole:]
        self._write([rest], row)
        return np.array([self._chunks.rows - first])

    def _write(self, ids: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Cuts token ids and writes the chunks of documents with these rows; returns their counts."""
        m, pad_id = self._config.chunk.tokens, self._tokenizer.pad_id
        tokens, lengths, counts = chunk_documents(ids, m, pad_id)
        self._chunks.append(
            {"tokens": tokens, "length": lengths, "document": np.repeat(rows, counts)}
        )
        self._tokens += int(lengths.sum(dtype=np.int64))
        return counts

    def _describe(self, batch: list[Document], counts: np.ndarray) -> None:
        """Writes the rows of documents whose chunks were just written."""
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
