"""The documents of a database as corpora of Megatron-LM: one .bin and .idx for each source.

Megatron's trainer cuts samples from tokens, wherever documents begin. So that every chunk of a sample is a
chunk of the database, every document is filled up to whole chunks with the token that ends it, at least once:
a document of whole chunks is followed by a chunk of this token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from retro_db.corpus.formats.megatron import HEADER, MAGIC, TOKEN_TYPES
from retro_db.errors import InputError
from retro_db.manifest.model import TRAIN, VALIDATION
from retro_db.reader.database import Database
from retro_db.reader.mapped import mapped_zeros
from retro_db.reader.sequences import chosen_documents
from retro_db.reader.stored_chunks import Chunks
from retro_db.store.folder import Folder

SPLITS = (TRAIN, VALIDATION)
# Chunks written at a time: some megabytes.
_PIECE = 1 << 16


@dataclass(frozen=True)
class Documents:
    """The documents of one split of a corpus, in the order of its .idx.

    Attributes:
        firsts: Id of the first chunk of each document, int64 [d].
        tokens: Number of tokens of each document, int64 [d].
        rows: Number of chunks that each document takes with its end, int64 [d]; 0 for an empty document,
            which only makes up the numbers.
    """

    firsts: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray

    @classmethod
    def room(cls, count: int) -> Documents:
        """Returns `count` empty documents, in files, so that memory does not grow with the database."""
        return cls(*(mapped_zeros(np.int64, count) for _ in range(3)))

    def __len__(self) -> int:
        return len(self.firsts)


@dataclass(frozen=True)
class Run:
    """Documents of one corpus and split that follow one another in the database.

    Attributes:
        corpus: Number of the corpus.
        numbers: Numbers of the documents in the corpus, int64 [d].
        firsts: Id of the first chunk of each document, int64 [d].
        counts: Number of chunks of each document, int64 [d].
        tokens: Number of tokens of each document, int64 [d].
        rows: Number of chunks that each document takes with its end, int64 [d].
    """

    corpus: int
    numbers: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class ExportedSource:
    """One source with its number, its sampling weight, and its documents by split."""

    number: int
    name: str
    weight: float
    documents: dict[str, Documents]

    @property
    def prefix(self) -> str:
        """Prefix of the names of its files in the folder `data`."""
        return f"corpus-{self.number:03d}"

    def chunks(self, split: str, chunk_tokens: int) -> int:
        """Returns the number of its chunks of the database in a split."""
        return int((-(-self.documents[split].tokens // chunk_tokens)).sum())


class Corpora:
    """All sources that have documents, without removed documents.

    Attributes:
        sources: Sources in the manifest's order.
        splits: Splits that have documents.
        shares: Documents of each split, in whose proportion Megatron divides every corpus: its `--split`.

    Args:
        database: Database to export.
        splits: Splits to export.

    Raises:
        InputError: The database has no training text, or a source lacks a split that others have.
        DamagedFileError: A file is missing, or disagrees with the manifest.
    """

    def __init__(self, database: Database, splits: Sequence[str]) -> None:
        self._database = database
        self._chunk_tokens = database.manifest.chunk.tokens
        counts = self._count(splits)
        totals = {split: sum(by_split[split] for by_split in counts.values()) for split in splits}
        self.splits = [split for split in splits if totals[split]]
        self._check(counts)
        self.shares = f"{totals[TRAIN]},{totals.get(VALIDATION, 0)},0"
        rooms = balanced(
            [[by_split[split] for split in self.splits] for by_split in counts.values()]
        )
        weights = {source.name: source.weight for source in database.manifest.sources}
        self.sources = [
            ExportedSource(
                number,
                name,
                weights[name],
                {
                    split: Documents.room(size)
                    for split, size in zip(self.splits, room, strict=True)
                },
            )
            for number, (name, room) in enumerate(zip(counts, rooms, strict=True))
        ]
        for split in self.splits:
            self._fill(split)

    def _count(self, splits: Sequence[str]) -> dict[str, dict[str, int]]:
        """Counts documents by source, then by split."""
        sources = self._database.manifest.sources
        counts = {source.name: dict.fromkeys(splits, 0) for source in sources}
        for split in splits:
            for source, firsts, _ in chosen_documents(self._database, split):
                counts[source][split] += len(firsts)
        return {source: by_split for source, by_split in counts.items() if any(by_split.values())}

    def _check(self, counts: dict[str, dict[str, int]]) -> None:
        url = self._database.folder.url
        if TRAIN not in self.splits:
            raise InputError(
                f"{url}: has no training text to export: all was removed, or is of the validation split"
            )
        for split in self.splits:
            for source, by_split in counts.items():
                if not by_split[split]:
                    raise InputError(
                        f"{url}: the source {source} has no {split} document, and Megatron draws from "
                        "every source in both splits; export training text alone, by --eval-iters 0"
                    )

    def _fill(self, split: str) -> None:
        """Notes where the documents of a split are."""
        for run in self.runs(split):
            documents = self.sources[run.corpus].documents[split]
            positions = run.numbers - self._before(run.corpus, split)
            documents.firsts[positions] = run.firsts
            documents.tokens[positions] = run.tokens
            documents.rows[positions] = run.rows

    def _before(self, corpus: int, split: str) -> int:
        """Returns the number of a corpus's documents before the first document of a split."""
        return 0 if split == TRAIN else len(self.sources[corpus].documents[TRAIN])

    def runs(self, split: str) -> Iterator[Run]:
        """Yields all documents of a split, in the database's order."""
        m, chunks = self._chunk_tokens, self._database.chunks
        numbers = {source.name: source.number for source in self.sources}
        nexts = {source.name: self._before(source.number, split) for source in self.sources}
        for source, firsts, counts in chosen_documents(self._database, split):
            tokens = (counts - 1) * m + chunks.lengths(firsts + counts - 1).astype(np.int64)
            positions = nexts[source] + np.arange(len(firsts))
            yield Run(numbers[source], positions, firsts, counts, tokens, tokens // m + 1)
            nexts[source] += len(firsts)

    def write(
        self, source: ExportedSource, end: int, folder: Folder, report: Callable[[int], None]
    ) -> None:
        """Writes the .bin and .idx of a source: training documents, then validation documents.

        Args:
            source: Source to write.
            end: Id of the token that ends documents.
            folder: Folder of the project.
            report: Called with the number of chunks written since the last call.
        """
        kind = np.dtype(self._database.manifest.chunk.token_type)
        data = f"data/{source.prefix}"
        with folder.writing(f"{data}.bin") as path, path.open("wb") as file:
            for documents in source.documents.values():
                line = Line(documents, self._chunk_tokens)
                for start in range(0, len(line), _PIECE):
                    places = line.at(np.arange(start, min(start + _PIECE, len(line))))
                    tokens = _ended(self._database.chunks, places.ids, self._chunk_tokens, end)
                    file.write(tokens.astype(kind).tobytes())
                    report(len(tokens))
        sizes = [documents.rows * self._chunk_tokens for documents in source.documents.values()]
        with folder.writing(f"{data}.idx") as path, path.open("wb") as file:
            _write_index(file, kind, sizes)


@dataclass(frozen=True)
class Places:
    """The content of some places of a corpus.

    Attributes:
        ids: Ids of chunks, int64; -1 where the end of a document fills a whole chunk.
        firsts: First chunk of the document that each place belongs to, int64.
    """

    ids: np.ndarray
    firsts: np.ndarray


class Line:
    """Documents one after another, counted in chunks.

    Args:
        documents: Documents of the line.
        chunk_tokens: Tokens of a chunk.
        order: Rows of `documents`, int32 [n]; the order of `documents` by default.
    """

    def __init__(
        self, documents: Documents, chunk_tokens: int, order: np.ndarray | None = None
    ) -> None:
        self._documents = documents
        self._chunk_tokens = chunk_tokens
        self._order = order
        self._ends = mapped_zeros(np.int64, len(documents) if order is None else len(order))
        if order is None:
            self._ends[:] = documents.rows
        else:
            np.take(documents.rows, order, out=self._ends, mode="clip")  # "raise" would copy
        np.cumsum(self._ends, out=self._ends)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, positions: np.ndarray) -> Places:
        """Returns the places at positions in chunks, int64 of any shape, each below the length."""
        slots = np.searchsorted(self._ends, positions, side="right")
        rows = slots if self._order is None else self._order[slots]
        firsts = self._documents.firsts[rows]
        offsets = positions - self._ends[slots] + self._documents.rows[rows]
        has_tokens = offsets * self._chunk_tokens < self._documents.tokens[rows]
        return Places(np.where(has_tokens, firsts + offsets, -1), firsts)


def balanced(counts: list[list[int]]) -> list[list[int]]:
    """Adds empty documents to corpora until one share divides each of them into its splits.

    Megatron divides every corpus by the same share, and rounds.

    Args:
        counts: Training and validation documents of each corpus, or training documents alone.

    Returns:
        The counts with empty documents, none below the count that was given.
    """
    totals = [sum(column) for column in zip(*counts, strict=True)]
    if len(totals) < len(SPLITS):
        return counts
    share = normalized(totals)[0]
    rooms = []
    for train, valid in counts:
        whole = max(round(train / share), round(valid / (1 - share)))
        training = round(share * whole)
        rooms.append([training, whole - training])
    return rooms


def normalized(weights: Sequence[float]) -> list[float]:
    """Divides weights by their sum, to the last bit as `normalize` in megatron/core/datasets/utils.py."""
    values = np.array(weights, np.float64)
    shares: list[float] = (values / values.sum()).tolist()
    return shares


def _ended(chunks: Chunks, ids: np.ndarray, chunk_tokens: int, end: int) -> np.ndarray:
    """Returns tokens of chunks, int64 [n, m]: `end` in place of padding, and where the id is -1."""
    stored = ids >= 0
    tokens = np.full((len(ids), chunk_tokens), end)
    inside = np.arange(chunk_tokens) < chunks.lengths(ids[stored])[:, None]
    tokens[stored] = np.where(inside, chunks[ids[stored]], end)
    return tokens


def _write_index(file: BinaryIO, kind: np.dtype, sizes: list[np.ndarray]) -> None:
    """Writes an .idx in which each document is one sequence.

    Args:
        file: File to write to.
        kind: Type of a token; uint32 is written as int32, since Megatron has no uint32, and no tokenizer has
            more tokens than int32 can number.
        sizes: Number of tokens of each document, one array after the other.
    """
    name = "<u2" if kind == np.uint16 else "<i4"
    code = next(code for code, known in TOKEN_TYPES.items() if known == name)
    count = sum(map(len, sizes))
    file.write(HEADER.pack(MAGIC, 1, code, count, count + 1))
    for lengths in sizes:
        file.write(lengths.astype("<i4").tobytes())
    begin = 0
    for lengths in sizes:
        ends = begin + np.cumsum(lengths) * kind.itemsize
        file.write((ends - lengths * kind.itemsize).astype("<i8").tobytes())
        begin = int(ends[-1])
    file.write(np.arange(count + 1, dtype="<i8").tobytes())
