"""Stages 4 to 7: train the index, encode parts, assemble partitions, tune the search."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from retro_db.chunking import ChunkedShard
from retro_db.database import open_table
from retro_db.errors import CorpusError, IndexKeyError
from retro_db.index.filling import (
    assemble_partition,
    encode_part,
    list_ranges,
    partition_path,
)
from retro_db.index.keys import check_trainable, choose_key, parse_key, reduce_key
from retro_db.index.searching import Searcher
from retro_db.index.structure import faiss, inverted_file, read_index
from retro_db.index.training import PATH as TEMPLATE_PATH
from retro_db.index.training import predict_size, train_part
from retro_db.index.tuning import tune_nprobe
from retro_db.manifest import RecallPoint
from retro_db.parts import Part, key_column, load_documents, load_keys
from retro_db.serialize import digest
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.tables import IpcFile

from .shards import Task, fingerprint
from .stage import Build, run_stage, sole

VERSION = 1


@dataclass(frozen=True)
class TrainedIndex:
    """The template, and how many keys trained it."""

    file: FileEntry
    points: int


@dataclass(frozen=True)
class EncodedPart:
    """One part's codes."""

    file: FileEntry
    code_size: int


@dataclass(frozen=True)
class AssembledPartition:
    """One range of lists."""

    file: FileEntry


@dataclass(frozen=True)
class TunedSearch:
    """How the index is searched, and what that was measured to find."""

    nprobe: int
    queries: int
    curve: list[RecallPoint]


@dataclass(frozen=True)
class BuiltIndex:
    """What the stages after need of the index."""

    key: str
    lists: int
    template: TrainedIndex
    partitions: list[FileEntry]
    search: TunedSearch

    @property
    def identity(self) -> list[object]:
        """What decides a search, for fingerprints."""
        files = [self.template.file, *self.partitions]
        return [self.key, [file.sha256 for file in files], self.search.nprobe]


@dataclass
class TrainJob:
    """Trains the template."""

    folder: Folder
    key: str
    dimension: int
    seed: int
    stage: str = field(default="train", init=False)

    def open(self) -> None:
        """Nothing to share."""

    def run(self, shared: None, parts: list[Part], report: Callable[[int], None]) -> TrainedIndex:
        """Writes the template."""
        keys = [load_keys(self.folder, part, self.dimension) for part in parts]
        key = parse_key(self.key, self.dimension)
        return TrainedIndex(*train_part(keys, key, self.seed, self.folder, report))

    def files(self, result: TrainedIndex) -> list[FileEntry]:
        """The template."""
        return [result.file]


@dataclass
class EncodeJob:
    """Encodes one part."""

    folder: Folder
    dimension: int
    threads: int
    stage: str = field(default="encode", init=False)

    def open(self) -> faiss.Index:
        """The template."""
        return read_index(self.folder.local(TEMPLATE_PATH))

    def run(self, shared: faiss.Index, part: Part, report: Callable[[int], None]) -> EncodedPart:
        """Writes the codes file."""
        keys = load_keys(self.folder, part, self.dimension)
        path = contract("codes").name(part.shard, part.number)
        file = encode_part(keys, path, shared, self.threads, self.folder, report)
        return EncodedPart(file, int(inverted_file(shared).code_size))

    def files(self, result: EncodedPart) -> list[FileEntry]:
        """The codes file."""
        return [result.file]


@dataclass(frozen=True)
class ListRange:
    """One partition to be: lists first to end - 1."""

    number: int
    first: int
    end: int


@dataclass
class AssembleJob:
    """Assembles one partition from the codes of all parts."""

    folder: Folder
    codes: list[EncodedPart]
    stage: str = field(default="assemble", init=False)

    def open(self) -> tuple[faiss.Index, list[IpcFile]]:
        """The template, and all codes."""
        template = read_index(self.folder.local(TEMPLATE_PATH))
        entries = [encoded.file for encoded in self.codes]
        parameters: dict[str, str | int] = {"code_size": int(inverted_file(template).code_size)}
        return template, open_table(self.folder, entries, "codes", parameters)

    def run(
        self,
        shared: tuple[faiss.Index, list[IpcFile]],
        lists: ListRange,
        report: Callable[[int], None],
    ) -> AssembledPartition:
        """Writes the partition."""
        template, parts = shared
        path = partition_path(lists.number)
        file = assemble_partition(
            template, lists.first, lists.end, parts, path, self.folder, report
        )
        return AssembledPartition(file)

    def files(self, result: AssembledPartition) -> list[FileEntry]:
        """The partition."""
        return [result.file]


@dataclass
class TuneJob:
    """Chooses nprobe by measured recall."""

    folder: Folder
    key: str
    partitions: int
    dimension: int
    rerank: int
    target: float
    seed: int
    stage: str = field(default="tune", init=False)

    def open(self) -> Searcher:
        """The index."""
        return open_searcher(self.folder, self.key, self.partitions)

    def run(
        self, shared: Searcher, parts: list[Part], report: Callable[[int], None]
    ) -> TunedSearch:
        """Measures."""
        return TunedSearch(
            *tune_nprobe(
                shared,
                [load_keys(self.folder, part, self.dimension) for part in parts],
                [load_documents(self.folder, part) for part in parts],
                key_column(self.folder, parts, self.dimension),
                self.rerank,
                self.target,
                self.seed,
                report,
            )
        )

    def files(self, result: TunedSearch) -> list[FileEntry]:
        """None."""
        return []


def open_searcher(
    folder: Folder, key: str, partitions: int, nprobe: int = 1, max_nprobe: int | None = None
) -> Searcher:
    """The index of a database folder."""
    paths = [folder.local(partition_path(number)) for number in range(partitions)]
    return Searcher(folder.local(TEMPLATE_PATH), paths, key, nprobe, max_nprobe)


def announce_key(build: Build, chunked: list[ChunkedShard], dimension: int) -> None:
    """Says before anything is embedded which index is to be built, and what it will take.

    Args:
        build: The build.
        chunked: What there is to index.
        dimension: d.

    Raises:
        IndexKeyError: The corpus is too small for the key, or the index would exceed `index.memory`.
        CorpusError: Nothing is left to index.
    """
    index, entries = build.config.index, _entries(chunked)
    key = decide_key(build, chunked, dimension)
    if index.key not in ("auto", key):
        build.console.say(f"index.key   {index.key} reduced to {key}, which the sample can train")
    each, whole = predict_size(parse_key(key, dimension), dimension, entries)
    if whole > index.memory:
        raise IndexKeyError(
            f"index.memory: {key} takes {whole / 1e6:,.1f} MB for {entries:,} chunks, more than the "
            f"{index.memory / 1e6:,.1f} MB allowed; raise it, or give an index.key with smaller codes"
        )
    build.console.say(f"key        {key}, {each} bytes a chunk, {whole / 1e6:,.1f} MB in all")


def _entries(chunked: list[ChunkedShard]) -> int:
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
    entries = _entries(chunked)
    if not entries:
        raise CorpusError(
            "split.validation: every document with a token is of the validation split, so that nothing "
            "is left to index; lower it"
        )
    entries = max(entries - keyless, 1)
    if index.key == "auto":
        return choose_key(entries, dimension, int(index.memory))
    key = reduce_key(index.key, entries, dimension) if build.smoke is not None else index.key
    check_trainable(parse_key(key, dimension), entries)
    return key


def index_stages(build: Build, parts: list[Part], key: str, dimension: int) -> BuiltIndex:
    """Runs the four stages."""
    template = _train(build, parts, key, dimension)
    codes = _encode(build, parts, template, dimension)
    lists = parse_key(key, dimension).lists
    partitions = _assemble(build, codes, template, lists)
    search = _tune(build, parts, key, partitions, dimension)
    index = BuiltIndex(key, lists, template, partitions, search)
    _say_index(build, index)
    return index


def _train(build: Build, parts: list[Part], key: str, dimension: int) -> TrainedIndex:
    job = TrainJob(build.folder, key, dimension, build.config.seed)
    mark = fingerprint(job.stage, VERSION, key, build.config.seed, _contents(parts))
    points = sum(part.rows for part in parts)
    return sole(
        run_stage(build, job, [Task("trained", mark, parts)], TrainedIndex, "chunks", points)
    )


def _encode(
    build: Build, parts: list[Part], template: TrainedIndex, dimension: int
) -> list[EncodedPart]:
    job = EncodeJob(build.folder, dimension, build.engine.threads)
    tasks = [
        Task(
            part.name,
            fingerprint(job.stage, VERSION, template.file.sha256, part.first_id, _contents([part])),
            part,
        )
        for part in parts
    ]
    total = sum(part.rows for part in parts)
    return run_stage(build, job, tasks, EncodedPart, "chunks", total)


def _assemble(
    build: Build, codes: list[EncodedPart], template: TrainedIndex, lists: int
) -> list[FileEntry]:
    job = AssembleJob(build.folder, codes)
    ranges = list_ranges(lists, build.config.index.partitions)
    inputs = digest([template.file.sha256, [encoded.file.sha256 for encoded in codes]])
    tasks = [
        Task(
            f"partition-{number:05d}",
            fingerprint(job.stage, VERSION, first, end, inputs),
            ListRange(number, first, end),
        )
        for number, (first, end) in enumerate(ranges)
    ]
    total = sum(encoded.file.rows or 0 for encoded in codes)
    assembled = run_stage(build, job, tasks, AssembledPartition, "chunks", total)
    return [partition.file for partition in assembled]


def _tune(
    build: Build, parts: list[Part], key: str, partitions: list[FileEntry], dimension: int
) -> TunedSearch:
    config = build.config
    job = TuneJob(
        build.folder,
        key,
        len(partitions),
        dimension,
        config.neighbors.rerank,
        config.index.recall_target,
        config.seed,
    )
    mark = fingerprint(
        job.stage,
        VERSION,
        key,
        [file.sha256 for file in partitions],
        job.rerank,
        job.target,
        job.seed,
        _contents(parts),
    )
    total = sum(part.rows for part in parts)
    return sole(run_stage(build, job, [Task("tuned", mark, parts)], TunedSearch, "chunks", total))


def _contents(parts: list[Part]) -> list[tuple[str, str]]:
    """Hashes of what the index stages read of parts."""
    return [(part.documents.sha256, part.keys_file.sha256) for part in parts]


def _say_index(build: Build, index: BuiltIndex) -> None:
    lines = f"index      {index.key}, {index.lists:,} lists, nprobe {index.search.nprobe:,}"
    if index.search.curve:
        point = index.search.curve[-1]
        lines += f", recall@10 {point.recall:.3f} ({index.search.queries:,} queries)"
        if point.lower_bound < build.config.index.recall_target:
            lines += (
                f"; below the target {build.config.index.recall_target:g}: raise neighbors.rerank"
            )
    build.console.say(lines)


if __name__ == "__main__":
    # The classes above must be pickled under their module's name, so the command imports them anew.
    from .cli import end_process, run, stage_command

    end_process(run(sys.argv[1:], stage_command("index")))
