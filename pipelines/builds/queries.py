"""Query corpora: cut and embedded like the corpus, and searched for in the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from retro_db.corpus.sharding import plan_shards
from retro_db.encoder.models import EncoderModel
from retro_db.manifest.model import Manifest, QueryCorpus
from retro_db.manifest.parts import listed_parts

from ..engine.context import Build, IncompleteError
from ..stages.chunk import ChunkedCorpus, chunk_stage
from ..stages.embed import EmbeddedCorpus, embed_stage
from ..stages.tokenizer import TokenizerFiles
from .join import Join
from .manifest_content import query_corpus, searched_again

QUERY_STAGES = ("chunk", "embed", "neighbors")


def plan_queries(build: Build) -> Iterator[Build]:
    """Plans a build for every query corpus of the configuration.

    Raises:
        CorpusError: A path is missing, a glob matches nothing, or a format is unknown.
    """
    for position, source in enumerate(build.config.queries):
        field = f"queries.{position}"
        config = build.config.querying(position)
        yield replace(
            build.of_queries(source.name),
            config=config,
            shards=plan_shards(config, [field]),
            config_field=field,
        )


class QueryRecipe:
    """The stages of a query corpus. It waits at the first that is not complete, until it is needed.

    Args:
        build: The build of the query corpus.
    """

    _chunked: ChunkedCorpus
    _corpus: EmbeddedCorpus

    def __init__(self, build: Build) -> None:
        self.build = build
        self._waiting: IncompleteError | None = None

    def chunk(self, tokenizer: TokenizerFiles) -> None:
        """Cuts the documents into chunks; none of them is screened."""
        with self._going_on():
            unscreened = [None] * len(self.build.shards)
            self._chunked = chunk_stage(self.build, tokenizer, unscreened)

    def embed(self, tokenizer: TokenizerFiles, model: EncoderModel) -> None:
        """Embeds the chunks."""
        if self._waiting is None:
            with self._going_on():
                self._corpus = embed_stage(self.build, self._chunked, tokenizer, model)

    def search(self, join: Join) -> QueryCorpus:
        """Finds the chunks' neighbors in the database.

        Returns:
            The manifest's entry of the query corpus.

        Raises:
            IncompleteError: An earlier stage of the query corpus is not complete.
        """
        self.check()
        build, [source] = self.build, self.build.config.corpus
        corpus = self._corpus.below(build.place)
        namesakes = join.searched.namesakes(of_named=source.id is not None)
        neighbors = join.neighbors(build, corpus.parts, namesakes=namesakes)
        return query_corpus(build.config, corpus, neighbors)

    def check(self) -> None:
        """Checks that the query corpus waits for nothing.

        Raises:
            IncompleteError: An earlier stage of it is not complete.
        """
        if self._waiting is not None:
            raise self._waiting

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except IncompleteError as error:
            self._waiting = error


def search_again(
    build: Build, old: Manifest, queries: list[QueryCorpus], join: Join
) -> list[QueryCorpus]:
    """Finds the neighbors of query corpora that are complete in a database that changed.

    Args:
        build: The build of the database.
        old: Manifest whose settings they were built with.
        queries: The query corpora, with the files of their chunks and embeddings.
        join: The join with the database.

    Returns:
        Their new entries.
    """
    entries = []
    for query, settings in zip(queries, old.config["queries"], strict=True):
        of_queries = build.of_queries(query.source.name)
        namesakes = join.searched.namesakes(of_named=settings.get("id") is not None)
        parts = listed_parts(query.tables)
        neighbors = join.neighbors(of_queries, parts, namesakes=namesakes)
        entries.append(searched_again(query, neighbors))
    return entries
