"""The plan: every part of a build and their sums, before anything runs.

The plan adds no rules to those of a build: the functions that a build calls pack the shards, choose the index
key, cut the lists and write the tables here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retro_db.config import Config
from retro_db.index.sizing import ID_BYTES
from retro_db.manifest.model import TABLES, Manifest
from retro_db.manifest.sealing import FILE as MANIFEST
from retro_db.manifest.sealing import manifest_text
from retro_db.plan.breadth_law import BreadthLaw
from retro_db.plan.corpus_facts import Facts, Layout, share_out
from retro_db.plan.hours import HoursPlan, MeasuredRates, plan_hours
from retro_db.plan.index_plan import IndexPlan, plan_index
from retro_db.plan.join_plan import BreadthPlan, JoinPlan, plan_breadths, plan_join
from retro_db.plan.manifests import Files, planned_manifest, total_rows
from retro_db.plan.stage_needs import (
    DrawnBytes,
    PlannedFiles,
    needs_of_queries,
    plan_drawn,
    stage_needs,
)
from retro_db.plan.stage_plan import StagePlan, plan_stages
from retro_db.plan.table_sizes import arrow_files, corpus_files
from retro_db.screening.duplicates import BAND_ENTRY, count_partitions
from retro_db.screening.grams import Bands
from retro_db.store.folder import FileEntry
from retro_db.tokens.tokenizer import token_type_for

# About how many English words a token has, each of which begins a gram; and the bytes of a gram's hash.
_WORDS_PER_TOKEN, _BYTES_PER_GRAM = 0.75, 8


@dataclass(frozen=True)
class TablePlan:
    """One table: its files, rows and bytes, and the bytes for each chunk of the corpus."""

    table: str
    files: int
    rows: int
    bytes: int
    bytes_per_chunk: float


@dataclass(frozen=True)
class Totals:
    """Sums over the tables and the stages.

    Attributes:
        files: Number of files of all tables.
        bytes: Bytes of all tables.
        bytes_per_chunk: Bytes of all tables for each chunk of the corpus.
        temporary_bytes: Bytes of the files that lie beside the tables until the build ends.
        peak_bytes: Bytes of the tables and the temporary files together.
        tasks: Number of tasks of all stages.
        descriptor_bytes: Bytes of the descriptors that cross stage boundaries.
        shuffled_bytes: Payload that is shuffled: band keys, if the build looks for duplicates.
        list_requests: Number of list requests of all stages.
    """

    files: int
    bytes: int
    bytes_per_chunk: float
    temporary_bytes: int
    peak_bytes: int
    tasks: int
    descriptor_bytes: int
    shuffled_bytes: int
    list_requests: int


@dataclass(frozen=True)
class Plan:
    """A whole build.

    Attributes:
        source: Origin of the counts of documents and tokens, in words.
        documents: Number of documents that are kept.
        tokens: Number of tokens of these documents.
        input_bytes: Bytes of the files, or of the ranges of files, that make up the shards.
        chunks: Number of chunks of the corpus.
        queried_chunks: Number of chunks of the query corpora, which get neighbors too.
        chunk_tokens: Tokens of a chunk, m.
        token_type: Type of stored tokens.
        dimension: Dimension of the embeddings.
        k: Neighbors of a chunk.
        shards: Number of shards of the corpus.
        parts: Number of files of each table of the corpus.
        largest_part: Number of chunks of the largest part.
        tables: Tables that stay, the manifest last.
        temporary: Tables that lie beside them until the build ends.
        index: Size of the index.
        join: How neighbors are found.
        breadths: What that takes for several recalls, if a sample was measured.
        stages: Stages in the order in which they run.
        hours: Hours of the stages whose rate is known.
        totals: Sums over tables and stages.
    """

    source: str
    documents: int
    tokens: int
    input_bytes: int
    chunks: int
    queried_chunks: int
    chunk_tokens: int
    token_type: str
    dimension: int
    k: int
    shards: int
    parts: int
    largest_part: int
    tables: list[TablePlan]
    temporary: list[TablePlan]
    index: IndexPlan
    join: JoinPlan
    breadths: list[BreadthPlan]
    stages: list[StagePlan]
    hours: list[HoursPlan]
    totals: Totals


def make_plan(
    config: Config,
    facts: Facts,
    chunks_per_second: float | None = None,
    nprobe: int | None = None,
    laws: Sequence[BreadthLaw] = (),
    measured: MeasuredRates | None = None,
    *,
    probing: bool = False,
) -> Plan:
    """Plans a build.

    Args:
        config: Configuration of the build.
        facts: Corpora, encoder and tokenizer to build from.
        chunks_per_second: Rate at which one of the user's devices embeds; a published rate by default.
        nprobe: Lists that a chunk visits to find its neighbors; by default what the laws predict for the
            recall that the configuration asks for, or a usual number.
        laws: How many lists recalls take, if a sample was measured.
        measured: What that sample's own stages took.
        probing: Whether the rates of this machine are measured.

    Raises:
        IndexKeyError: The index key is malformed, or this number of chunks and this memory cannot train it.
    """
    layouts, files = _lay_out(config, facts)
    chunks, queried_chunks = layouts[0].chunks, sum(layout.chunks for layout in layouts[1:])
    index, built = plan_index(config, facts.dimension, chunks)
    tables = _tables(planned_manifest(config, facts, files, built, index.described(config)))
    bands = _band_keys(config, facts)
    drawn = plan_drawn(config, index, chunks)
    temporary = _temporary(config, facts, layouts[0], files, index, drawn, bands)
    breadths = plan_breadths(config, index.lists, facts.dimension, chunks, laws)
    for plan in breadths:
        if plan.breadth.recall == config.index.recall_target:
            nprobe = nprobe or plan.breadth.nprobe
    join = plan_join(config, index.lists, facts.dimension, chunks, nprobe)
    temporary.append(_table_of_join(join, chunks))
    planned = PlannedFiles(files, built[0], built[-index.partitions :], temporary[0].bytes, drawn)
    needs = stage_needs(
        config,
        facts,
        planned,
        join,
        index,
    )
    stages = plan_stages(
        config,
        facts,
        files,
        index.partitions,
        join.partitions,
        count_partitions(bands, 1),
        needs | needs_of_queries(config, facts, files, join),
    )
    rates = [measured] if measured else []
    if probing:
        # Imports torch and transformers, which takes seconds.
        from retro_db.plan.probing import probe_rates

        probed = probe_rates(
            config,
            facts.corpus.shards if facts.exist else [],
            lists=index.lists,
            chunks=chunks,
            nprobe=join.nprobe,
            dimension=facts.dimension,
        )
        rates.append(probed)
    return Plan(
        source=facts.source,
        documents=facts.corpus.documents,
        tokens=facts.corpus.tokens,
        input_bytes=sum(shard.bytes for shard in facts.corpus.shards),
        chunks=chunks,
        queried_chunks=queried_chunks,
        chunk_tokens=config.chunk.tokens,
        token_type=token_type_for(facts.vocab_size).name,
        dimension=facts.dimension,
        k=config.neighbors.k,
        shards=len(facts.corpus.shards),
        parts=len(layouts[0].rows),
        largest_part=int(layouts[0].rows.max()),
        tables=tables,
        temporary=temporary,
        index=index,
        join=join,
        breadths=breadths,
        stages=stages,
        hours=plan_hours(
            chunks + queried_chunks,
            facts.dimension,
            join.operations,
            on_gpu=facts.on_gpu,
            chunks_per_second=chunks_per_second,
            measured=rates,
        ),
        totals=_sum_up(tables, temporary, stages, bands * BAND_ENTRY.itemsize, chunks),
    )


def plan_manifest(config: Config, facts: Facts) -> Manifest:
    """The manifest that a build would write, but for hashes and what tuning finds.

    Args:
        config: Configuration of the build.
        facts: Corpora, encoder and tokenizer to build from.

    Raises:
        IndexKeyError: As for `make_plan`.
    """
    layouts, files = _lay_out(config, facts)
    index, built = plan_index(config, facts.dimension, layouts[0].chunks)
    return planned_manifest(config, facts, files, built, index.described(config))


def _lay_out(config: Config, facts: Facts) -> tuple[list[Layout], list[Files]]:
    """Parts and files of the corpus, then of each query corpus."""
    corpora, chunk = [facts.corpus, *facts.queries], config.chunk
    layouts = [corpus.lay_out(chunk.tokens, chunk.part_rows) for corpus in corpora]
    pairs = zip(corpora, layouts, strict=True)
    return layouts, [corpus_files(corpus, layout, facts, config) for corpus, layout in pairs]


def _tables(manifest: Manifest) -> list[TablePlan]:
    """Returns what the manifest lists, and the manifest itself."""
    chunks, tables = manifest.counts.chunks, manifest.tables
    listed = {name: getattr(tables, name) for name in TABLES} | {
        "index": manifest.index_files,
        "tokenizer": manifest.tokenizer_files,
        "queries": [file for query in manifest.queries for file in query.tables.files],
        "manifest": [FileEntry(MANIFEST, len(manifest_text(manifest)), "")],
    }
    return [_table(name, files, chunks) for name, files in listed.items() if files]


def _temporary(
    config: Config,
    facts: Facts,
    layout: Layout,
    files: Sequence[Files],
    index: IndexPlan,
    drawn: DrawnBytes,
    bands: int,
) -> list[TablePlan]:
    """Returns codes; what is drawn to train and tune; embeddings that are not kept; grams and band keys."""
    chunks = layout.chunks
    entries = share_out(index.entries, layout.rows)
    codes = arrow_files("codes", layout, entries, code_size=index.entry_bytes - ID_BYTES)
    temporary = [
        _table("codes", codes, chunks),
        TablePlan("drawn", len(layout.rows), 0, drawn.all, round(drawn.all / chunks, 3)),
    ]
    if not config.embeddings.keep:
        embeddings = [file for tables in files for file in tables["embeddings"]]
        temporary.append(_table("embeddings", embeddings, chunks))
    if bands:
        size = round(facts.corpus.tokens * _WORDS_PER_TOKEN) * _BYTES_PER_GRAM
        size += bands * _BYTES_PER_GRAM
        shards, documents = len(facts.corpus.shards), facts.corpus.documents
        temporary.append(TablePlan("signatures", shards, documents, size, round(size / chunks, 3)))
    return temporary


def _table_of_join(join: JoinPlan, chunks: int) -> TablePlan:
    """Returns what the join keeps beside the tables until the build ends."""
    files = 3 * join.partitions
    return TablePlan("join", files, chunks, join.disk_bytes, round(join.disk_bytes / chunks, 3))


def _band_keys(config: Config, facts: Facts) -> int:
    """Returns the number of band keys of all documents; 0 if the build does not look for duplicates."""
    if config.dedup.jaccard is None:
        return 0
    return facts.corpus.documents * Bands.for_threshold(config.dedup.jaccard).count


def _table(name: str, files: Sequence[FileEntry], chunks: int) -> TablePlan:
    size = sum(file.bytes for file in files)
    return TablePlan(name, len(files), total_rows(files), size, round(size / chunks, 3))


def _sum_up(
    tables: Sequence[TablePlan],
    temporary: Sequence[TablePlan],
    stages: Sequence[StagePlan],
    shuffled: int,
    chunks: int,
) -> Totals:
    size = sum(table.bytes for table in tables)
    temporary_bytes = sum(table.bytes for table in temporary)
    return Totals(
        files=sum(table.files for table in tables),
        bytes=size,
        bytes_per_chunk=round(size / chunks, 3),
        temporary_bytes=temporary_bytes,
        peak_bytes=size + temporary_bytes,
        tasks=sum(stage.tasks for stage in stages),
        descriptor_bytes=sum(stage.descriptor_bytes for stage in stages),
        shuffled_bytes=shuffled,
        list_requests=sum(stage.list_requests for stage in stages),
    )
