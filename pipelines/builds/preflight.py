"""What can be known before the first long stage: one line each, or a refusal that names the remedy."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

from retro_db.config import Config, in_units
from retro_db.corpus.estimating import CorpusEstimate
from retro_db.encoder.declared import read_declared
from retro_db.encoder.models import EncoderModel, resolve_model
from retro_db.errors import ExecutionError, IndexKeyError
from retro_db.index.keys import (
    IndexKey,
    choose_key,
    needed_points,
    parse_key,
    smaller_key,
    training_bytes,
)
from retro_db.index.training import predict_size
from retro_db.manifest.model import Manifest
from retro_db.plan.join_plan import plan_join
from retro_db.store.folder import Folder
from retro_db.tokens.losses import losses
from retro_db.tokens.tokenizer import Tokenizer

from ..engine.console import Console
from ..engine.context import Build
from .manifest_content import encoder_info

# Refuse only if an estimate exceeds the limit by this factor.
_DOUBT = 2
# Files that a process has open besides tables: libraries, logs, connections.
_OTHER_FILES = 256
# And ranges of memory: libraries, threads, allocators.
_OTHER_MAPPINGS = 4096
_TABLES = 4
# Of threads' stacks and allocators' arenas: a small build on two cores takes two thirds of it.
_ADDRESSES = 4_000_000_000


def check_ahead(build: Build, estimate: CorpusEstimate, model: EncoderModel, parts: int) -> None:
    """Says what a build will need, and refuses one that cannot end well.

    Args:
        build: The build, before its first stage.
        estimate: Size of the corpus.
        model: The encoder.
        parts: Files of every table, at most.

    Raises:
        InputError: The input cannot be parsed, the tokenizer not read, or the index not trained.
        ExecutionError: The machine has too little disk, memory or file handles.
    """
    config, folder, console = build.config, build.home, build.console
    check_addresses()
    estimate.check_usable("corpus")
    if config.tokenizer.path is not None:
        _try_tokenizer(config.tokenizer.path, console)
    chunks = estimate.chunks(config.chunk.tokens)
    console.say(
        f"check      about {estimate.documents:,} documents, {chunks:,} chunks; encoder "
        f"{Path(config.encoder.model).name}, {model.dimension} dimensions, on {model.device}: "
        f"{encoder_info(config.encoder.model, model).rule}"
    )
    _warn_of_similarity(build, model)
    if config.index.key != "auto" and not build.is_sample:
        trained = round(chunks * (1 - config.split.validation))
        _check_key(parse_key(config.index.key, model.dimension), trained)
    key = config.index.key
    if key == "auto":
        key = choose_key(max(chunks, 1), model.dimension, int(config.index.memory))
    join = plan_join(config, parse_key(key, model.dimension).lists, model.dimension, chunks)
    needed = chunks * _chunk_bytes(config, key, model.dimension) + join.disk_bytes
    wanted = [
        check_disk(folder, needed, held_bytes(folder)),
        _check_memory(key, chunks, model.dimension, is_local=build.engine.is_local),
        allow_files(parts),
    ]
    console.say(f"check      {', '.join(wanted)}")


def _warn_of_similarity(build: Build, model: EncoderModel) -> None:
    """Says so if the model is meant for a similarity that squared L2 does not rank by."""
    similarity = read_declared(resolve_model(build.config.encoder.model)).similarity
    if similarity in ("cosine", "dot") and not model.normalize:
        build.console.say(
            f"warning    the encoder's folder compares by {similarity}, and squared L2 ranks so only among "
            "embeddings of length 1, which encoder.normalize: true gives"
        )


def check_append(build: Build, estimate: CorpusEstimate, old: Manifest) -> None:
    """Says what an append will need, and refuses one that cannot end well.

    Args:
        build: The build that adds, before its first stage.
        estimate: Size of the corpus that is added.
        old: Manifest of the database.

    Raises:
        InputError: The input cannot be parsed.
        ExecutionError: The machine has too little disk or too few file handles.
    """
    config = build.config
    check_addresses()
    estimate.check_usable("corpus")
    chunks = estimate.chunks(config.chunk.tokens)
    parts = len(old.tables.chunks) + len(build.shards) + chunks // config.chunk.part_rows
    # The index is rewritten with all its entries.
    index = sum(entry.bytes for entry in old.partition_files)
    join = plan_join(config, old.index.lists, old.encoder.dimension, chunks + old.counts.chunks)
    needed = index + chunks * _chunk_bytes(config, old.index.key, old.encoder.dimension)
    needed += join.disk_bytes
    build.console.say(
        f"check      about {estimate.documents:,} documents, {chunks:,} chunks; "
        f"{check_disk(build.home, needed, held_bytes(build.folder))}, {allow_files(parts)}"
    )


def _try_tokenizer(path: str, console: Console) -> None:
    """Says what comes back of texts of many kinds, and warns of a tokenizer such as an encoder's."""
    tokenizer = Tokenizer.load(path)
    console.say(f"check      tokenizer: {'; '.join([str(tokenizer.tried()), *tokenizer.notes])}")
    if lost := losses(tokenizer):
        console.say(
            f"warning    tokenizer.path: {path} loses {', '.join(lost)}: chunks do not decode to their text; "
            "name the language model's tokenizer, or train a byte-level one by tokenizer: {train: {}}"
        )


def _check_key(key: IndexKey, chunks: int) -> None:
    """Refuses an index key that the corpus cannot train, even if it has more chunks than estimated."""
    needed = needed_points(key)
    if needed > _DOUBT * chunks:
        # It may have fewer, too: the remedy needs no more than these.
        remedy = smaller_key(key, chunks // _DOUBT)
        raise IndexKeyError(
            f"index.key: {key.text} needs {needed:,} chunks to train, and the corpus has about {chunks:,}, "
            f"estimated from its first documents; {remedy}"
        )


def _chunk_bytes(config: Config, key: str, dimension: int) -> int:
    code, _ = predict_size(parse_key(key, dimension), dimension, 1)
    # The codes lie under state/ too, and a vocabulary beyond 65,536 takes four bytes a token.
    return 4 * config.chunk.tokens + 10 + 2 * dimension + 12 * config.neighbors.k + 2 * code


def held_bytes(folder: Folder) -> int:
    """Bytes on a local disk that an interrupted run has written there, at the most."""
    if not folder.is_local:
        return 0
    return sum(f.stat().st_size for f in Path(folder.locate()).rglob("*") if f.is_file())


def check_disk(folder: Folder, needed: int, held: int) -> str:
    """Refuses a local disk that is too small.

    Args:
        folder: Folder that is written to.
        needed: Bytes, about.
        held: Bytes that an interrupted run already wrote.

    Returns:
        What is needed and free, for people.

    Raises:
        ExecutionError: Not even half of what is needed is free.
    """
    if not folder.is_local:
        return f"disk about {in_units(needed)}"
    place = Path(folder.locate())
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed - held > _DOUBT * free:
        raise ExecutionError(
            f"output: {folder.url} needs about {in_units(needed)}, and {in_units(free)} are free there; make "
            "room, or name another disk"
        )
    return f"disk about {in_units(needed)} of {in_units(free)} free"


def _check_memory(key: str, chunks: int, dimension: int, *, is_local: bool) -> str:
    """Checks the memory for training, which needs most; `index.memory` is checked elsewhere."""
    parsed = parse_key(key, dimension)
    points = min(chunks, needed_points(parsed))
    needed = training_bytes(parsed, dimension, points)
    if not is_local:
        return f"memory at least {in_units(needed)} to train"
    free = _available_memory()
    if needed > _DOUBT * free:
        raise ExecutionError(
            f"index.key: training {key} needs at least {in_units(needed)} of memory, and {in_units(free)} "
            "are available; use a larger machine, or a key with fewer lists"
        )
    return f"memory at least {in_units(needed)} of {in_units(free)} available to train"


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        name, value = line.split(":")
        if name == "MemAvailable":
            return 1024 * int(value.split()[0])
    raise ExecutionError("/proc/meminfo: no MemAvailable; run on Linux")


def allow_files(parts: int) -> str:
    """Lets this process and its workers have each part's tables open, as they do while they search.

    Args:
        parts: Number of files of every table.

    Returns:
        What is needed and allowed, for people.

    Raises:
        ExecutionError: The system allows fewer open or mapped files.
    """
    needed = _TABLES * parts + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed and soft != resource.RLIM_INFINITY:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise _too_few("ulimit -n", parts, needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        soft = needed
    mapped = int(Path("/proc/sys/vm/max_map_count").read_text("ascii"))
    if mapped < needed + _OTHER_MAPPINGS:
        raise _too_few("sysctl vm.max_map_count", parts, needed + _OTHER_MAPPINGS, mapped)
    return f"{needed:,} of {soft:,} open files"


def check_addresses() -> None:
    """Refuses a limit of address space that is smaller than what libraries and their threads reserve.

    Raises:
        ExecutionError: The system allows less; Beam would wait forever for a thread that could not start.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    needed = pages * resource.getpagesize() + _ADDRESSES
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise ExecutionError(
            f"ulimit -v: {in_units(needed)} of addresses are needed, most of which take no memory, and "
            f"{in_units(allowed)} are allowed; raise it"
        )


def _too_few(limit: str, parts: int, needed: int, allowed: int) -> ExecutionError:
    return ExecutionError(
        f"{limit}: {parts:,} parts of each table need {needed:,}, and {allowed:,} are allowed; raise it, or "
        "chunk.shard_size"
    )
