"""Signatures: a file of documents' grams and band keys, to find and compare pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from retro_db.corpus.documents import Document
from retro_db.screening.grams import Bands, gram_hashes

_BATCH_CHARACTERS = 1_000_000
_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class Signed:
    """A document with its grams.

    Attributes:
        number: Number of the record in its shard.
        id: Id of the document.
        grams: Grams of the text, uint64 [g], g > 0.
    """

    number: int
    id: str
    grams: np.ndarray


def sign(
    documents: Iterable[tuple[int, Document]], text_of: Callable[[Document], str], words: int
) -> Iterator[list[Signed]]:
    """Documents with their grams, in batches, without documents that have no words to compare.

    Args:
        documents: Documents with the numbers of their records.
        text_of: Function that returns a document's text.
        words: Number of words in a gram.
    """
    batch: list[Signed] = []
    characters = 0
    for number, document in documents:
        grams = gram_hashes(text_of(document), words)
        if len(grams):
            batch.append(Signed(number, document.id, grams))
            characters += document.size
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class SignatureWriter:
    """Streams signatures into an Arrow file.

    Args:
        path: Path of a new local file.
        bands: Bands whose keys are written.
    """

    def __init__(self, path: Path, bands: Bands) -> None:
        self.rows = 0
        self._bands = bands
        self._schema = pa.schema(
            [
                pa.field("number", pa.int64()),
                pa.field("id", pa.string()),
                pa.field("grams", pa.large_list(pa.uint64())),
                pa.field("keys", pa.list_(pa.uint64(), bands.count)),
            ]
        )
        self._sink = pa.ipc.new_file(str(path), self._schema)

    def __enter__(self) -> SignatureWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sink.close()

    def append(self, batch: Sequence[Signed]) -> None:
        """Writes a batch of documents."""
        if not batch:
            return
        sets = [signed.grams for signed in batch]
        offsets = np.concatenate([[0], np.cumsum([len(grams) for grams in sets])])
        keys = self._bands.keys(sets)
        columns = [
            pa.array([signed.number for signed in batch], pa.int64()),
            pa.array([signed.id for signed in batch], pa.string()),
            pa.LargeListArray.from_arrays(offsets, np.concatenate(sets)),
            pa.FixedSizeListArray.from_arrays(pa.array(keys.reshape(-1)), self._bands.count),
        ]
        self._sink.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self.rows += len(batch)


class SignatureFile:
    """Signatures read through a memory map, by row.

    Args:
        path: Path of a local file that `SignatureWriter` wrote.
    """

    def __init__(self, path: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.numbers: np.ndarray = table["number"].to_numpy()
        keys = [chunk.flatten().to_numpy() for chunk in table["keys"].chunks]
        count = table.schema.field("keys").type.list_size
        self.keys = np.concatenate([np.empty(0, np.uint64), *keys]).reshape(-1, count)
        self._ids = table["id"]
        self._grams = table["grams"].chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._grams)])

    def __len__(self) -> int:
        return len(self.numbers)

    def id(self, row: int) -> str:
        """Id of the document in a row."""
        return str(self._ids[int(row)])

    def grams(self, row: int) -> np.ndarray:
        """Grams of the document in a row, uint64 [g]: a view of the file."""
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        column = self._grams[chunk]
        offsets = column.offsets[int(row - self._starts[chunk]) :][:2].to_pylist()
        return column.values.slice(offsets[0], offsets[1] - offsets[0]).to_numpy()
