"""Documents added to a finished database: a new generation, whose readers see all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from retro_db.config import Config, EncoderConfig
from retro_db.corpus.chunking import ChunkedShard
from retro_db.corpus.estimating import estimate_corpus
from retro_db.corpus.sharding import Shard, plan_shards
from retro_db.encoder.models import (
    EncoderModel,
    device_and_dtype,
    model_sha256,
    recorded_model,
    resolve_model,
)
from retro_db.errors import ConfigError, DamagedFileError, InputError
from retro_db.manifest.model import EncoderInfo, Manifest
from retro_db.manifest.parts import listed_parts
from retro_db.manifest.sealing import (
    GENERATIONS,
    generation_path,
    manifest_path,
    read_manifest,
    write_generation,
)
from retro_db.printing import counted
from retro_db.reader.database import Database
from retro_db.search.searching import count_lists, list_lengths
from retro_db.store.folder import Folder
from retro_db.store.records import StageRecords
from retro_db.store.serialize import digest
from retro_db.tokens.tokenizer import Tokenizer

from ..engine.completing import Adding
from ..engine.console import Console
from ..engine.context import Build
from ..engine.runner import Engine
from ..stages.assemble import AssembledPartition, ListRange, assemble_stage
from ..stages.chunk import chunk_stage
from ..stages.drift import Drift, drift_stage
from ..stages.embed import EmbeddedCorpus, embed_stage
from ..stages.encode import encode_stage
from ..stages.route import Removed
from ..stages.screen import screen_stage
from ..stages.tokenizer import TokenizerFiles
from ..stages.train import TrainedIndex
from ..stages.tune import BuiltIndex, FilledIndex
from .build import write_stages
from .folders import FINISHED, check_files, keep_card, owned_folder, sweep
from .index import draw_queries, tune_index
from .join import Join, Searched
from .manifest_content import appended_manifest
from .preflight import check_append
from .queries import search_again
from .stage_order import VERSIONS

# Beyond these limits the trained index no longer fits its entries: a new build is due.
MOST_NEW_SHARE = 0.5
MOST_IMBALANCE_GROWTH = 1.25
MOST_ERROR_GROWTH = 1.25
# Settings of the encoder that the database keeps too; `auto` means what its manifest says.
_KEPT_RULES = ("pooling", "normalize", "prompt", "max_length")
# Settings that decide the bytes of chunks, embeddings and neighbors: the database keeps its own.
_KEPT_SETTINGS = (
    "chunk.tokens",
    "split.validation",
    "embeddings.keep",
    "neighbors.k",
    "neighbors.max_nprobe",
    "neighbors.drop_duplicates",
    "leakage.ngram",
    "leakage.jaccard",
    "dedup.jaccard",
    "seed",
)


def append(config: Config, engine: Engine, console: Console, *, refresh: bool) -> Manifest:
    """Adds the documents of a configuration to the database that it names.

    Chunk ids, files and the trained index stay; new chunks are embedded and encoded, and find their
    neighbors among all. The same call continues an interrupted run.

    Args:
        config: Configuration whose corpus is added; its other settings must be the database's.
        engine: What executes the stages.
        console: What people see.
        refresh: Whether the chunks of the database find their neighbors among all, too.

    Returns:
        The manifest of the new generation.

    Raises:
        InputError: A setting differs from the database's, or the corpus was added before.
        ExecutionError: The environment failed.
    """
    read_manifest(Folder(config.output))
    with owned_folder(Folder(config.output)) as home:
        old = read_manifest(home)
        model = _check_settings(config, old)
        shards = _numbered_shards(config, old)
        mark = _mark(config, shards, refresh=refresh)
        if _is_done(home, old, mark):
            # An earlier run may have been stopped between the manifest and this.
            sweep(home, old, f"{generation_path(old.generation)}/")
            keep_card(home, old, console)
            console.say(f"{config.output} has these documents: nothing to do")
            return old
        place = generation_path(old.generation + 1)
        build = Build(
            config=config,
            folder=home.below(place),
            home=home,
            engine=engine,
            console=console,
            shards=shards,
            action=Adding(),
        )
        count = len(old.tables.chunks)
        console.say(
            f"append     {counted(len(shards), 'shard')} to the {count:,} parts of {home.url}"
        )
        check_append(build, estimate_corpus(shards, config), old)
        manifest, index = _run(build, Database(home, old), model, refresh=refresh)
        # Means nothing until the manifest lists this generation.
        build.folder.write(FINISHED, mark.encode())
        check_files(home, manifest)
        manifest = write_generation(home, old, manifest)
        sweep(home, manifest, f"{place}/")
        write_stages(build, manifest, index)
        keep_card(home, manifest, console)
        return manifest


def _numbered_shards(config: Config, old: Manifest) -> list[Shard]:
    """The shards of the new corpus, numbered behind the parts of the database."""
    first = len(old.tables.chunks)
    return [replace(shard, number=first + shard.number) for shard in plan_shards(config)]


def _mark(config: Config, shards: Sequence[Shard], *, refresh: bool) -> str:
    """Hash of all that decides what is added."""
    identities = [(shard.identity, shard.stamp) for shard in shards]
    return digest([VERSIONS, config.portable(), refresh, identities])


def _check_settings(config: Config, old: Manifest) -> EncoderModel:
    """The encoder; refuses settings that would make new chunks unlike the old ones."""
    if not old.tables.embeddings:
        raise InputError(
            f"{config.output}: its embeddings were not kept, and new chunks are compared with them; build "
            "a new database with embeddings.keep: true"
        )
    for setting, value in config.settings(*_KEPT_SETTINGS).items():
        stored = old.setting(setting)
        if value != stored:
            raise ConfigError(
                f"{setting}: {value}, but the database has {stored}; write what it has"
            )
    if config.index.key not in ("auto", old.config["index"]["key"], old.index.key):
        raise ConfigError(f"index.key: the trained index stays, {old.index.key}; write auto")
    _check_sources(config, old)
    path = config.tokenizer.path
    if path is not None and Tokenizer.load(path).sha256 != old.tokenizer.sha256:
        raise ConfigError("tokenizer.path: not the database's tokenizer; leave it as it was")
    return _kept_model(config.encoder, old.encoder)


def _kept_model(config: EncoderConfig, info: EncoderInfo) -> EncoderModel:
    """The database's encoder with the database's rule; refuses another one."""
    for name in _KEPT_RULES:
        value, stored = getattr(config, name), getattr(info, name)
        if value not in ("auto", stored):
            raise ConfigError(
                f"encoder.{name}: {value}, but the database has {stored}; write what it has, or auto"
            )
    device, dtype = device_and_dtype(config)
    sha256 = model_sha256(resolve_model(config.model), info.identity)
    if (sha256, dtype) != (info.sha256, info.dtype):
        raise ConfigError(
            f"encoder: the database was embedded by {info.model} in {info.dtype}, and this is another model "
            "or another dtype; use the database's"
        )
    return recorded_model(info, device, info.batch_tokens)


def _check_sources(config: Config, old: Manifest) -> None:
    """Refuses sources whose documents are named by another field, and new query corpora."""
    known = {source["name"]: source for source in old.config["corpus"]}
    for source in config.corpus:
        if source.name in known and source.id != known[source.name].get("id"):
            stored = known[source.name].get("id") or "null"
            raise ConfigError(
                f"corpus: {source.name} has id: {stored} in the database, and here id: "
                f"{source.id or 'null'}; write what it has, or give the new documents another source"
            )
    if new := {query.name for query in config.queries} - {q.source.name for q in old.queries}:
        raise ConfigError(f"queries: {min(new)} is new; append adds to the corpus alone")


def _is_done(home: Folder, old: Manifest, mark: str) -> bool:
    """Whether the last generation came from this very call."""
    finished = f"{generation_path(old.generation)}/{FINISHED}"
    if not home.exists(finished) or home.read(finished) != mark.encode():
        return False
    if missing := home.missing(old.files):
        raise DamagedFileError(
            f"{home.url}: {min(missing)} is missing or of another size, and only the run that "
            "wrote it could recreate it; restore it from a copy, or build a new database"
        )
    return True


def _run(
    build: Build, database: Database, model: EncoderModel, *, refresh: bool
) -> tuple[Manifest, BuiltIndex]:
    """Runs the stages over what is new, and searches the whole."""
    old, dimension = database.manifest, model.dimension
    old_parts = listed_parts(old.tables)
    trained = TrainedIndex(old.template_file, None, old.index.training_points)
    corpus = _embedded(build, database, model)
    codes = encode_stage(build, corpus.parts, trained, dimension)
    assembled = assemble_stage(build, codes, trained, _ranges(database))
    corpus = corpus.below(build.place)
    first_parts = [part for part in old_parts if not part.chunks.path.startswith(GENERATIONS)]
    _warn(build, old, assembled, drift_stage(build, first_parts, corpus.parts, trained, dimension))
    partitions = [partition.file.below(build.place) for partition in assembled]
    all_parts = [*old_parts, *corpus.parts]
    lengths = [partition.lengths for partition in assembled]
    filled = FilledIndex(old.index.key, old.index.lists, trained, partitions, lengths)
    index = tune_index(
        build, all_parts, draw_queries(build, all_parts, dimension), filled, dimension
    )
    searched = Searched(
        all_parts,
        index,
        dict(database.parameters),
        _named(old, build.config),
        _removed(database),
    )
    join = Join(build, searched, joins_itself=refresh)
    neighbors = join.neighbors(build, all_parts if refresh else corpus.parts)
    queries = search_again(build, old, old.queries, join) if refresh else old.queries
    manifest = appended_manifest(
        build.config,
        old,
        corpus=corpus,
        index=index,
        neighbors=neighbors,
        queries=queries,
        refreshed=refresh,
    )
    return manifest, index


def _embedded(build: Build, database: Database, model: EncoderModel) -> EmbeddedCorpus:
    """The new corpus with embeddings; its ids follow the ids of the database."""
    files = database.manifest.tokenizer_files
    tokenizer = TokenizerFiles.of(Tokenizer.of_database(database.folder, files), files)
    chunked = chunk_stage(build, tokenizer, screen_stage(build, tokenizer))
    _check_new(build, database.manifest, chunked.shards)
    first = len(database)
    parts = [replace(part, first_id=part.first_id + first) for part in chunked.parts]
    return embed_stage(build, replace(chunked, parts=parts), tokenizer, model)


def _removed(database: Database) -> Removed | None:
    manifest = database.manifest
    if not manifest.tables.removed:
        return None
    files = [file.sha256 for file in manifest.tables.removed]
    return Removed(manifest.generation, digest(files))


def _check_new(build: Build, old: Manifest, chunked: Sequence[ChunkedShard]) -> None:
    """Refuses shards whose content an earlier generation has read, as far as its records remain."""
    contents = {shard.content: shard for shard in chunked if shard.read}
    later = [build.home.below(generation_path(g + 1)) for g in range(1, old.generation)]
    for generation, folder in enumerate([build.home, *later], 1):
        for record in StageRecords(folder, "chunk").load().values():
            if shard := contents.get(record.result.get("content", "")):
                [planned] = [other for other in build.shards if other.number == shard.number]
                # It would be refused every time; nothing of it may stand in the way of others.
                build.home.remove(build.place)
                raise InputError(
                    f"corpus: {planned.pieces[0].file.name} of {shard.source} was read for generation "
                    f"{generation} already; list only new files"
                )


def _ranges(database: Database) -> list[ListRange]:
    """The partitions of the database, each of which goes on with the same lists."""
    ranges: list[ListRange] = []
    first = 0
    for number, base in enumerate(database.manifest.partition_files):
        with database.folder.holding(base) as path:
            end = first + count_lists(path)
        ranges.append(ListRange(number, first, end, base))
        first = end
    return ranges


def _named(old: Manifest, config: Config) -> list[str]:
    """Sources whose records name their documents."""
    before = [source["name"] for source in old.config["corpus"] if source.get("id")]
    return sorted({*before, *(source.name for source in config.corpus if source.id)})


def _warn(
    build: Build, old: Manifest, assembled: Sequence[AssembledPartition], drift: Drift
) -> None:
    """Warns if the trained index fits its entries less and less."""
    entries = sum(partition.file.rows for partition in assembled)
    squares = sum(partition.squares for partition in assembled)
    first = _first_generation(build.home, old)
    new_share = (entries - first.counts.indexed_chunks) / max(entries, 1)
    before, after = _first_imbalance(build.home, first), _imbalance(squares, entries)
    warnings = []
    if new_share > MOST_NEW_SHARE:
        warnings.append(f"{new_share:.0%} of the index is newer than its training")
    if after > MOST_IMBALANCE_GROWTH * before > 0:
        warnings.append(f"its lists are {after / before:.2f} times as uneven")
    if drift.growth > MOST_ERROR_GROWTH:
        warnings.append(
            f"codes of the new chunks are {drift.growth:.2f} times as far from their embeddings"
        )
    if warnings:
        build.console.say(
            f"warning    {'; '.join(warnings)}: the index was trained on generation 1, and finds less and "
            "less of what it should; build a new database soon"
        )


def _imbalance(squares: int, entries: int) -> float:
    """Faiss's imbalance factor, up to the number of lists: how much longer uneven lists take to search."""
    return squares / max(entries, 1) ** 2


def _first_imbalance(home: Folder, first: Manifest) -> float:
    squares = 0
    for file in first.partition_files:
        with home.holding(file) as path:
            squares += int((list_lengths(path) ** 2).sum())
    return _imbalance(squares, first.counts.indexed_chunks)


def _first_generation(home: Folder, old: Manifest) -> Manifest:
    """The generation whose chunks trained the index, or the oldest whose files remain."""
    for generation in range(1, old.generation):
        if home.exists(manifest_path(generation)):
            manifest = read_manifest(home, manifest_path(generation))
            if not home.missing(manifest.partition_files):
                return manifest
    return old
