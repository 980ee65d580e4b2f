"""The recipe of a database: its stages, in the one order that a build, a dry run and a stage alone share."""

from __future__ import annotations

from collections.abc import Iterator

from retro_db.encoder.models import EncoderModel
from retro_db.index.drawing import Drawing
from retro_db.index.keys import IndexKey, parse_key
from retro_db.manifest.model import QueryCorpus
from retro_db.store.serialize import digest

from ..engine.context import Build
from ..stages import chunk, draw, embed, neighbors, screen, tokenizer, train, tune
from ..stages.assemble import assemble_stage, divide_lists
from ..stages.chunk import ChunkedCorpus, chunk_stage
from ..stages.draw import draw_stage
from ..stages.embed import EmbeddedCorpus, embed_stage, probe_stage
from ..stages.encode import encode_stage
from ..stages.neighbors import NeighborsTable
from ..stages.screen import Screened, screen_stage
from ..stages.tokenizer import TokenizerFiles, tokenizer_stage
from ..stages.train import train_stage
from ..stages.tune import BuiltIndex, FilledIndex
from .index import announce_key, decide_key, drawing_for, training_chunks, tune_index
from .join import Join, Searched
from .queries import QUERY_STAGES, QueryRecipe

VERSIONS = [
    module.VERSION for module in (tokenizer, screen, chunk, embed, draw, train, tune, neighbors)
]


class Recipe:
    """The stages of a build, and what those that are complete have returned.

    Attributes:
        tokenizer: The language model's tokenizer.
        screened: Verdicts on every shard; None for shards that were not screened.
        chunked: The corpus in chunks.
        model: The encoder, with its `batch_tokens` once it was probed.
        corpus: The corpus with its embeddings.
        index: The index, tuned.
        neighbors: Neighbors of the corpus's chunks.
        queries: Every query corpus, as the manifest describes it.

    Args:
        build: The build of the database.
        queries: A build for each query corpus.
        model: The encoder.
    """

    tokenizer: TokenizerFiles
    screened: list[Screened | None]
    chunked: ChunkedCorpus
    corpus: EmbeddedCorpus
    index: BuiltIndex
    neighbors: NeighborsTable
    queries: list[QueryCorpus]

    def __init__(self, build: Build, queries: list[Build], model: EncoderModel) -> None:
        self.build = build
        self.model = model
        self._probed = False
        self._query_recipes = [QueryRecipe(query) for query in queries]

    def probe(self) -> None:
        """Tries the GPU of a worker, once: a missing or small one then shows before a shard is read."""
        if not self._probed:
            self.model = probe_stage(self.build, self.model)
            self._probed = True

    def check_queries(self, stage: str) -> None:
        """Checks that a stage that query corpora have too is complete for all of them.

        Raises:
            IncompleteError: A query corpus waits at an earlier stage.
        """
        for query in self._query_recipes if stage in QUERY_STAGES else ():
            query.check()

    def stages(self) -> Iterator[str]:
        """Completes one stage after another, and yields the name of each."""
        build = self.build
        self.tokenizer = tokenizer_stage(build)
        yield "tokenizer"
        self.screened = screen_stage(build, self.tokenizer)
        yield "screen"
        self.chunked = chunk_stage(build, self.tokenizer, self.screened)
        for query in self._query_recipes:
            query.chunk(self.tokenizer)
        yield "chunk"
        # An index that the corpus cannot train is refused before anything is embedded.
        key = announce_key(build, training_chunks(self.chunked.shards), self.model.dimension)
        self.probe()
        drawing = self._drawing(self.chunked, key)
        self.corpus = embed_stage(build, self.chunked, self.tokenizer, self.model, drawing)
        for query in self._query_recipes:
            query.embed(self.tokenizer, self.model)
        yield "embed"
        yield from self._index_stages()
        join = Join(build, self._searched(), joins_itself=True)
        self.neighbors = join.neighbors(build, self.corpus.parts)
        self.queries = [query.search(join) for query in self._query_recipes]
        for query in self._query_recipes:
            place, stages = query.build.place, query.build.stages
            build.stages |= {f"{place}/{name}": work for name, work in stages.items()}
        yield "neighbors"

    def _index_stages(self) -> Iterator[str]:
        build, parts, dimension = self.build, self.corpus.parts, self.model.dimension
        entries = training_chunks(self.corpus.shards)
        text = decide_key(build, entries, dimension, self.corpus.keyless)
        key = parse_key(text, dimension)
        drawn = draw_stage(build, parts, self._drawing(self.corpus, key), self.corpus.drawn)
        trained = train_stage(build, parts, drawn, key, entries, dimension)
        yield "train"
        codes = encode_stage(build, parts, trained, dimension)
        yield "encode"
        ranges = divide_lists(build.config.index, codes, key, dimension)
        assembled = assemble_stage(build, codes, trained, ranges)
        yield "assemble"
        partitions = [partition.file for partition in assembled]
        fine = [encoded.fine for encoded in codes if encoded.fine]
        lengths = [partition.lengths for partition in assembled]
        filled = FilledIndex(text, key.lists, trained, partitions, lengths, fine)
        self.index = tune_index(build, parts, drawn, filled, dimension)
        yield "tune"

    def _drawing(self, corpus: ChunkedCorpus | EmbeddedCorpus, key: IndexKey) -> Drawing:
        """What of the corpus trains an index and tunes it."""
        entries = training_chunks(corpus.shards)
        chunks = sum(part.rows for part in corpus.parts)
        return drawing_for(self.build, key, self.model.dimension, entries=entries, chunks=chunks)

    def _searched(self) -> Searched:
        config = self.build.config
        parameters = self.tokenizer.parameters(config.chunk.tokens)
        parameters["dimension"] = self.model.dimension
        named = [source.name for source in config.corpus if source.id]
        return Searched(self.corpus.parts, self.index, parameters, named)

    @property
    def mark(self) -> str:
        """Hash of all that decides the database, known once the corpus is screened."""
        builds = (self.build, *(query.build for query in self._query_recipes))
        shards = [[(shard.identity, shard.stamp) for shard in build.shards] for build in builds]
        verdicts = [decided.verdicts.sha256 if decided else None for decided in self.screened]
        tokenizer = self.tokenizer
        identities = [tokenizer.sha256, tokenizer.pad_id, tokenizer.end_id, self.model.decides]
        return digest([VERSIONS, self.build.config.portable(), shards, verdicts, *identities])
