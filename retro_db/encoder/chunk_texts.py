"""The text of chunks, decoded from their token ids, as the encoder reads it."""

from __future__ import annotations

from retro_db.store.tables import TableFile
from retro_db.tokens.tokenizer import Tokenizer


def chunk_texts(chunks: TableFile, tokenizer: Tokenizer, start: int, stop: int) -> list[str]:
    """Decodes rows start to stop; characters cut at a chunk's edge become U+FFFD.

    Args:
        chunks: One part's chunks.
        tokenizer: The tokenizer that made the tokens.
        start: First row.
        stop: One after the last row.

    Returns:
        One text for each row, without padding.
    """
    tokens, lengths = chunks.read("tokens", start, stop), chunks.read("length", start, stop)
    return tokenizer.decode(row[:length] for row, length in zip(tokens, lengths, strict=True))
