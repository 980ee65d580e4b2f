"""The whole build: every stage in turn, then the manifest, last of all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

from retro_db.config import Config
from retro_db.corpus.chunking import ChunkedShard
from retro_db.corpus.estimating import estimate_corpus
from retro_db.corpus.planning import Shard, plan_shards, sample_shards
from retro_db.encoder.models import EncoderModel, describe_model
from retro_db.index.keys import parse_key
from retro_db.index.refining import fine_size
from retro_db.index.training import create_index
from retro_db.manifest.files import GENERATIONS, write_manifest
from retro_db.manifest.model import (
    ChunkInfo,
    Counts,
    EncoderInfo,
    IndexInfo,
    Manifest,
    NeighborsInfo,
    Tables,
    TokenizerInfo,
    query_path,
)
from retro_db.manifest.parts import Part
from retro_db.report.stage_report import STAGES, StageReport
from retro_db.search.retriever import LOCATIONS, Locations
from retro_db.store.folder import Folder
from retro_db.store.serialize import canonical, digest, to_json

from ..engine.console import Console
from ..engine.resume import Build, NothingYetError
from ..engine.runner import Engine
from ..stages import chunk, embed, neighbors, screen, tokenizer, tune
from ..stages import train as index
from ..stages.chunk import chunk_stage
from ..stages.embed import embed_stage, probe_stage
from ..stages.neighbors import NeighborsPart, Searched, neighbors_stage
from ..stages.screen import screen_stage
from ..stages.tokenizer import TokenizerFiles, tokenizer_stage
from ..stages.tune import BuiltIndex
from .counts import source_counts, total_counts
from .folders import (
    check_output,
    check_replaceable,
    finished,
    mark_finished,
    owned_folder,
    smoke_output,
    sweep,
)
from .index import index_stages
from .index_key import announce_key, decide_key, training_chunks
from .preflight import allow_files, check_ahead
from .queries import QueriedCorpus, chunk_queries, plan_queries, query_stages

VERSIONS = [module.VERSION for module in (tokenizer, screen, chunk, embed, index, tune, neighbors)]


def build(config: Config, engine: Engine, console: Console, smoke: int | None = None) -> Manifest:
    """Builds a database, continuing where an earlier run stopped.

    Args:
        config: What to build.
        engine: What executes the stages.
        console: What people see.
        smoke: Build from about so many documents instead, in a folder of its own.

    Returns:
        The manifest.

    Raises:
        InputError: Of a kind that names the field and the remedy.
        ExecutionError: The environment failed.
    """
    with _prepared(config, engine, console, smoke) as (started, queries, described):
        model = probe_stage(started, described)
        vocabulary = tokenizer_stage(started)
        screened = screen_stage(started, vocabulary)
        everything = (started, *queries)
        shards = [[(s.identity, s.stamp) for s in one.shards] for one in everything]
        verdicts = [file.sha256 if file else None for file in screened]
        identities = [vocabulary.sha256, vocabulary.pad_id, vocabulary.end_id, to_json(model)]
        mark = digest([VERSIONS, started.config.portable(), shards, verdicts, *identities])
        if manifest := finished(started.folder, mark):
            console.say(f"{started.config.output} is up to date: nothing to do")
            return manifest
        chunked, parts = chunk_stage(started, vocabulary, screened)
        cut = [chunk_queries(one, vocabulary) for one in queries]
        # What cannot be trained is refused before anything is embedded, and known exactly after.
        announce_key(started, chunked, model.dimension)
        parts, keyless = embed_stage(started, parts, vocabulary, model)
        key = decide_key(started, chunked, model.dimension, keyless)
        built = index_stages(started, parts, key, training_chunks(chunked), model.dimension)
        searched = _searched(started, parts, built, vocabulary, model)
        found = neighbors_stage(started, parts, searched)
        queried = [
            query_stages(one, *chunks, vocabulary, model, searched)
            for one, chunks in zip(queries, cut, strict=True)
        ]
        for one in queries:
            place = query_path(one.config.corpus[0].name)
            started.stages |= {f"{place}/{stage}": work for stage, work in one.stages.items()}
        results = _Results(chunked, parts, keyless, vocabulary, model, built, found, queried)
        return _finish(started, results, mark)


def run_one(stage: str, config: Config, engine: Engine, console: Console) -> None:
    """Runs one stage alone; the ones before it must be done.

    Args:
        stage: tokenizer, screen, chunk, embed, index (training to tuning) or neighbors; of the
            query corpora too.
        config: What to build.
        engine: What executes it.
        console: What people see.

    Raises:
        InputError: An earlier stage has work left.
    """
    with _prepared(config, engine, console, None, stage) as (started, queries, model):
        vocabulary = tokenizer_stage(started)
        if stage == "tokenizer":
            return
        screened = screen_stage(started, vocabulary)
        if stage == "screen":
            return
        chunked, parts = chunk_stage(started, vocabulary, screened)
        if stage == "chunk":
            for one in queries:
                chunk_queries(one, vocabulary)
            return
        announce_key(started, chunked, model.dimension)
        model = probe_stage(started, model)
        parts, keyless = embed_stage(started, parts, vocabulary, model)
        if stage == "embed":
            for one in queries:
                embed_stage(one, chunk_queries(one, vocabulary)[1], vocabulary, model)
            return
        key = decide_key(started, chunked, model.dimension, keyless)
        built = index_stages(started, parts, key, training_chunks(chunked), model.dimension)
        if stage == "neighbors":
            searched = _searched(started, parts, built, vocabulary, model)
            neighbors_stage(started, parts, searched)
            for one in queries:
                query_stages(one, *chunk_queries(one, vocabulary), vocabulary, model, searched)


def _searched(
    build: Build,
    parts: list[Part],
    index: BuiltIndex,
    tokenizer: TokenizerFiles,
    model: EncoderModel,
) -> Searched:
    parameters: dict[str, str | int] = {
        "token_type": tokenizer.token_type,
        "chunk_tokens": build.config.chunk.tokens,
        "dimension": model.dimension,
    }
    named = [source.name for source in build.config.corpus if source.id]
    return Searched(build.home, parts, index, parameters, named)


@dataclass(frozen=True)
class _Results:
    """What the stages returned."""

    chunked: list[ChunkedShard]
    parts: list[Part]
    keyless: int
    tokenizer: TokenizerFiles
    model: EncoderModel
    index: BuiltIndex
    found: list[NeighborsPart]
    queried: list[QueriedCorpus]


def tell_build(config: Config, engine: Engine, console: Console) -> None:
    """Says what a build would do and why, and writes nothing.

    Args:
        config: What to build.
        engine: What would execute it.
        console: What people see.

    Raises:
        InputError: Of a kind that names the field and the remedy.
    """
    with _prepared(config, engine, console, None, dry_run=True) as (build, queries, described):
        _tell_stages(build, queries, described)
        if pending := [stage for one in (build, *queries) for stage in one.pending]:
            console.say(
                f"dry run    {', '.join(pending)} to do; what comes after them is redone where they "
                "give other results"
            )
        else:
            console.say("dry run    nothing to do")


def _tell_stages(build: Build, queries: list[Build], described: EncoderModel) -> None:
    """Says of every stage what is done and what is not, as far as that can be known beforehand."""
    with suppress(NothingYetError):
        model = probe_stage(build, described)
        vocabulary = tokenizer_stage(build)
        screened = screen_stage(build, vocabulary)
        chunked, parts = chunk_stage(build, vocabulary, screened)
        parts, keyless = embed_stage(build, parts, vocabulary, model)
        for one in queries:
            embed_stage(one, chunk_queries(one, vocabulary)[1], vocabulary, model)
        if not build.pending:
            key = decide_key(build, chunked, model.dimension, keyless)
            built = index_stages(build, parts, key, training_chunks(chunked), model.dimension)
            searched = _searched(build, parts, built, vocabulary, model)
            neighbors_stage(build, parts, searched)
            for one in queries:
                query_stages(one, *chunk_queries(one, vocabulary), vocabulary, model, searched)


@contextmanager
def _prepared(
    config: Config,
    engine: Engine,
    console: Console,
    smoke: int | None,
    only: str | None = None,
    dry_run: bool = False,
) -> Iterator[tuple[Build, list[Build], EncoderModel]]:
    """Everything that can be checked before the first stage is checked; then the plan is made."""
    if smoke is not None:
        config = config.model_copy(update={"output": smoke_output(config)})
    engine.options()
    folder = Folder(config.output)
    check_replaceable(folder)
    check_output(folder)
    with nullcontext(folder) if dry_run else owned_folder(folder) as folder:
        # An append or a removal may have ended in between.
        check_replaceable(folder)
        if not dry_run:
            folder.remove(GENERATIONS)  # of an append that was given up
        model = describe_model(config.encoder)
        if config.index.key != "auto":
            create_index(parse_key(config.index.key, model.dimension), model.dimension)
        shards = plan_shards(config)
        whole, documents = sum(shard.bytes for shard in shards), None
        estimate = estimate_corpus(shards, config)
        if smoke is not None:
            documents = estimate.documents
            shards = sample_shards(shards, smoke, documents, config.seed)
            estimate = estimate.thinned(smoke)
        console.say(_planned(shards, whole))
        # Every shard begins a part of its own.
        parts = len(shards) + estimate.chunks(config.chunk.tokens) // config.chunk.part_rows
        if only is None:
            sampled, local = smoke is not None, engine.is_local
            check_ahead(config, folder, parts, estimate, model, sampled, local, console)
        else:
            allow_files(parts)
        place = os.path.abspath(os.path.expanduser(config.encoder.model))
        locations = Locations(place if os.path.isdir(place) else config.encoder.model)
        if not dry_run:
            folder.write(LOCATIONS, canonical(to_json(locations)))
        started = Build(config, folder, folder, engine, console, shards, documents, only)
        started.dry_run = dry_run
        queries = list(plan_queries(started))
        if smoke is not None:
            for one in queries:
                held = estimate_corpus(one.shards, one.config).documents
                one.shards = sample_shards(one.shards, smoke, held, config.seed)
        yield started, queries, model


def _finish(build: Build, results: _Results, mark: str) -> Manifest:
    """Writes the manifest, last of all that belongs to the database."""
    folder = build.folder
    manifest = write_manifest(folder, _manifest(build.config, results))
    sweep(folder, manifest)
    scale = 1.0 if build.smoke is None else build.smoke / manifest.counts.documents
    write_stages(build, manifest, results.index, max(scale, 1.0))
    mark_finished(folder, mark, manifest)
    return manifest


def write_stages(build: Build, manifest: Manifest, index: BuiltIndex, scale: float = 1.0) -> None:
    """Keeps what the stages took beside the database that they made.

    Args:
        build: What ran.
        manifest: What it made.
        index: How it is searched, and what that took.
        scale: Documents of the whole corpus for each one that was built.
    """
    report = StageReport(manifest.generation, build.stages, scale, index.search.speeds)
    build.home.write(STAGES, json.dumps(to_json(report), indent=1).encode())


def _manifest(config: Config, results: _Results) -> Manifest:
    chunked, parts, tokenizer = results.chunked, results.parts, results.tokenizer
    model, index, found = results.model, results.index, results.found
    portable = config.portable()
    return Manifest(
        counts=Counts(
            **total_counts(chunked),
            keyless_chunks=results.keyless,
            indexed_chunks=sum(file.rows for file in index.partitions),
            short_rows=sum(part.short_rows for part in found),
        ),
        sources=[source_counts(chunked, source.name, source.weight) for source in config.corpus],
        chunk=ChunkInfo(
            config.chunk.tokens, tokenizer.token_type, tokenizer.pad_id, tokenizer.vocab_size
        ),
        tokenizer=TokenizerInfo(tokenizer.sha256),
        encoder=EncoderInfo(
            model=portable["encoder"]["model"],
            sha256=model.sha256,
            dimension=model.dimension,
            pooling=model.pooling,
            max_length=model.max_length,
            dtype=model.dtype,
            device=model.device,
            batch_tokens=model.batch_tokens,
        ),
        index=IndexInfo(
            key=index.key,
            lists=index.lists,
            partitions=len(index.partitions),
            nprobe=index.search.settings.nprobe,
            rerank=index.search.settings.rerank,
            ef_search=index.search.settings.ef_search,
            training_points=index.template.points,
            template_sha256=index.template.file.sha256,
            recall_queries=index.search.queries,
            recall=index.search.curve,
            fine_size=fine_size(config.index.refine, model.dimension) if index.fine else 0,
        ),
        neighbors=NeighborsInfo(config.neighbors.k),
        config=portable,
        tables=Tables(
            documents=[part.documents for part in parts],
            chunks=[part.chunks for part in parts],
            embeddings=[part.keys_file for part in parts] if config.embeddings.keep else [],
            neighbors=[part.file for part in found],
            dropped=[shard.left_out for shard in chunked if shard.left_out],
            fine=index.fine,
        ),
        index_files=[*index.template.files, *index.partitions],
        tokenizer_files=tokenizer.files,
        queries=[
            queried.described(
                source_counts(queried.chunked, source.name, source.weight), config.embeddings.keep
            )
            for queried, source in zip(results.queried, config.queries, strict=True)
        ],
    )


def _planned(shards: list[Shard], whole: int) -> str:
    files = len({piece.file.url for shard in shards for piece in shard.pieces})
    read = sum(shard.bytes for shard in shards)
    text = f"plan       {files:,} files, {read / 1e6:,.1f} MB, {len(shards):,} shards"
    return text if read == whole else f"{text}, a sample of {whole / 1e6:,.1f} MB"
