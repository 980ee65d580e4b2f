"""The manifest of a database that is not built yet: every file with its path and size."""

from __future__ import annotations

from collections.abc import Sequence

from retro_db.config import Config
from retro_db.index.refining import fine_size
from retro_db.index.training import HNSW_EF_SEARCH
from retro_db.manifest.model import (
    ChunkInfo,
    Counts,
    EncoderInfo,
    IndexInfo,
    Manifest,
    NeighborsInfo,
    QueryCorpus,
    RecallPoint,
    SourceCounts,
    Tables,
    TokenizerInfo,
    query_path,
)
from retro_db.plan.corpus_facts import UNKNOWN_SHA256, Corpus, Facts
from retro_db.store.folder import FileEntry, TableEntry
from retro_db.tokens.tokenizer import token_type_for

# Stands for what a model's folder says.
_MAX_LENGTH = 256
# About how many search settings tuning measures.
_MEASURED = 16
Files = dict[str, list[TableEntry]]


def planned_manifest(
    config: Config,
    facts: Facts,
    files: Sequence[Files],
    index_files: list[FileEntry],
    index: IndexInfo,
) -> Manifest:
    """Returns what a build would write last, without what only a build can know: hashes and tuned values.

    Args:
        config: Configuration of the build.
        facts: Corpora, encoder and tokenizer to build from.
        files: Files of the corpus and of each query corpus, by table.
        index_files: The trained index and the partitions.
        index: Description of the index in the manifest.
    """
    tables = [_kept_tables(by_table, config) for by_table in files]
    corpus, portable = facts.corpus, config.portable()
    chunks = total_rows(files[0]["chunks"])
    queried = zip(facts.queries, files[1:], tables[1:], strict=True)
    encoder = config.encoder
    return Manifest(
        counts=Counts(corpus.documents, chunks, corpus.tokens, 0, 0, total_rows(index_files), 0),
        sources=[
            _source(name, corpus, chunks) for name in (source.name for source in config.corpus)
        ],
        chunk=ChunkInfo(
            config.chunk.tokens, token_type_for(facts.vocab_size).name, 0, facts.vocab_size
        ),
        tokenizer=TokenizerInfo(UNKNOWN_SHA256),
        encoder=EncoderInfo(
            portable["encoder"]["model"],
            UNKNOWN_SHA256,
            facts.dimension,
            encoder.pooling,
            _MAX_LENGTH if encoder.max_length == "auto" else encoder.max_length,
            encoder.dtype,
            encoder.device,
        ),
        index=index,
        neighbors=NeighborsInfo(config.neighbors.k),
        config=portable,
        tables=tables[0],
        index_files=index_files,
        tokenizer_files=[
            FileEntry(f"tokenizer/{name}", size, UNKNOWN_SHA256)
            for name, size in facts.tokenizer_files.items()
        ],
        queries=[
            QueryCorpus(
                _source(query.name, query, total_rows(by_table["chunks"])),
                0,
                0,
                _below(query, kept),
            )
            for query, by_table, kept in queried
        ],
    )


def index_info(
    config: Config, key: str, lists: int, partitions: int, points: int, dimension: int
) -> IndexInfo:
    """Describes an index that is not tuned: with about as many points of recall as tuning measures."""
    graph = HNSW_EF_SEARCH if "_HNSW" in key else None
    point = RecallPoint(lists, 0.98, 0.97, config.neighbors.rerank, graph)
    fine = 0 if config.embeddings.keep else fine_size(config.index.refine, dimension)
    return IndexInfo(
        key,
        lists,
        partitions,
        lists,
        point.rerank,
        points,
        UNKNOWN_SHA256,
        1000,
        [point] * _MEASURED,
        graph,
        fine,
    )


def _kept_tables(files: Files, config: Config) -> Tables:
    if config.embeddings.keep:
        return Tables(**files)
    return Tables(**{**files, "embeddings": []})


def _below(query: Corpus, tables: Tables) -> Tables:
    folder = query_path(query.name)
    below = {name: [file.below(folder) for file in files] for name, files in vars(tables).items()}
    return Tables(**below)


def _source(name: str, corpus: Corpus, chunks: int) -> SourceCounts:
    return SourceCounts(
        name, 1.0, corpus.documents, corpus.documents, chunks, corpus.tokens, dropped=0, rejected=0
    )


def total_rows(files: Sequence[FileEntry]) -> int:
    """Rows of those files that have any."""
    return sum(file.rows for file in files if isinstance(file, TableEntry))
