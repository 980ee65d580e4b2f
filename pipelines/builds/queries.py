"""Last of all: chunks, keys and neighbors of further corpora, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from retro_db.corpus.chunking import ChunkedShard
from retro_db.corpus.planning import plan_shards
from retro_db.encoder.models import EncoderModel
from retro_db.manifest.model import TABLES, QueryCorpus, SourceCounts, Tables, query_path
from retro_db.manifest.parts import Part

from ..engine.resume import Build
from ..stages.chunk import chunk_stage
from ..stages.embed import embed_stage
from ..stages.neighbors import NeighborsPart, Searched, neighbors_stage
from ..stages.tokenizer import TokenizerFiles


@dataclass(frozen=True)
class QueriedCorpus:
    """What the stages returned for one query corpus."""

    chunked: list[ChunkedShard]
    parts: list[Part]
    keyless: int
    found: list[NeighborsPart]

    def described(self, source: SourceCounts, keep: bool) -> QueryCorpus:
        """The manifest's entry, with paths from the database's folder; `keep` the embeddings."""
        tables = Tables(
            documents=[part.documents for part in self.parts],
            chunks=[part.chunks for part in self.parts],
            embeddings=[part.keys_file for part in self.parts] if keep else [],
            neighbors=[part.file for part in self.found],
            dropped=[shard.left_out for shard in self.chunked if shard.left_out],
        )
        short = sum(part.short_rows for part in self.found)
        place = query_path(source.name)
        below = {name: [file.below(place) for file in getattr(tables, name)] for name in TABLES}
        return QueryCorpus(source, self.keyless, short, Tables(**below))


def plan_queries(build: Build) -> Iterator[Build]:
    """A build of its own for every query corpus, which shares the tokenizer, the model and the index.

    Raises:
        CorpusError: A path is missing, a glob matches nothing, or a format cannot be told.
    """
    for position, source in enumerate(build.config.queries):
        config = build.config.querying(position)
        yield replace(
            build,
            config=config,
            folder=build.home.below(query_path(source.name)),
            shards=plan_shards(config, [f"queries.{position}"]),
            queries=position,
            stages={},
            pending=[],
        )


def chunk_queries(
    build: Build, vocabulary: TokenizerFiles
) -> tuple[list[ChunkedShard], list[Part]]:
    """Cuts a query corpus: none of its documents is screened."""
    build.console.say(f"queries    {build.config.corpus[0].name}")
    return chunk_stage(build, vocabulary, [None] * len(build.shards))


def query_stages(
    build: Build,
    chunked: list[ChunkedShard],
    parts: list[Part],
    vocabulary: TokenizerFiles,
    model: EncoderModel,
    searched: Searched,
) -> QueriedCorpus:
    """Embeds a query corpus that is cut, and finds its neighbors in the database."""
    build.console.say(f"queries    {build.config.corpus[0].name}")
    parts, keyless = embed_stage(build, parts, vocabulary, model)
    namesakes = searched.named if build.config.corpus[0].id else []
    below = [part.below(build.place) for part in parts]
    found = neighbors_stage(build, below, searched, namesakes)
    return QueriedCorpus(chunked, parts, keyless, found)
