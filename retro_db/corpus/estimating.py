"""About how much a plan holds, from the beginnings of a few files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from retro_db.config import Config
from retro_db.corpus.planning import Shard, expansion_of
from retro_db.corpus.reading import Document, Reject, read_shard
from retro_db.hashing import fraction_of

_PIECES = 8
_RECORDS = 200
# English in any tokenizer of a language model: fewer characters mean more tokens than there are.
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class CorpusEstimate:
    """What a plan keeps, about.

    Attributes:
        documents: Documents.
        characters: Of their text.
        rejects: The first bad record of every piece in which none of the records read was good.
    """

    documents: int
    characters: int
    rejects: list[Reject]

    def thinned(self, documents: int) -> CorpusEstimate:
        """The same of a sample of so many documents."""
        share = min(1.0, documents / max(self.documents, 1))
        return replace(
            self,
            documents=round(self.documents * share),
            characters=round(self.characters * share),
        )

    def chunks(self, chunk_tokens: int) -> int:
        """Chunks of so many tokens: a document's last one is half full on average."""
        whole = self.characters / _CHARACTERS_PER_TOKEN / chunk_tokens
        return round(whole + self.documents / 2)


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
    for shard, piece in pieces[:_PIECES]:
        one = Shard(0, shard.source, shard.format, [piece])
        records = list(islice(read_shard(one, sources[shard.source]), _RECORDS))
        good = [record for record in records if isinstance(record, Document)]
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
    return CorpusEstimate(round(documents * whole), round(characters * whole), rejects)
