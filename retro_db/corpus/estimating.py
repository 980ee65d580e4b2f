"""About how much a plan holds, from the beginnings of a few files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from retro_db.config import Config
from retro_db.corpus.documents import Document, Reject
from retro_db.corpus.planning import Shard, expansion_of
from retro_db.corpus.reading import read_shard
from retro_db.hashing import fraction_of

_PIECES = 8
_RECORDS = 200
# English in any tokenizer of a language model: fewer characters mean more tokens than there are.
CHARACTERS_PER_TOKEN = 4.0


def expected_chunks(tokens: float, documents: int, chunk_tokens: int) -> int:
    """Chunks that documents are cut into, if all that is known of their lengths is the mean.

    A document of t tokens has ceil(t / m) chunks. Where lengths are distributed exponentially with mean
    T, their expectation is 1 / (1 - exp(-m / T)): T / m + 1/2 where documents are long, as the last
    chunk is half full on average, and 1 where they are short.

    Args:
        tokens: Of all documents, without padding.
        documents: D.
        chunk_tokens: m.

    Returns:
        Chunks of all documents, about.
    """
    if not tokens or not documents:
        return 0
    return round(documents / -math.expm1(-chunk_tokens * documents / tokens))


@dataclass(frozen=True)
class SampledDocument:
    """A document that was read for an estimate, without its text, and how long that is."""

    source: str
    document: Document
    characters: int


@dataclass(frozen=True)
class CorpusEstimate:
    """What a plan keeps, about.

    Attributes:
        documents: Documents.
        characters: Of their text.
        rejects: The first bad record of every piece in which none of the records read was good.
        sample: The documents that were read.
    """

    documents: int
    characters: int
    rejects: list[Reject]
    sample: list[SampledDocument] = field(default_factory=list)

    def thinned(self, documents: int) -> CorpusEstimate:
        """The same of a sample of so many documents."""
        share = min(1.0, documents / max(self.documents, 1))
        return replace(
            self,
            documents=round(self.documents * share),
            characters=round(self.characters * share),
        )

    def chunks(self, chunk_tokens: int) -> int:
        """Chunks of so many tokens, about."""
        return expected_chunks(self.characters / CHARACTERS_PER_TOKEN, self.documents, chunk_tokens)


def estimate_corpus(shards: Sequence[Shard], config: Config) -> CorpusEstimate:
    """Reads the first records of a hashed choice of pieces.

    Args:
        shards: The plan.
        config: Of the build.

    Raises:
        CorpusError: A file vanished or cannot be opened.
    """
    sources = {source.name: source for source in config.corpus}
    pieces = [(shard, piece) for shard in shards for piece in shard.pieces]
    pieces.sort(key=lambda pair: fraction_of("estimate", config.seed, pair[1].file.name))
    documents, characters, size = 0.0, 0.0, 0
    rejects: list[Reject] = []
    sample: list[SampledDocument] = []
    for shard, piece in pieces[:_PIECES]:
        one = Shard(0, shard.source, shard.format, [piece])
        records = list(islice(read_shard(one, sources[shard.source]), _RECORDS))
        good = [record for record in records if isinstance(record, Document)]
        sample += [_without_text(shard.source, document) for document in good]
        rejects += [record for record in records if isinstance(record, Reject)][: not good]
        read = sum(record.size for record in good)
        share = shard.fraction
        if len(records) == _RECORDS:  # there is more of it
            text = piece.bytes * expansion_of(piece.file.name, shard.format)
            share *= max(1.0, text / max(read, 1))
        documents += len(good) * share
        characters += read * share
        size += piece.bytes
    whole = sum(shard.bytes for shard in shards) / max(size, 1)
    return CorpusEstimate(round(documents * whole), round(characters * whole), rejects, sample)


def _without_text(source: str, document: Document) -> SampledDocument:
    return SampledDocument(source, replace(document, text=None, tokens=None), document.size)
