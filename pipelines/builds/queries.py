"""Query corpora: planned like the corpus, and searched for in the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from retro_db.corpus.sharding import plan_shards
from retro_db.manifest.parts import Part

from ..engine.context import Build
from ..stages.neighbors import NeighborsTable, Searched, neighbors_stage


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


def find_query_neighbors(
    build: Build, parts: list[Part], searched: Searched, *, has_ids: bool
) -> NeighborsTable:
    """Finds the neighbors of a query corpus, none of them in a document with the same id.

    Args:
        build: The build of the query corpus.
        parts: All its parts, their files as the database sees them.
        searched: What is searched.
        has_ids: Whether the records of the query corpus name their documents: names made of places in
            files agree by chance.
    """
    return neighbors_stage(build, parts, searched, searched.named if has_ids else [])
