"""What became of the records of shards, as the manifest counts it."""

from __future__ import annotations

from collections import Counter

from retro_db.corpus.chunking import ChunkedShard
from retro_db.manifest.model import (
    SourceCounts,
)


def total_counts(chunked: list[ChunkedShard]) -> dict[str, int]:
    """Documents, chunks, tokens and validation chunks of shards, by the names of `Counts`."""
    written = [part for shard in chunked for part in shard.parts]
    return {
        "documents": sum(part.documents.rows for part in written),
        "chunks": sum(part.chunks.rows for part in written),
        "tokens": sum(part.tokens for part in written),
        "validation_chunks": sum(part.validation_chunks for part in written),
    }


def source_counts(chunked: list[ChunkedShard], name: str, weight: float) -> SourceCounts:
    """What became of one source's records."""
    own = [shard for shard in chunked if shard.source == name]
    counts = total_counts(own)
    del counts["validation_chunks"]
    dropped, rejected = Counter[str](), Counter[str]()
    for shard in own:
        dropped.update(shard.dropped)
        rejected.update(shard.rejected)
    return SourceCounts(
        name=name,
        weight=weight,
        read=sum(shard.read for shard in own),
        dropped=dropped.total(),
        rejected=rejected.total(),
        dropped_by=dict(dropped),
        rejected_by=dict(rejected),
        **counts,
    )
