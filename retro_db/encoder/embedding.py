"""One part's chunks to its file of embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from retro_db.encoder.batching import Tokenized
from retro_db.encoder.chunk_texts import chunk_texts
from retro_db.encoder.encoder import Encoder
from retro_db.errors import ModelError
from retro_db.meter import Meter
from retro_db.store.contracts import contract
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
) -> tuple[TableEntry, int]:
    """Embeds every chunk of one file from its own text, ids decoded, and writes float16 embeddings.

    Args:
        chunks: The part's chunks.
        path: Path of the embeddings file, relative to the folder.
        encoder: The encoder.
        tokenizer: The tokenizer that made the chunks' tokens.
        folder: The database.
        meter: Counts chunks, WordPieces, and seconds in `tokenize`, `device` and `write`.

    Returns:
        The file, and the number of its chunks without an embedding.

    Raises:
        ModelError: A value is not finite, or exceeds float16.
        DeviceMemoryError: A batch does not fit.
    """
    table = contract("embeddings")
    schema = table.schema(dimension=encoder.model.dimension)
    windows = tokenized_windows(chunks, encoder, tokenizer, meter)
    if encoder.device.ahead:
        windows = one_ahead(windows)
    missing = 0
    with folder.writing(path) as temporary:
        with TableWriter(temporary, schema, table.batch_rows) as writer:
            for embeddings in encoder.encode_windows(windows, meter):
                with meter.timing("write"):
                    stored = _stored(embeddings)
                    missing += int((~stored.any(axis=1)).sum())
                    writer.append({"vector": stored})
        with meter.timing("write"):
            return describe(temporary, path, writer.rows), missing


def tokenized_windows(
    chunks: TableFile, encoder: Encoder, tokenizer: Tokenizer, meter: Meter
) -> Iterator[Tokenized]:
    """Tokenizes a part's chunks for the encoder, some thousand rows at a time.

    Args:
        chunks: One part's chunks.
        encoder: The encoder, which has its own WordPieces.
        tokenizer: The tokenizer that made the chunks' tokens.
        meter: Counts the seconds in `tokenize`.

    Yields:
        Windows of consecutive rows.
    """
    for start in range(0, chunks.rows, WINDOW_ROWS):
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


def _stored(embeddings: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = embeddings.astype(np.float16)
    if not np.isfinite(stored).all():
        raise ModelError(
            "encoder.model: an embedding exceeds float16's 65504, so that it cannot be stored; "
            "use a model with a final normalization"
        )
    return stored
