"""Stages 5 to 7: train the index, encode parts, assemble partitions; then the search is tuned."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np

from retro_db.chunking import ChunkedShard
from retro_db.config import IndexConfig
from retro_db.database import open_files
from retro_db.errors import CorpusError
from retro_db.index.filling import (
    assemble_partition,
    cut_lists,
    encode_part,
    pack_entries,
    partition_path,
    unpack_entries,
)
from retro_db.index.keys import IndexKey, choose_key, parse_key, reduce_key
from retro_db.index.refining import FINE_PATH, refine_part
from retro_db.index.searching import resident_bytes
from retro_db.index.structure import faiss, inverted_file, read_index
from retro_db.index.training import PATH as TEMPLATE_PATH
from retro_db.index.training import predict_size, train_part, training_points
from retro_db.index.tuning import Tuned
from retro_db.manifest import IndexInfo
from retro_db.parts import Part, contents_of, load_keys
from retro_db.serialize import digest, to_json
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.tables import TableFile
from retro_db.threads import Share

from .shards import Placement, Task, fingerprint
from .stage import Build, run_stage, sole
from .tune import tune_stages

VERSION = 4


@dataclass(frozen=True)
class TrainedIndex:
    """The template, the quantizer of fine codes if there is one, and how many keys trained them."""

    file: FileEntry
    fine: FileEntry | None
    points: int

    @property
    def files(self) -> list[FileEntry]:
        """What was written."""
        return [file for file in (self.file, self.fine) if file]


@dataclass(frozen=True)
class EncodedPart:
    """One part's codes, how many in each range of lists, and its fine codes if they are wanted.

    The numbers are packed: a driver holds them of tens of thousands of parts, a thousand each.
    """

    file: FileEntry
    entries: str
    fine: FileEntry | None


@dataclass(frozen=True)
class AssembledPartition:
    """One range of lists, and the sum of their squared lengths: what searches take grows with it."""

    file: FileEntry
    squares: int


@dataclass(frozen=True)
class BuiltIndex:
    """What the stages after need of the index."""

    key: str
    lists: int
    template: TrainedIndex
    partitions: list[FileEntry]
    fine: list[FileEntry]
    search: Tuned

    def described(self, info: IndexInfo) -> IndexInfo:
        """The manifest's entry of the same trained index, with how what is in it now is searched."""
        return replace(
            info,
            partitions=len(self.partitions),
            nprobe=self.search.settings.nprobe,
            rerank=self.search.settings.rerank,
            ef_search=self.search.settings.ef_search,
            recall_queries=self.search.queries,
            recall=self.search.curve,
        )

    @property
    def identity(self) -> list[object]:
        """What decides a search, for fingerprints."""
        files = [self.template.file, *self.partitions]
        return [self.key, [file.sha256 for file in files], to_json(self.search.settings)]


@dataclass
class TrainJob:
    """Trains the template."""

    folder: Folder
    key: str
    fine: str | None
    dimension: int
    entries: int
    points: int
    seed: int
    stage: str = field(default="train", init=False)

    def open(self) -> None:
        """Nothing to share."""

    def run(self, shared: None, parts: list[Part], report: Callable[[int], None]) -> TrainedIndex:
        """Writes the template."""
        return TrainedIndex(
            *train_part(
                (load_keys(self.folder, part, self.dimension) for part in parts),
                parse_key(self.key, self.dimension),
                self.fine,
                self.dimension,
                self.entries,
                self.points,
                self.seed,
                self.folder,
                report,
            )
        )

    def files(self, result: TrainedIndex) -> list[FileEntry]:
        """The template, and the quantizer of fine codes."""
        return result.files


@dataclass
class EncodeJob:
    """Encodes one part."""

    folder: Folder
    home: Folder
    fine: bool
    dimension: int
    cores: Share
    stage: str = field(default="encode", init=False)

    def open(self) -> tuple[faiss.Index, faiss.Index | None]:
        """The template, and the quantizer of fine codes."""
        quantizer = read_index(self.home.local(FINE_PATH)) if self.fine else None
        return read_index(self.home.local(TEMPLATE_PATH)), quantizer

    def run(
        self,
        shared: tuple[faiss.Index, faiss.Index | None],
        part: Part,
        report: Callable[[int], None],
    ) -> EncodedPart:
        """Writes the codes file, and the fine codes."""
        template, quantizer = shared
        keys = load_keys(self.folder, part, self.dimension)
        path = contract("codes").name(part.shard, part.number)
        file, entries = encode_part(keys, path, template, self.cores.threads, self.folder, report)
        fine = None
        if quantizer is not None:
            path = contract("fine").name(part.shard, part.number)
            fine = refine_part(keys.embeddings, path, quantizer, self.folder)
        return EncodedPart(file, pack_entries(entries), fine)

    def files(self, result: EncodedPart) -> list[FileEntry]:
        """The codes, and the fine codes."""
        return [file for file in (result.file, result.fine) if file]


@dataclass(frozen=True)
class ListRange:
    """One partition to be: lists first to end - 1.

    `base` is the partition of the generation before with the same lists, whose entries come first.
    """

    number: int
    first: int
    end: int
    base: FileEntry | None = None


@dataclass
class AssembleJob:
    """Assembles one partition from the codes of all parts."""

    folder: Folder
    home: Folder
    codes: list[FileEntry]
    stage: str = field(default="assemble", init=False)

    def open(self) -> tuple[faiss.Index, list[TableFile]]:
        """The template, and all codes."""
        template = read_index(self.home.local(TEMPLATE_PATH))
        parameters: dict[str, str | int] = {"code_size": int(inverted_file(template).code_size)}
        return template, open_files(self.folder, self.codes, "codes", parameters)

    def run(
        self,
        shared: tuple[faiss.Index, list[TableFile]],
        lists: ListRange,
        report: Callable[[int], None],
    ) -> AssembledPartition:
        """Writes the partition."""
        template, parts = shared
        path = partition_path(lists.number)
        with self.home.intact(lists.base) if lists.base else nullcontext() as base:
            return AssembledPartition(
                *assemble_partition(
                    template, lists.first, lists.end, parts, path, self.folder, report, base
                )
            )

    def files(self, result: AssembledPartition) -> list[FileEntry]:
        """The partition."""
        return [result.file]


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
    return sum((part.chunks.rows or 0) - part.validation_chunks for part in written)


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


def index_stages(
    build: Build, parts: list[Part], key: str, entries: int, dimension: int
) -> BuiltIndex:
    """Runs the stages.

    Args:
        build: The build.
        parts: All parts, embedded.
        key: Of the index.
        entries: Chunks of training documents.
        dimension: d.

    Returns:
        The index, tuned.
    """
    parsed = parse_key(key, dimension)
    template = _train(build, parts, parsed, entries, dimension)
    codes = encode_stage(build, parts, template, dimension)
    ranges = [
        ListRange(number, first, end)
        for number, (first, end) in enumerate(
            _partitions(build.config.index, codes, parsed, dimension)
        )
    ]
    assembled = assemble_stage(build, codes, template, ranges)
    partitions = [partition.file for partition in assembled]
    search = tune_stages(build, parts, key, template.file, partitions, dimension)
    fine = [encoded.fine for encoded in codes if encoded.fine]
    index = BuiltIndex(key, parsed.lists, template, partitions, fine, search)
    say_index(build, index)
    return index


def _train(
    build: Build, parts: list[Part], key: IndexKey, entries: int, dimension: int
) -> TrainedIndex:
    config = build.config
    fine = None if config.embeddings.keep else config.index.refine
    # The memory matters only where it bounds the sample.
    memory = int(config.index.memory)
    points = training_points(key, dimension, entries, memory)
    job = TrainJob(build.folder, key.text, fine, dimension, entries, points, config.seed)
    decides = {
        "index.key": key.text,
        "index.refine": fine,
        "index.memory": points,
        "seed": config.seed,
        "embed": [entries, [contents_of(part) for part in parts]],
    }
    task = Task("trained", fingerprint(VERSION, decides), parts)
    total = min(entries, points)
    placement = Placement.in_memory(memory)
    return sole(run_stage(build, job, [task], TrainedIndex, "chunks", total, placement))


def encode_stage(
    build: Build, parts: list[Part], template: TrainedIndex, dimension: int
) -> list[EncodedPart]:
    """Encodes parts whose files lie in the folder of the build, each by itself."""
    fine = template.fine.sha256 if template.fine else None
    cores = build.engine.share(len(parts))
    job = EncodeJob(build.folder, build.home, fine is not None, dimension, cores)
    tasks = [
        Task(
            part.name,
            fingerprint(
                VERSION,
                {
                    "train": [template.file.sha256, fine],
                    "embed": contents_of(part),
                    "chunk": part.first_id,
                },
            ),
            part,
        )
        for part in parts
    ]
    total = sum(part.rows for part in parts)
    return run_stage(build, job, tasks, EncodedPart, "chunks", total)


def assemble_stage(
    build: Build, codes: list[EncodedPart], template: TrainedIndex, ranges: list[ListRange]
) -> list[AssembledPartition]:
    """Gathers the codes, behind the entries that the ranges begin with, into partitions."""
    job = AssembleJob(build.folder, build.home, [part.file for part in codes])
    encoded = digest([part.file.sha256 for part in codes])
    tasks = [
        Task(
            f"partition-{lists.number:05d}",
            fingerprint(
                VERSION,
                {
                    "train": template.file.sha256,
                    "encode": encoded,
                    "index.partitions": [lists.first, lists.end],
                    "index": lists.base and lists.base.sha256,
                },
            ),
            lists,
        )
        for lists in ranges
    ]
    total = sum(part.file.rows or 0 for part in codes)
    placement = Placement.in_memory(int(build.config.index.memory))
    return run_stage(build, job, tasks, AssembledPartition, "chunks", total, placement)


def _partitions(
    config: IndexConfig, codes: list[EncodedPart], key: IndexKey, dimension: int
) -> list[tuple[int, int]]:
    entries = functools.reduce(np.add, (unpack_entries(encoded.entries) for encoded in codes))
    each, _ = predict_size(key, dimension, 1)
    return cut_lists(config, entries, key.lists, each)


def say_index(build: Build, index: BuiltIndex) -> None:
    """One line on how the index is searched, and how well that was measured to find."""
    search, settings = index.search, index.search.settings
    graph = f", efSearch {settings.ef_search}" if settings.ef_search else ""
    said = (
        f"index      {index.key}, nprobe {settings.nprobe:,} of {index.lists:,} lists{graph}, "
        f"{settings.rerank} re-ranked"
    )
    if search.curve:
        point = search.curve[-1]
        said += (
            f": recall@10 {point.recall:.3f}, at least {point.lower_bound:.3f} "
            f"({search.queries:,} queries)"
        )
    if search.remedy:
        target = build.config.index.recall_target
        said += f"; the target {target:g} is out of reach, {search.remedy} would meet it"
    build.console.say(said)


if __name__ == "__main__":
    # The classes above must be pickled under their module's name, so the command imports them anew.
    from .cli import main, stage_command

    main(sys.argv[1:], stage_command("index"))
