"""Which index is built: given, reduced in a smoke build, or chosen."""

from __future__ import annotations

from retro_db.corpus.chunking import ChunkedShard
from retro_db.errors import CorpusError
from retro_db.index.keys import choose_key, parse_key, reduce_key
from retro_db.index.training import predict_size, training_points
from retro_db.search.searching import resident_bytes

from ..engine.resume import Build


def announce_key(build: Build, chunked: list[ChunkedShard], dimension: int) -> None:
    """Says before anything is embedded which index is to be built, and what it will take.

    Args:
        build: The build.
        chunked: What there is to index.
        dimension: d.

    Raises:
        IndexKeyError: The corpus is too small for the key, or the memory to train it.
        CorpusError: Nothing is left to index.
    """
    index, entries = build.config.index, training_chunks(chunked)
    key = decide_key(build, chunked, dimension)
    if index.key not in ("auto", key):
        build.console.say(f"index.key   {index.key} reduced to {key}, which the sample can train")
    parsed = parse_key(key, dimension)
    each, whole = predict_size(parsed, dimension, entries)
    streamed = ""
    if resident_bytes(whole, parsed) > index.memory:
        streamed = ", more than index.memory holds: searched partition by partition"
    build.console.say(
        f"key        {key}, {each} bytes a chunk, {whole / 1e6:,.1f} MB in all{streamed}"
    )


def training_chunks(chunked: list[ChunkedShard]) -> int:
    """Chunks of training documents."""
    written = [part for shard in chunked for part in shard.parts]
    return sum(part.chunks.rows - part.validation_chunks for part in written)


def decide_key(build: Build, chunked: list[ChunkedShard], dimension: int, keyless: int = 0) -> str:
    """The index key: given, reduced in a smoke build, or chosen; and whether it can be trained.

    Args:
        build: The build.
        chunked: What there is to index: chunks of training documents.
        dimension: d.
        keyless: Chunks that turned out to have no key, once they are embedded.

    Raises:
        IndexKeyError: The corpus is too small for a given key.
        CorpusError: Nothing is left to index.
    """
    index = build.config.index
    entries = training_chunks(chunked)
    if not entries:
        raise CorpusError(
            "split.validation: every document with a token is of the validation split, so that nothing "
            "is left to index; lower it"
        )
    memory = int(index.memory)
    if index.key == "auto":
        key = choose_key(max(entries - keyless, 1), dimension, memory)
    else:
        key = reduce_key(index.key, entries, dimension) if build.smoke is not None else index.key
    training_points(parse_key(key, dimension), dimension, entries, memory)
    return key
