"""Everything that a build decides before its first stage: the encoder, the shards and the query corpora."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from retro_db.config import Config, in_units
from retro_db.corpus.estimating import CorpusEstimate, estimate_corpus
from retro_db.corpus.listing import Listing
from retro_db.corpus.sharding import Shard, plan_shards, sample_shards
from retro_db.encoder.models import EncoderModel, describe_model
from retro_db.encoder.trial import try_model
from retro_db.index.keys import parse_key
from retro_db.index.training import create_index
from retro_db.printing import counted
from retro_db.search.retriever import LOCATIONS, Locations
from retro_db.store.folder import Folder
from retro_db.store.serialize import canonical, to_json

from ..engine.console import Console
from ..engine.context import Action, Build
from ..engine.runner import Engine
from .queries import plan_queries


@dataclass(frozen=True)
class Prepared:
    """What a build starts from.

    Attributes:
        build: The build of the database.
        queries: A build for each query corpus.
        model: The encoder.
        estimate: Size of the corpus, from its first records.
    """

    build: Build
    queries: list[Build]
    model: EncoderModel
    estimate: CorpusEstimate

    @property
    def parts(self) -> int:
        """Files of every table, at most: every shard begins one."""
        config = self.build.config.chunk
        return len(self.build.shards) + self.estimate.chunks(config.tokens) // config.part_rows


def prepare(
    config: Config,
    folder: Folder,
    *,
    engine: Engine,
    console: Console,
    action: Action,
    sample: int | None = None,
) -> Prepared:
    """Plans a build; writes nothing.

    Args:
        config: What to build.
        folder: Where to.
        engine: What executes the stages.
        console: What people see.
        action: What is done about tasks that are left.
        sample: Number of documents to build from, about; None for the whole corpus.

    Raises:
        InputError: The encoder, the index key, or a file of a corpus cannot be used.
    """
    model = describe_model(config.encoder)
    if config.index.key != "auto":
        create_index(parse_key(config.index.key, model.dimension), model.dimension)
    model = try_model(config.encoder, model)
    listing = Listing(config.output)
    shards = plan_shards(config, listing=listing)
    estimate = estimate_corpus(shards, config)
    size, documents = sum(shard.bytes for shard in shards), None
    if sample is not None:
        documents = estimate.documents
        shards = sample_shards(shards, sample, documents, config.seed)
        estimate = estimate.thinned(sample)
    build = Build(
        config=config,
        folder=folder,
        home=folder,
        engine=engine,
        console=console,
        shards=shards,
        action=action,
        whole_documents=documents,
    )
    console.say(f"plan       {_described(shards, size)}")
    if listing.left_out:
        console.say(f"           {config.output} is among the paths of the corpus, and left out")
    queries = []
    for query in plan_queries(build):
        size = sum(shard.bytes for shard in query.shards)
        if sample is not None:
            query = _sampled(query, sample)
        console.say(f"queries    {query.label}{_described(query.shards, size)}")
        queries.append(query)
    return Prepared(build, queries, model, estimate)


def _sampled(query: Build, sample: int) -> Build:
    documents = estimate_corpus(query.shards, query.config).documents
    return replace(query, shards=sample_shards(query.shards, sample, documents, query.config.seed))


def _described(shards: list[Shard], size: int) -> str:
    """Files, bytes and shards in words; `size` is what a sample was taken of."""
    files = len({piece.file.url for shard in shards for piece in shard.pieces})
    read = sum(shard.bytes for shard in shards)
    text = f"{counted(files, 'file')}, {in_units(read)}, {counted(len(shards), 'shard')}"
    return text if read == size else f"{text}, a sample of {in_units(size)}"


def record_locations(build: Build) -> None:
    """Notes in the database where its encoder is: the manifest holds no path."""
    model = build.config.encoder.model
    path = os.path.abspath(os.path.expanduser(model))
    locations = Locations(path if os.path.isdir(path) else model)
    build.home.write(LOCATIONS, canonical(to_json(locations)))
