"""The manifest of a database that was built, appended to or compacted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from retro_db.config import Config
from retro_db.encoder.models import EncoderModel
from retro_db.index.refining import fine_size
from retro_db.manifest.model import (
    VERSION,
    ChunkInfo,
    Counts,
    EncoderInfo,
    IndexInfo,
    Manifest,
    NeighborsInfo,
    QueryCorpus,
    SourceCounts,
    Tables,
    TokenizerInfo,
)
from retro_db.store.folder import TableEntry
from retro_db.updates.compaction import CompactedPart

from ..stages.embed import EmbeddedCorpus
from ..stages.neighbors import NeighborsTable
from ..stages.tokenizer import TokenizerFiles
from ..stages.tune import BuiltIndex
from .counts import added_counts, source_counts, total_counts

# Why a compacted database has fewer documents than the one it was made of.
REMOVED = "removed"
# Settings of the search, which an append takes from its own configuration.
_TUNED = ("index.recall_target", "neighbors.rerank")


def built_manifest(
    config: Config,
    *,
    tokenizer: TokenizerFiles,
    model: EncoderModel,
    corpus: EmbeddedCorpus,
    index: BuiltIndex,
    neighbors: NeighborsTable,
    queries: list[QueryCorpus],
) -> Manifest:
    """The manifest of a database as it is built.

    Args:
        config: Configuration.
        tokenizer: The language model's tokenizer.
        model: The encoder.
        corpus: The corpus with its embeddings.
        index: The index.
        neighbors: Neighbors of the corpus's chunks.
        queries: The query corpora.
    """
    portable = config.portable()
    totals = total_counts(corpus.shards)
    return Manifest(
        counts=Counts(
            documents=totals.documents,
            chunks=totals.chunks,
            tokens=totals.tokens,
            validation_chunks=totals.validation_chunks,
            keyless_chunks=corpus.keyless,
            indexed_chunks=index.entries,
            short_rows=neighbors.short_rows,
        ),
        sources=[
            source_counts(corpus.shards, source.name, source.weight) for source in config.corpus
        ],
        chunk=ChunkInfo(
            config.chunk.tokens, tokenizer.token_type, tokenizer.pad_id, tokenizer.vocab_size
        ),
        tokenizer=TokenizerInfo(tokenizer.sha256),
        encoder=encoder_info(portable["encoder"]["model"], model),
        index=_index_info(index, fine_size(config.index.refine, model.dimension)),
        neighbors=_neighbors_info(config.neighbors.k, index),
        config=portable,
        tables=_built_tables(
            corpus, neighbors, keeps_embeddings=config.embeddings.keep, fine=index.fine
        ),
        index_files=[*index.template.files, *index.partitions],
        tokenizer_files=tokenizer.files,
        queries=queries,
    )


def encoder_info(name: str, model: EncoderModel) -> EncoderInfo:
    """The manifest's entry of the encoder.

    Args:
        name: Folder without its path, or hub name.
        model: The encoder.
    """
    return EncoderInfo(
        model=name,
        sha256=model.sha256,
        dimension=model.dimension,
        pooling=model.pooling,
        max_length=model.max_length,
        dtype=model.dtype,
        device=model.device,
        batch_tokens=model.batch_tokens,
        prompt=model.prompt,
        pools_prompt=model.pools_prompt,
        dense=list(model.dense),
        normalize=model.normalize,
        equal_lengths=model.equal_lengths,
        identity=model.identity,
    )


def _index_info(index: BuiltIndex, fine_bytes: int) -> IndexInfo:
    settings = index.search.settings
    return IndexInfo(
        key=index.key,
        lists=index.lists,
        partitions=len(index.partitions),
        nprobe=settings.nprobe,
        rerank=settings.rerank,
        ef_search=settings.ef_search,
        training_points=index.template.points,
        template_sha256=index.template.file.sha256,
        recall_queries=index.search.queries,
        recall=index.search.curve,
        fine_size=fine_bytes if index.fine else 0,
    )


def _neighbors_info(k: int, index: BuiltIndex) -> NeighborsInfo:
    breadth = index.measured.join
    return NeighborsInfo(k, breadth.nprobe, breadth.curve)


def _built_tables(
    corpus: EmbeddedCorpus,
    neighbors: NeighborsTable,
    *,
    keeps_embeddings: bool,
    fine: Sequence[TableEntry] = (),
) -> Tables:
    parts = corpus.parts
    return Tables(
        documents=[part.documents for part in parts],
        chunks=[part.chunks for part in parts],
        embeddings=[part.keys_file for part in parts] if keeps_embeddings else [],
        neighbors=neighbors.files,
        dropped=[shard.left_out for shard in corpus.shards if shard.left_out],
        fine=list(fine),
    )


def query_corpus(config: Config, corpus: EmbeddedCorpus, neighbors: NeighborsTable) -> QueryCorpus:
    """The manifest's entry of a query corpus.

    Args:
        config: Configuration of the query corpus.
        corpus: The query corpus with its embeddings, its files as the database sees them.
        neighbors: Neighbors of its chunks.
    """
    [source] = config.corpus
    return QueryCorpus(
        source=source_counts(corpus.shards, source.name, source.weight),
        keyless_chunks=corpus.keyless,
        short_rows=neighbors.short_rows,
        tables=_built_tables(corpus, neighbors, keeps_embeddings=config.embeddings.keep),
    )


def searched_again(query: QueryCorpus, neighbors: NeighborsTable) -> QueryCorpus:
    """The entry of a query corpus whose neighbors were searched again.

    Args:
        query: The entry so far.
        neighbors: The new neighbors of its chunks.
    """
    tables = replace(query.tables, neighbors=neighbors.files)
    return replace(query, tables=tables, short_rows=neighbors.short_rows)


def appended_manifest(
    config: Config,
    old: Manifest,
    *,
    corpus: EmbeddedCorpus,
    index: BuiltIndex,
    neighbors: NeighborsTable,
    queries: list[QueryCorpus],
    refreshed: bool,
) -> Manifest:
    """The manifest of a database to which documents were added.

    Args:
        config: Configuration of what was added.
        old: The manifest before.
        corpus: What was added, its files as the database sees them.
        index: The index over all.
        neighbors: Neighbors of the chunks that were searched for.
        queries: The query corpora.
        refreshed: Whether old chunks were searched for, too.
    """
    totals, counts = total_counts(corpus.shards), old.counts
    kept_rows, kept_files = (0, []) if refreshed else (counts.short_rows, old.tables.neighbors)
    left_out = [shard.left_out for shard in corpus.shards if shard.left_out]
    return replace(
        old,
        counts=replace(
            counts,
            documents=counts.documents + totals.documents,
            chunks=counts.chunks + totals.chunks,
            tokens=counts.tokens + totals.tokens,
            validation_chunks=counts.validation_chunks + totals.validation_chunks,
            keyless_chunks=counts.keyless_chunks + corpus.keyless,
            indexed_chunks=index.entries,
            short_rows=kept_rows + neighbors.short_rows,
        ),
        sources=_added_sources(old.sources, config, corpus),
        index=_searched_info(old.index, index),
        neighbors=_neighbors_info(old.neighbors.k, index),
        config=_merged_settings(old.config, config.portable()),
        tables=replace(
            old.tables,
            documents=[*old.tables.documents, *(part.documents for part in corpus.parts)],
            chunks=[*old.tables.chunks, *(part.chunks for part in corpus.parts)],
            embeddings=[*old.tables.embeddings, *(part.keys_file for part in corpus.parts)],
            neighbors=[*kept_files, *neighbors.files],
            dropped=[*old.tables.dropped, *left_out],
        ),
        index_files=[old.template_file, *index.partitions],
        queries=queries,
    )


def _added_sources(
    old: Sequence[SourceCounts], config: Config, corpus: EmbeddedCorpus
) -> list[SourceCounts]:
    """Counts by source; sources that the database has already are added up."""
    sources = {source.name: source for source in old}
    for source in config.corpus:
        new = source_counts(corpus.shards, source.name, source.weight)
        before = sources.get(new.name)
        sources[new.name] = added_counts(before, new) if before else new
    return list(sources.values())


def _searched_info(info: IndexInfo, index: BuiltIndex) -> IndexInfo:
    """The entry of a trained index that holds other chunks by now, and is searched otherwise."""
    settings = index.search.settings
    return replace(
        info,
        partitions=len(index.partitions),
        nprobe=settings.nprobe,
        rerank=settings.rerank,
        ef_search=settings.ef_search,
        recall_queries=index.search.queries,
        recall=index.search.curve,
    )


def _merged_settings(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The settings of the database, with the sources and the names to leave out of both."""
    named = {source["name"]: source for source in (*old["corpus"], *new["corpus"])}
    merged = copy.deepcopy(old) | {"corpus": list(named.values())}
    for section, name in (setting.split(".") for setting in _TUNED):
        merged[section][name] = new[section][name]
    names = dict.fromkeys((*old["leakage"]["names"], *new["leakage"]["names"]))
    merged["leakage"]["names"] = list(names)
    return merged


def compacted_manifest(
    old: Manifest,
    *,
    copied: Sequence[CompactedPart],
    index: BuiltIndex,
    neighbors: NeighborsTable,
    queries: list[QueryCorpus],
    dropped: list[TableEntry],
    renumbered: TableEntry,
) -> Manifest:
    """The manifest of a database that was made of another without its removed documents.

    Args:
        old: The manifest of the other.
        copied: What was copied, for every part of the other.
        index: The index.
        neighbors: Neighbors of all chunks.
        queries: The query corpora.
        dropped: Tables of the documents that the other left out.
        renumbered: Table of the new ids.
    """
    parts = [part for part in copied if part.documents.rows]
    return replace(
        old,
        counts=replace(
            old.counts,
            documents=sum(part.documents.rows for part in parts),
            chunks=sum(part.chunks.rows for part in parts),
            tokens=sum(part.tokens for part in parts),
            validation_chunks=sum(part.validation_chunks for part in parts),
            keyless_chunks=sum(part.keyless for part in parts),
            indexed_chunks=index.entries,
            short_rows=neighbors.short_rows,
            removed_documents=0,
            removed_chunks=0,
        ),
        sources=[_remaining_source(source, parts) for source in old.sources],
        index=_searched_info(old.index, index),
        neighbors=_neighbors_info(old.neighbors.k, index),
        tables=Tables(
            documents=[part.documents for part in parts],
            chunks=[part.chunks for part in parts],
            embeddings=[part.embeddings for part in parts],
            neighbors=neighbors.files,
            dropped=dropped,
            renumbered=[renumbered],
        ),
        index_files=[old.template_file, *index.partitions],
        queries=queries,
        generation=1,
        parent=None,
        version=VERSION,
    )


def _remaining_source(old: SourceCounts, parts: Sequence[CompactedPart]) -> SourceCounts:
    """The counts of a source whose removed documents count as dropped."""
    parts = [part for part in parts if part.source == old.name]
    documents = sum(part.documents.rows for part in parts)
    removed = old.documents - documents
    reasons = dict(old.dropped_by)
    if removed:
        reasons[REMOVED] = reasons.get(REMOVED, 0) + removed
    return replace(
        old,
        documents=documents,
        chunks=sum(part.chunks.rows for part in parts),
        tokens=sum(part.tokens for part in parts),
        dropped=old.dropped + removed,
        dropped_by=reasons,
    )
