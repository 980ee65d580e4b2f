"""Estimates how much text a plan keeps, from the beginnings of a few files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from retro_db.config import Config
from retro_db.corpus.documents import Document, Reject
from retro_db.corpus.reading import is_one_document, read_shard
from retro_db.corpus.sharding import Shard, expansion_of
from retro_db.errors import CorpusError
from retro_db.hashing import fraction_of

_PIECES = 8
_RECORDS = 200
# English in any tokenizer of a language model: fewer characters mean more tokens than there are.
CHARACTERS_PER_TOKEN = 4.0
# What to do about bad records, by their reason.
_REMEDIES = {
    "empty file": "name files that hold documents",
    "not UTF-8": "convert it to UTF-8, or correct format",
    "damaged file": "restore it, or correct format",
    "not JSON": "write one object a line, or correct format",
}


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
        unusable: Sources of which none of the records read was good, with the first bad record.
        sample: Documents that were read for the estimate.
    """

    documents: int
    characters: int
    unusable: dict[str, Reject] = field(default_factory=dict)
    sample: list[SampledDocument] = field(default_factory=list)

    def check_usable(self, field: str) -> None:
        """Refuses a corpus with a source of which no record that was read can be used.

        Args:
            field: Name of the corpus in the configuration, for the message.

        Raises:
            CorpusError: Names the source, and its first bad record.
        """
        for name, reject in self.unusable.items():
            raise CorpusError(
                f"{field}: {name}: none of the first records of its files can be used; the first: {reject}; "
                + _REMEDIES.get(reject.reason, "correct format, text, id or separator")
            )

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
    """Reads the first records of a hashed choice of each source's pieces.

    Args:
        shards: Shards of the plan.
        config: Configuration of the build.

    Raises:
        CorpusError: A file vanished or cannot be opened.
    """
    by_source: dict[str, list[Shard]] = {}
    for shard in shards:
        by_source.setdefault(shard.source, []).append(shard)
    estimates = [_estimate_source(own, config) for own in by_source.values()]
    return CorpusEstimate(
        sum(estimate.documents for estimate in estimates),
        sum(estimate.characters for estimate in estimates),
        {name: reject for estimate in estimates for name, reject in estimate.unusable.items()},
        [document for estimate in estimates for document in estimate.sample],
    )


def _estimate_source(shards: Sequence[Shard], config: Config) -> CorpusEstimate:
    """Reads the first records of a hashed choice of the pieces of one source."""
    name = shards[0].source
    source = config.source(name)
    pieces = [(shard, piece) for shard in shards for piece in shard.pieces]
    pieces.sort(key=lambda pair: fraction_of("estimate", config.seed, pair[1].file.name))
    documents, characters, size = 0.0, 0.0, 0
    bad: list[Reject] = []
    sample: list[SampledDocument] = []
    for shard, piece in pieces[:_PIECES]:
        sampled = Shard(0, name, shard.format, [piece])
        records = list(islice(read_shard(sampled, source, is_trusted=True), _RECORDS))
        good = [record for record in records if isinstance(record, Document)]
        sample += [_without_text(name, document) for document in good]
        bad += [record for record in records if isinstance(record, Reject)][:1]
        read = sum(record.size for record in good)
        share = shard.fraction
        if len(records) == _RECORDS:  # the piece may have more records
            text = piece.bytes * expansion_of(piece.file.name, shard.format)
            share *= max(1.0, text / max(read, 1))
        documents += len(good) * share
        characters += read * share
        size += piece.bytes
    whole = sum(shard.bytes for shard in shards) / max(size, 1)
    # Of files that are one document each, the number is known.
    counted = (shard.fraction for shard, _ in pieces if is_one_document(shard.format, source))
    return CorpusEstimate(
        round(sum(counted) or documents * whole),
        round(characters * whole),
        {name: bad[0]} if bad and not sample else {},
        sample,
    )


def _without_text(source: str, document: Document) -> SampledDocument:
    return SampledDocument(source, replace(document, text=None, tokens=None), document.size)
