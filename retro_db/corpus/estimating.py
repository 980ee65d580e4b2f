"""Estimates how much text a plan keeps, from the beginnings of a few files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from retro_db.config import Config
from retro_db.corpus.documents import Document, Reject
from retro_db.corpus.reading import read_shard
from retro_db.corpus.sharding import Shard, expansion_of
from retro_db.hashing import fraction_of

_PIECES = 8
_RECORDS = 200
# English in any tokenizer of a language model: fewer characters mean more tokens than there are.
CHARACTERS_PER_TOKEN = 4.0


def expected_chunks(tokens: float, documents: int, chunk_tokens: int) -> int:
    """Expected number of chunks of documents of which only the mean length is known.

    A document of t tokens has ceil(t / m) chunks. If lengths are distributed exponentially with mean T,
    the expected number is 1 / (1 - exp(-m / T)): T / m + 1/2 for long documents, as the last chunk is
    half full on average, and 1 for short ones.

    Args:
        tokens: Number of tokens of all documents, without padding.
        documents: Number of documents.
        chunk_tokens: Number of tokens in a chunk, m.

    Returns:
        Expected number of chunks of all documents, rounded.
    """
    if not tokens or not documents:
        return 0
    return round(documents / -math.expm1(-chunk_tokens * documents / tokens))


@dataclass(frozen=True)
class SampledDocument:
    """A document that was read for an estimate, without its text, and the number of its characters."""

    source: str
    document: Document
    characters: int


@dataclass(frozen=True)
class CorpusEstimate:
    """Estimate of the documents that a plan keeps.

    Attributes:
        documents: Approximate number of documents.
        characters: Approximate number of characters of their text.
        rejects: First bad record of every piece in which none of the records read was good.
        sample: Documents that were read for the estimate.
    """

    documents: int
    characters: int
    rejects: list[Reject]
    sample: list[SampledDocument] = field(default_factory=list)

    def thinned(self, documents: int) -> CorpusEstimate:
        """The estimate for a sample of this many documents."""
        share = min(1.0, documents / max(self.documents, 1))
        return replace(
            self,
            documents=round(self.documents * share),
            characters=round(self.characters * share),
        )

    def chunks(self, chunk_tokens: int) -> int:
        """Expected number of chunks of `chunk_tokens` tokens."""
        return expected_chunks(self.characters / CHARACTERS_PER_TOKEN, self.documents, chunk_tokens)


def estimate_corpus(shards: Sequence[Shard], config: Config) -> CorpusEstimate:
    """Reads the first records of a hashed choice of pieces.

    Args:
        shards: Shards of the plan.
        config: Configuration of the build.

    Raises:
        CorpusError: A file vanished or cannot be opened.
    """
    pieces = [(shard, piece) for shard in shards for piece in shard.pieces]
    pieces.sort(key=lambda pair: fraction_of("estimate", config.seed, pair[1].file.name))
    documents, characters, size = 0.0, 0.0, 0
    rejects: list[Reject] = []
    sample: list[SampledDocument] = []
    for shard, piece in pieces[:_PIECES]:
        sampled = Shard(0, shard.source, shard.format, [piece])
        records = list(islice(read_shard(sampled, config.source(shard.source)), _RECORDS))
        good = [record for record in records if isinstance(record, Document)]
        sample += [_without_text(shard.source, document) for document in good]
        rejects += [record for record in records if isinstance(record, Reject)][: not good]
        read = sum(record.size for record in good)
        share = shard.fraction
        if len(records) == _RECORDS:  # the piece may have more records
            text = piece.bytes * expansion_of(piece.file.name, shard.format)
            share *= max(1.0, text / max(read, 1))
        documents += len(good) * share
        characters += read * share
        size += piece.bytes
    whole = sum(shard.bytes for shard in shards) / max(size, 1)
    return CorpusEstimate(round(documents * whole), round(characters * whole), rejects, sample)


def _without_text(source: str, document: Document) -> SampledDocument:
    return SampledDocument(source, replace(document, text=None, tokens=None), document.size)
