"""What became of the records of shards, as the manifest counts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from retro_db.corpus.chunking import ChunkedShard
from retro_db.manifest.model import SourceCounts


@dataclass(frozen=True)
class Totals:
    """What shards hold together.

    Attributes:
        documents: Number of documents.
        chunks: Number of chunks.
        tokens: Number of tokens, without padding.
        validation_chunks: Number of chunks of validation documents.
    """

    documents: int
    chunks: int
    tokens: int
    validation_chunks: int


def total_counts(shards: Iterable[ChunkedShard]) -> Totals:
    """Adds up what shards hold."""
    parts = [part for shard in shards for part in shard.parts]
    return Totals(
        documents=sum(part.documents.rows for part in parts),
        chunks=sum(part.chunks.rows for part in parts),
        tokens=sum(part.tokens for part in parts),
        validation_chunks=sum(part.validation_chunks for part in parts),
    )


def source_counts(shards: Iterable[ChunkedShard], name: str, weight: float) -> SourceCounts:
    """Adds up what became of the records of one source.

    Args:
        shards: Shards of all sources.
        name: Name of the source.
        weight: Sampling weight of the source.
    """
    shards = [shard for shard in shards if shard.source == name]
    totals = total_counts(shards)
    dropped, rejected = Counter[str](), Counter[str]()
    for shard in shards:
        dropped.update(shard.dropped)
        rejected.update(shard.rejected)
    return SourceCounts(
        name=name,
        weight=weight,
        read=sum(shard.read for shard in shards),
        documents=totals.documents,
        chunks=totals.chunks,
        tokens=totals.tokens,
        dropped=dropped.total(),
        rejected=rejected.total(),
        dropped_by=dict(dropped),
        rejected_by=dict(rejected),
        characters_without_token=sum(shard.lacking for shard in shards),
    )


def added_counts(before: SourceCounts, new: SourceCounts) -> SourceCounts:
    """The counts of a source that got more records; its weight is the new one."""
    counted = (
        *("read", "documents", "chunks", "tokens", "dropped", "rejected"),
        "characters_without_token",
    )
    sums = {name: getattr(before, name) + getattr(new, name) for name in counted}
    dropped = Counter(before.dropped_by) + Counter(new.dropped_by)
    rejected = Counter(before.rejected_by) + Counter(new.rejected_by)
    return replace(new, **sums, dropped_by=dict(dropped), rejected_by=dict(rejected))
