"""One part's chunks to its file of embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from retro_db.encoder.batching import Tokenized
from retro_db.encoder.chunk_texts import chunk_texts
from retro_db.encoder.embedded_windows import Pieces
from retro_db.encoder.encoder import Encoder
from retro_db.errors import ModelError
from retro_db.meter import Meter
from retro_db.store.contracts import contract
from retro_db.store.embedded import is_embedded
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.tables import TableFile
from retro_db.store.writing import TableWriter
from retro_db.tokens.tokenizer import Tokenizer

# Rows that batches are formed among: enough to sort by length, little to hold.
WINDOW_ROWS = 8192
Item = TypeVar("Item")


def embed_part(
    chunks: TableFile,
    path: str,
    encoder: Encoder,
    tokenizer: Tokenizer,
    folder: Folder,
    meter: Meter,
    *,
    pieces: Pieces,
    take: Callable[[int, np.ndarray], None] | None = None,
) -> tuple[TableEntry, int]:
    """Embeds every chunk of one file from its own text, ids decoded, and writes float16 embeddings.

    The windows that an earlier run embedded are taken from its pieces; the bytes are the same.

    Args:
        chunks: The part's chunks.
        path: Path of the embeddings file, relative to the folder.
        encoder: The encoder.
        tokenizer: The tokenizer that made the chunks' tokens.
        folder: The database.
        meter: Counts chunks, WordPieces, and seconds in `tokenize`, `device` and `write`.
        pieces: Keeps windows for a run that goes on after a stop.
        take: Called with the number of the first row and the stored embeddings of every window, if given.

    Returns:
        The file, and the number of its chunks without an embedding.

    Raises:
        ModelError: A value is not finite, or exceeds float16.
        DeviceMemoryError: A batch does not fit.
    """
    table = contract("embeddings")
    schema = table.schema(dimension=encoder.model.dimension)
    missing = row = 0
    with contextlib.closing(pieces), folder.writing(path) as temporary:
        with TableWriter(temporary, schema, table.batch_rows) as writer:
            for stored in _embedded(chunks, encoder, tokenizer, meter, pieces):
                with meter.timing("write"):
                    missing += int((~is_embedded(stored)).sum())
                    writer.append({"vector": stored})
                    if take:
                        take(row, stored)
                    row += len(stored)
        with meter.timing("write"):
            return describe(temporary, path, writer.rows), missing


def _embedded(
    chunks: TableFile, encoder: Encoder, tokenizer: Tokenizer, meter: Meter, pieces: Pieces
) -> Iterator[np.ndarray]:
    """The embeddings of all chunks in order, float16 [n, d] each: first those that earlier runs kept."""
    start = 0
    for stored in pieces.stored():
        start += len(stored)
        meter(len(stored))
        yield stored
    windows = tokenized_windows(chunks, encoder, tokenizer, meter, start)
    if encoder.device.ahead:
        windows = one_ahead(windows)
    for embeddings in encoder.encode_windows(windows, meter):
        with meter.timing("write"):
            stored = store_embeddings(embeddings)
            pieces.append(stored)
        yield stored


def tokenized_windows(
    chunks: TableFile, encoder: Encoder, tokenizer: Tokenizer, meter: Meter, first: int = 0
) -> Iterator[Tokenized]:
    """Tokenizes a part's chunks for the encoder, some thousand rows at a time.

    Args:
        chunks: One part's chunks.
        encoder: The encoder, which has its own WordPieces.
        tokenizer: The tokenizer that made the chunks' tokens.
        meter: Counts the seconds in `tokenize`.
        first: Row to begin with, the first of a window.

    Yields:
        Windows of consecutive rows.
    """
    for start in range(first, chunks.rows, WINDOW_ROWS):
        with meter.timing("tokenize"):
            texts = chunk_texts(chunks, tokenizer, start, min(start + WINDOW_ROWS, chunks.rows))
            window = encoder.tokenize(texts)
        yield window


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the same items; a thread makes the next one while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        next_item = thread.submit(next, items, None)
        while (item := next_item.result()) is not None:
            next_item = thread.submit(next, items, None)
            yield item


def store_embeddings(embeddings: np.ndarray) -> np.ndarray:
    """Rounds embeddings to what is stored: float32 [n, d] to float16 [n, d].

    Raises:
        ModelError: A value exceeds float16, or a chunk with an embedding would be stored as one without.
    """
    with np.errstate(over="ignore"):
        stored = embeddings.astype(np.float16)
    if not np.isfinite(stored).all():
        raise ModelError(
            "encoder.model: an embedding exceeds float16's 65504, so that it cannot be stored; "
            "set encoder.normalize: true, or use a model with a final normalization"
        )
    if (embeddings.any(axis=1) & ~is_embedded(stored)).any():
        raise ModelError(
            "encoder.model: an embedding is too small for float16, in which it would be stored as zeros; "
            "set encoder.normalize: true"
        )
    return stored
