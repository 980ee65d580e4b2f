"""Which index is built, and how it is searched: decided, and said."""

from __future__ import annotations

from retro_db.config import in_units
from retro_db.corpus.chunking import ChunkedShard
from retro_db.errors import CorpusError
from retro_db.index.drawing import Drawing, Drawn
from retro_db.index.keys import IndexKey, choose_key, parse_key, reduce_key
from retro_db.index.training import Sampling, predict_size, training_points
from retro_db.manifest.parts import Part
from retro_db.search.searching import resident_bytes

from ..engine.context import Build
from ..stages.draw import draw_stage
from ..stages.tune import BuiltIndex, FilledIndex, tune_stage


def announce_key(build: Build, entries: int, dimension: int) -> IndexKey:
    """Says before anything is embedded which index is to be built, and what it will take.

    Args:
        build: The build.
        entries: Number of chunks to index.
        dimension: Dimension d of the embeddings.

    Returns:
        The parsed key.

    Raises:
        IndexKeyError: The corpus is too small for the key, or the memory to train it.
        CorpusError: Nothing is left to index.
    """
    index = build.config.index
    key = decide_key(build, entries, dimension)
    if index.key not in ("auto", key):
        build.console.say(f"index.key   {index.key} reduced to {key}, which the sample can train")
    parsed = parse_key(key, dimension)
    each, whole = predict_size(parsed, dimension, entries)
    streamed = ""
    if resident_bytes(whole, parsed) > index.memory:
        streamed = ", more than index.memory holds: searched partition by partition"
    build.console.say(f"index key  {key}, {each} bytes a chunk, {in_units(whole)} in all{streamed}")
    return parsed


def drawing_for(
    build: Build, key: IndexKey, dimension: int, *, entries: int, chunks: int
) -> Drawing:
    """What of the corpus trains an index and tunes it.

    Args:
        build: The build.
        key: The parsed index key.
        dimension: Dimension d of the embeddings.
        entries: Number of chunks of training documents.
        chunks: Number of all chunks.
    """
    points = training_points(key, dimension, entries, int(build.config.index.memory))
    share = Sampling(dimension, entries, points, build.config.seed).share
    return Drawing.of(dimension, points=share, chunks=chunks, seed=build.config.seed)


def draw_queries(build: Build, parts: list[Part], dimension: int) -> list[Drawn]:
    """Draws the queries that tune an index that is trained already.

    Args:
        build: The build.
        parts: All parts of the database, their files as the database sees them.
        dimension: Dimension d of the embeddings.
    """
    chunks = sum(part.rows for part in parts)
    drawing = Drawing.of(dimension, points=0.0, chunks=chunks, seed=build.config.seed)
    return draw_stage(build, parts, drawing)


def training_chunks(chunked: list[ChunkedShard]) -> int:
    """Number of chunks of training documents."""
    written = [part for shard in chunked for part in shard.parts]
    return sum(part.chunks.rows - part.validation_chunks for part in written)


def decide_key(build: Build, entries: int, dimension: int, keyless: int = 0) -> str:
    """The index key: given, reduced in a sample build, or chosen; and whether it can be trained.

    Args:
        build: The build.
        entries: Number of chunks to index, except chunks of validation documents.
        dimension: Dimension d of the embeddings.
        keyless: Number of chunks without an embedding, known once all are embedded.

    Raises:
        IndexKeyError: The corpus is too small for a given key.
        CorpusError: Nothing is left to index.
    """
    index = build.config.index
    if not entries:
        raise CorpusError(
            "split.validation: every document with a token is of the validation split, so that nothing "
            "is left to index; lower it"
        )
    memory = int(index.memory)
    if index.key == "auto":
        key = choose_key(max(entries - keyless, 1), dimension, memory)
    else:
        key = reduce_key(index.key, entries, dimension) if build.is_sample else index.key
    training_points(parse_key(key, dimension), dimension, entries, memory)
    return key


def tune_index(
    build: Build, parts: list[Part], drawn: list[Drawn], index: FilledIndex, dimension: int
) -> BuiltIndex:
    """Tunes the search of an index, and says how well it finds.

    Args:
        build: The build.
        parts: All parts of the database, their files as the database sees them.
        drawn: What was drawn from each part.
        index: The index.
        dimension: Dimension d of the embeddings.
    """
    tuned = tune_stage(build, parts, drawn, index, dimension)
    search, settings = tuned.search, tuned.search.settings
    graph = f", efSearch {settings.ef_search}" if settings.ef_search else ""
    line = (
        f"index      {index.key}, nprobe {settings.nprobe:,} of {index.lists:,} lists{graph}, "
        f"{settings.rerank} re-ranked"
    )
    if search.curve:
        point = search.curve[-1]
        line += (
            f": recall@10 {point.recall:.3f}, at least {point.lower_bound:.3f} "
            f"({search.queries:,} queries)"
        )
    if search.remedy:
        target = build.config.index.recall_target
        line += f"; the target {target:g} is out of reach, {search.remedy} would meet it"
    build.console.say(line)
    breadth = tuned.measured.join
    line = f"           neighbors in {breadth.nprobe:,} of {index.lists:,} lists"
    if reached := breadth.chosen:
        line += f": recall@10 {reached.recall:.3f}, of distinct chunks at least {reached.lower_bound:.3f}"
    if not breadth.lower_bound_met:
        line += f"; the target {build.config.index.recall_target:g} needs more: raise neighbors.max_nprobe"
    build.console.say(line)
    return tuned
