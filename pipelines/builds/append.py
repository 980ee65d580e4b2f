"""Documents added to a finished database: a new generation, whose readers see all of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from retro_db.config import Config
from retro_db.corpus.chunking import ChunkedShard
from retro_db.corpus.estimating import estimate_corpus
from retro_db.corpus.planning import plan_shards
from retro_db.encoder.models import EncoderModel, describe_model
from retro_db.errors import ConfigError, DamagedFileError, InputError
from retro_db.manifest.files import (
    GENERATIONS,
    generation_path,
    manifest_path,
    read_manifest,
    write_generation,
)
from retro_db.manifest.model import Counts, Manifest, QueryCorpus, SourceCounts, Tables, query_path
from retro_db.manifest.parts import Part, listed_parts
from retro_db.reader.database import Database
from retro_db.search.searching import count_lists, list_lengths
from retro_db.store.folder import Folder, TableEntry
from retro_db.store.records import StageRecords
from retro_db.store.serialize import digest
from retro_db.tokens.tokenizer import Tokenizer

from ..engine.console import Console
from ..engine.resume import Build
from ..engine.runner import Engine
from ..stages.assemble import AssembledPartition, ListRange, assemble_stage
from ..stages.chunk import chunk_stage
from ..stages.drift import Drift, drift_stage
from ..stages.embed import embed_stage
from ..stages.encode import encode_stage
from ..stages.neighbors import NeighborsPart, Removed, Searched, neighbors_stage
from ..stages.screen import screen_stage
from ..stages.tokenizer import TokenizerFiles
from ..stages.train import TrainedIndex
from ..stages.tune import BuiltIndex, tune_stages
from .build import VERSIONS, write_stages
from .counts import source_counts, total_counts
from .folders import FINISHED, owned_folder, sweep
from .index import say_index
from .preflight import check_append

# Beyond these the trained index fits what is in it less and less: build anew.
MOST_NEW_SHARE = 0.5
MOST_IMBALANCE_GROWTH = 1.25
MOST_ERROR_GROWTH = 1.25
# What decides the bytes of chunks, keys and neighbors: as the database has it.
_KEPT = (
    "chunk.tokens",
    "split.validation",
    "encoder.pooling",
    "encoder.max_length",
    "embeddings.keep",
    "neighbors.k",
    "neighbors.max_nprobe",
    "neighbors.drop_duplicates",
    "leakage.ngram",
    "leakage.jaccard",
    "dedup.jaccard",
    "seed",
)
# What the whole is tuned to, old and new: as the last configuration has it.
_TUNED = ("index.recall_target", "neighbors.rerank")


@dataclass(frozen=True)
class _Added:
    """What the stages returned; files as the database sees them."""

    chunked: list[ChunkedShard]
    parts: list[Part]
    keyless: int
    index: BuiltIndex
    neighbors: list[NeighborsPart]
    queries: list[QueryCorpus]


def append(config: Config, engine: Engine, console: Console, refresh: bool) -> Manifest:
    """Adds the documents of a configuration to the database that it names.

    Chunk ids, files and the trained index stay; new chunks are embedded and encoded, and find their
    neighbors among all. An interrupted run is continued by the same call.

    Args:
        config: Whose corpus is added; its other settings must be the database's.
        engine: What executes the stages.
        console: What people see.
        refresh: Whether the chunks that are there already find their neighbors among all, too.

    Returns:
        The manifest of the new generation.

    Raises:
        InputError: A setting differs from the database's, or the corpus was added before.
        ExecutionError: The environment failed.
    """
    engine.options()
    read_manifest(Folder(config.output))
    with owned_folder(Folder(config.output)) as home:
        old = read_manifest(home)
        model = _check_settings(config, old)
        parts = listed_parts(old.tables)
        shards = [replace(shard, number=len(parts) + shard.number) for shard in plan_shards(config)]
        identities = [(shard.identity, shard.stamp) for shard in shards]
        mark = digest([VERSIONS, config.portable(), refresh, identities])
        if _is_done(home, old, mark):
            # It may have been stopped between its manifest and this.
            sweep(home, old, f"{generation_path(old.generation)}/")
            console.say(f"{config.output} has these documents: nothing to do")
            return old
        place = generation_path(old.generation + 1)
        console.say(f"append     {len(shards):,} shards to the {len(parts):,} parts of {home.url}")
        estimate = estimate_corpus(shards, config)
        every = len(parts) + len(shards)
        check_append(config, home, home.below(place), every, estimate, old, console)
        build = Build(config, home.below(place), home, engine, console, shards, adds=True)
        added = _run(build, Database(home, old), parts, model, refresh)
        # Means nothing before the manifest says that this generation is there.
        build.folder.write(FINISHED, mark.encode())
        manifest = write_generation(home, old, _manifest(build, old, added, refresh))
        sweep(home, manifest, f"{place}/")
        write_stages(build, manifest, added.index)
        return manifest


def _check_settings(config: Config, old: Manifest) -> EncoderModel:
    """The encoder; refuses what would make new chunks unlike the old ones."""
    if not old.tables.embeddings:
        raise InputError(
            f"{config.output}: its embeddings were not kept, and new chunks are compared with them; build "
            "anew with embeddings.keep: true"
        )
    for key, value in config.settings(*_KEPT).items():
        held: Any = old.config
        for name in key.split("."):
            held = held[name]
        if value != held:
            raise ConfigError(f"{key}: {value}, but the database has {held}; write what it has")
    if config.index.key not in ("auto", old.config["index"]["key"], old.index.key):
        raise ConfigError(f"index.key: the trained index stays, {old.index.key}; write auto")
    known = {source["name"]: source for source in old.config["corpus"]}
    for source in config.corpus:
        if source.name in known and source.id != known[source.name].get("id"):
            raise ConfigError(
                f"corpus: the documents of {source.name} are named by {known[source.name].get('id')} in the "
                f"database, and by {source.id} here; give the new ones another source"
            )
    model = describe_model(config.encoder)
    if (model.sha256, model.dtype) != (old.encoder.sha256, old.encoder.dtype):
        raise ConfigError(
            f"encoder: the database was embedded by {old.encoder.model} in {old.encoder.dtype}, and this is "
            "another model, or another type of number; name that one"
        )
    path = config.tokenizer.path
    if path is not None and Tokenizer.load(path).sha256 != old.tokenizer.sha256:
        raise ConfigError("tokenizer.path: not the database's tokenizer; leave it as it was")
    if new := {query.name for query in config.queries} - {q.source.name for q in old.queries}:
        raise ConfigError(f"queries: {min(new)} is new; append adds to the corpus alone")
    return replace(model, batch_tokens=old.encoder.batch_tokens)


def _is_done(home: Folder, old: Manifest, mark: str) -> bool:
    """Whether the last generation came from this very call."""
    finished = f"{generation_path(old.generation)}/{FINISHED}"
    if not home.exists(finished) or home.read(finished) != mark.encode():
        return False
    if missing := home.missing(old.files):
        raise DamagedFileError(
            f"{home.url}: {min(missing)} is missing or of another size, and only its own run could make it "
            "again; restore it from a copy, or build anew"
        )
    return True


def _run(
    build: Build, database: Database, old: list[Part], model: EncoderModel, refresh: bool
) -> _Added:
    """Runs the stages over what is new, and searches the whole."""
    manifest, dimension = database.manifest, model.dimension
    vocabulary = _vocabulary(database)
    screened = screen_stage(build, vocabulary)
    chunked, parts = chunk_stage(build, vocabulary, screened)
    _check_new(build, manifest, chunked)
    parts = [replace(part, first_id=part.first_id + len(database)) for part in parts]
    parts, keyless = embed_stage(build, parts, vocabulary, model)
    template = TrainedIndex(manifest.template_file, None, manifest.index.training_points)
    codes = encode_stage(build, parts, template, dimension)
    assembled = assemble_stage(build, codes, template, _ranges(database))
    parts = [part.below(build.place) for part in parts]
    trained = [part for part in old if not part.chunks.path.startswith(GENERATIONS)]
    _warn(build, manifest, assembled, drift_stage(build, trained, parts, template, dimension))
    partitions = [one.file.below(build.place) for one in assembled]
    key, every = manifest.index.key, [*old, *parts]
    search = tune_stages(build, every, key, template.file, partitions, dimension)
    index = BuiltIndex(key, manifest.index.lists, template, partitions, [], search)
    say_index(build, index)
    parameters = dict(database.parameters)
    searched = Searched(
        build.home,
        every,
        index,
        parameters,
        _named(manifest, build.config),
        _removed(database),
    )
    neighbors = neighbors_stage(build, every if refresh else parts, searched)
    queries = _refreshed(build, manifest, searched) if refresh else manifest.queries
    return _Added(chunked, parts, keyless, index, neighbors, queries)


def _removed(database: Database) -> Removed | None:
    manifest = database.manifest
    if not manifest.tables.removed:
        return None
    files = [file.sha256 for file in manifest.tables.removed]
    return Removed(manifest.generation, digest(files))


def _vocabulary(database: Database) -> TokenizerFiles:
    manifest = database.manifest
    tokenizer = Tokenizer.of_database(database.folder, manifest.tokenizer_files)
    return TokenizerFiles(
        files=manifest.tokenizer_files,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        token_type=tokenizer.token_type.name,
        pad_id=tokenizer.pad_id,
        end_id=tokenizer.end_id,
    )


def _check_new(build: Build, old: Manifest, chunked: Sequence[ChunkedShard]) -> None:
    """Refuses shards whose content an earlier generation has read, as far as its records are there."""
    wanted = {shard.content: shard for shard in chunked if shard.read}
    places = [
        build.home,
        *(build.home.below(generation_path(g + 1)) for g in range(1, old.generation)),
    ]
    for generation, place in enumerate(places, 1):
        for record in StageRecords(place, "chunk").load().values():
            if shard := wanted.get(record.result.get("content", "")):
                [planned] = [one for one in build.shards if one.number == shard.number]
                raise InputError(
                    f"corpus: {planned.pieces[0].file.name} of {shard.source} was read for generation "
                    f"{generation} already; name what is new alone"
                )


def _ranges(database: Database) -> list[ListRange]:
    """The partitions of the database: each goes on with the same lists."""
    ranges: list[ListRange] = []
    first = 0
    for number, base in enumerate(database.manifest.partition_files):
        with database.folder.holding(base) as path:
            end = first + count_lists(path)
        ranges.append(ListRange(number, first, end, base))
        first = end
    return ranges


def _named(old: Manifest, config: Config) -> list[str]:
    """Sources whose documents have ids of their own."""
    before = [source["name"] for source in old.config["corpus"] if source.get("id")]
    return sorted({*before, *(source.name for source in config.corpus if source.id)})


def _warn(
    build: Build, old: Manifest, assembled: Sequence[AssembledPartition], drift: Drift
) -> None:
    """Says when the trained index fits less and less what is in it."""
    entries = sum(one.file.rows for one in assembled)
    trained = _trained(build.home, old)
    added = entries - trained.counts.indexed_chunks
    # Faiss's imbalance factor: how much longer a search takes than over equal lists.
    squares = 0
    for file in trained.partition_files:
        with build.home.holding(file) as path:
            squares += int((list_lengths(path) ** 2).sum())
    before = squares / max(trained.counts.indexed_chunks, 1) ** 2
    after = sum(one.squares for one in assembled) / max(entries, 1) ** 2
    told = []
    if added > MOST_NEW_SHARE * entries:
        told.append(f"{added / entries:.0%} of the index is newer than its training")
    if after > MOST_IMBALANCE_GROWTH * before:
        told.append(f"its lists are {after / before:.2f} times as uneven")
    if drift.growth > MOST_ERROR_GROWTH:
        told.append(f"codes of the new chunks are {drift.growth:.2f} times as far from their keys")
    if told:
        build.console.say(
            f"warning    {'; '.join(told)}: the index was trained on generation 1, and finds less and "
            "less of what it should; build a database anew before long"
        )


def _trained(home: Folder, old: Manifest) -> Manifest:
    """The generation whose chunks trained the index, or the oldest that is still there with its files."""
    for generation in range(1, old.generation):
        if home.exists(manifest_path(generation)):
            manifest = read_manifest(home, manifest_path(generation))
            if not home.missing(manifest.partition_files):
                return manifest
    return old


def _refreshed(build: Build, old: Manifest, searched: Searched) -> list[QueryCorpus]:
    """Every query corpus with neighbors among all chunks."""
    queries = []
    for query, settings in zip(old.queries, old.config["queries"], strict=True):
        path = query_path(query.source.name)
        one = replace(build, folder=build.folder.below(path), stages={})
        build.console.say(f"queries    {query.source.name}")
        namesakes = searched.named if settings.get("id") else []
        found = neighbors_stage(one, listed_parts(query.tables), searched, namesakes)
        tables = replace(query.tables, neighbors=[part.file.below(one.place) for part in found])
        short = sum(part.short_rows for part in found)
        queries.append(replace(query, tables=tables, short_rows=short))
    return queries


def _manifest(build: Build, old: Manifest, added: _Added, refresh: bool) -> Manifest:
    found = [part.file.below(build.place) for part in added.neighbors]
    return replace(
        old,
        counts=_counts(old.counts, added, refresh),
        sources=_sources(old.sources, build.config, added.chunked),
        index=added.index.described(old.index),
        config=_merged(old.config, build.config.portable()),
        tables=_tables(
            build, old.tables, added, found if refresh else [*old.tables.neighbors, *found]
        ),
        index_files=[old.template_file, *added.index.partitions],
        queries=added.queries,
    )


def _counts(old: Counts, added: _Added, refresh: bool) -> Counts:
    new = total_counts(added.chunked)
    short = sum(part.short_rows for part in added.neighbors)
    return replace(
        old,
        documents=old.documents + new["documents"],
        chunks=old.chunks + new["chunks"],
        tokens=old.tokens + new["tokens"],
        validation_chunks=old.validation_chunks + new["validation_chunks"],
        keyless_chunks=old.keyless_chunks + added.keyless,
        indexed_chunks=sum(file.rows for file in added.index.partitions),
        short_rows=short if refresh else old.short_rows + short,
    )


def _sources(
    old: Sequence[SourceCounts], config: Config, chunked: list[ChunkedShard]
) -> list[SourceCounts]:
    """Counts by source; those of a source that was there already are added up."""
    sources = {source.name: source for source in old}
    for source in config.corpus:
        new = source_counts(chunked, source.name, source.weight)
        sources[new.name] = _sum(sources[new.name], new) if new.name in sources else new
    return list(sources.values())


def _sum(one: SourceCounts, other: SourceCounts) -> SourceCounts:
    counted = ("read", "documents", "chunks", "tokens", "dropped", "rejected")
    numbers = {name: getattr(one, name) + getattr(other, name) for name in counted}
    dropped = Counter(one.dropped_by) + Counter(other.dropped_by)
    rejected = Counter(one.rejected_by) + Counter(other.rejected_by)
    # The weight of the source is that of the last configuration.
    return replace(other, **numbers, dropped_by=dict(dropped), rejected_by=dict(rejected))


def _tables(build: Build, old: Tables, added: _Added, neighbors: list[TableEntry]) -> Tables:
    dropped = [s.left_out.below(build.place) for s in added.chunked if s.left_out]
    return replace(
        old,
        documents=[*old.documents, *(part.documents for part in added.parts)],
        chunks=[*old.chunks, *(part.chunks for part in added.parts)],
        embeddings=[*old.embeddings, *(part.keys_file for part in added.parts)],
        neighbors=neighbors,
        dropped=[*old.dropped, *dropped],
    )


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The settings of the database, with the sources and the left out names of both."""
    named = {source["name"]: source for source in (*old["corpus"], *new["corpus"])}
    merged = copy.deepcopy(old) | {"corpus": list(named.values())}
    for section, name in (key.split(".") for key in _TUNED):
        merged[section][name] = new[section][name]
    names = dict.fromkeys((*old["leakage"]["names"], *new["leakage"]["names"]))
    merged["leakage"]["names"] = list(names)
    return merged
