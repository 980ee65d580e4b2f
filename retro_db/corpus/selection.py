"""Selects the documents of a shard, and counts all others by the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

import numpy as np

from retro_db.config import Config
from retro_db.corpus.documents import Document, Reject
from retro_db.corpus.formats.raw import DAMAGED
from retro_db.corpus.sharding import Shard
from retro_db.hashing import fraction_of
from retro_db.tokens.tokenizer import Tokenizer

_SAMPLED_REJECTS = 20
# Reason of documents in the database of which the tokenizer lost characters.
NO_TOKEN = "no token"  # noqa: S105
FRACTION, NAME, LEAKAGE, DUPLICATE = "fraction", "name", "leakage", "duplicate"
CONTENT_REASONS = (LEAKAGE, DUPLICATE)


@dataclass
class Tally:
    """Counts of the records of a shard: read = kept + dropped + rejected.

    Attributes:
        read: Number of records so far.
        dropped: Numbers of good documents that were dropped, by reason.
        rejected: Numbers of bad records, by reason.
        rejects: The first bad records, every damaged file, and the first documents that lack tokens.
        characters: Number of characters of the documents that were tokenized.
        lacking: Number of these for which the tokenizer has no token.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)
    characters: int = 0
    lacking: int = 0

    def reject(self, reject: Reject) -> None:
        """Counts the records of a reject, and keeps it if it is among the first."""
        self.rejected[reject.reason] += reject.count
        if len(self.rejects) < _SAMPLED_REJECTS or reject.reason == DAMAGED:
            self.rejects.append(reject)

    def tokenized(self, document: Document, lacking: int) -> None:
        """Counts the characters of a document, and notes it if it is among the first that lack tokens.

        Args:
            document: A document with text.
            lacking: Number of its characters for which there is no token.
        """
        self.characters += document.size
        self.lacking += lacking
        if lacking and len(self.rejects) < _SAMPLED_REJECTS:
            detail = f"{lacking:,} of {document.size:,} characters"
            self.rejects.append(Reject(document.file, document.offset, NO_TOKEN, detail, count=0))


def select(
    records: Iterable[Document | Reject],
    shard: Shard,
    config: Config,
    tokenizer: Tokenizer,
    tally: Tally,
) -> Iterator[tuple[int, Document]]:
    """Documents that can be tokenized, are in the source's share and are not in `leakage.names`.

    Args:
        records: Records of the shard, in order.
        shard: Shard, with its source and fraction.
        config: Configuration of the build.
        tokenizer: Tokenizer of the language model.
        tally: Counts of all records, and of those that are not returned, by reason.

    Returns:
        The documents, each with its number among the shard's records. Tokens are checked, have
        the stored type, and lack the id that ends a document.
    """
    names = set(config.leakage.names)
    for number, record in enumerate(records):
        tally.read += record.count if isinstance(record, Reject) else 1
        checked = record if isinstance(record, Reject) else _encodable(record, tokenizer)
        if isinstance(checked, Reject):
            tally.reject(checked)
        elif reason := _drop_reason(checked, shard, names, config.seed):
            tally.dropped[reason] += 1
        else:
            yield number, checked


def is_kept(document: Document, source: str, fraction: float, seed: int) -> bool:
    """Whether a document's hash lies in the source's share; larger shares contain smaller ones.

    Args:
        document: Document to keep or drop.
        source: Name of its source.
        fraction: Share of documents, 0 to 1, that is kept.
        seed: Seed of the choice.

    Returns:
        True for about `fraction` of all documents.
    """
    return fraction >= 1.0 or fraction_of("keep", seed, source, document.identity) < fraction


def _drop_reason(document: Document, shard: Shard, names: Set[str], seed: int) -> str | None:
    if not is_kept(document, shard.source, shard.fraction, seed):
        return FRACTION
    return NAME if document.id in names else None


def _encodable(document: Document, tokenizer: Tokenizer) -> Document | Reject:
    """The document as it will be encoded, or a reject if it cannot be."""
    if document.tokens is not None:
        return _checked_tokens(document, document.tokens, tokenizer)
    if not tokenizer.can_encode(str(document.text)):
        detail = "over 16 MB without a place where this tokenizer may cut"
        return Reject(document.file, document.offset, "too long", detail)
    return document


def _checked_tokens(
    document: Document, tokens: np.ndarray, tokenizer: Tokenizer
) -> Document | Reject:
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= tokenizer.vocab_size):
        detail = f"{tokens.min()} to {tokens.max()}, of {tokenizer.vocab_size} of the tokenizer"
        return Reject(document.file, document.offset, "unknown token", detail)
    if len(tokens) and tokens[-1] == tokenizer.end_id:
        tokens = tokens[:-1]
    return document.with_tokens(tokens.astype(tokenizer.token_type))
