"""Decides which documents are left out for their content, if the configuration asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from retro_db.config import Config
from retro_db.corpus.sharding import Shard, plan_evaluation
from retro_db.meter import Meter
from retro_db.screening.duplicates import (
    Pairs,
    SignedShard,
    band_entries,
    count_partitions,
    find_pairs,
    resolve,
)
from retro_db.screening.grams import Bands
from retro_db.screening.screening import (
    EvaluationSet,
    ScreenedShard,
    open_evaluation,
    screen_shard,
    write_evaluation,
)
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.serialize import digest
from retro_db.tokens.tokenizer import Tokenizer

from ..engine.beam import beam
from ..engine.briefs import Brief, ReadBrief
from ..engine.context import Build
from ..engine.inputs import read_settings
from ..engine.jobs import Deal, Job, Placement, Stage, Task, fingerprint
from .tokenizer import TokenizerFiles

VERSION = 2


@dataclass
class EvaluationJob(Job):
    """Signs the evaluation documents."""

    stage: ClassVar[str] = "evaluation"
    part_of: ClassVar[str | None] = "screen"
    config: Config

    def run(self, shared: None, shards: list[Shard], meter: Meter, /) -> TableEntry:
        return write_evaluation(shards, self.config.leakage, self.folder)

    def files(self, result: TableEntry) -> list[FileEntry]:
        return [result]


@dataclass
class ScreenJob(Job):
    """Screens one planned shard."""

    stage: ClassVar[str] = "screen"
    config: Config
    home: Folder

    def open(self) -> tuple[Tokenizer, EvaluationSet | None]:
        leakage = self.config.leakage
        evaluation = open_evaluation(self.folder, leakage) if leakage.paths else None
        return Tokenizer.of_database(self.home), evaluation

    def run(
        self,
        shared: tuple[Tokenizer, EvaluationSet | None],
        shard: Shard,
        meter: Meter,
        /,
    ) -> ScreenedShard:
        return screen_shard(shard, self.config, *shared, self.folder, meter)

    def files(self, result: ScreenedShard) -> list[FileEntry]:
        return [file for file in (result.verdicts, result.signatures) if file]


@dataclass
class PairsJob(Job):
    """Compares the documents that share a band, in one partition of the bands."""

    stage: ClassVar[str] = "pairs"
    part_of: ClassVar[str | None] = "screen"
    shards: list[SignedShard]
    similarity: float

    def run(self, shared: None, item: tuple[int, Iterable[bytes]], meter: Meter, /) -> Pairs:
        partition, blocks = item
        pairs = find_pairs(partition, blocks, self.shards, self.similarity, self.folder)
        meter(1)
        return pairs

    def files(self, result: Pairs) -> list[FileEntry]:
        return [result.file]


@dataclass
class GatherBands(beam.PTransform):
    """The one shuffle of payload: brings equal band keys of all shards together.

    Args:
        folder: The database.
        shards: Whose signatures are read.
        partitions: Tasks, each of which gets its part of the keys.
    """

    folder: Folder
    shards: list[SignedShard]
    partitions: int

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """Gives every task, whose item is a partition's number, the entries of that partition."""
        blocks = (
            tasks.pipeline
            | "Shards" >> ReadBrief(Brief.write(self.folder, "shards", self.shards))
            | "Spread" >> Deal(_shard_name)
            | "Read bands"
            >> beam.FlatMap(band_entries, self.folder, self.partitions).with_output_types(
                tuple[int, bytes]
            )
        )
        keyed = tasks | "By partition" >> beam.Map(_by_partition).with_output_types(
            tuple[int, Task]
        )
        return (
            {"tasks": keyed, "blocks": blocks}
            | "Gather" >> beam.CoGroupByKey()
            | "Hand over" >> beam.FlatMap(_gathered)
        )


def _shard_name(shard: SignedShard) -> str:
    return str(shard.number)


def _by_partition(task: Task) -> tuple[int, Task]:
    return task.item, task


def _gathered(group: tuple[int, dict[str, Iterable]]) -> Iterator[Task]:
    """The task of a partition with its blocks; none if it was done before."""
    partition, gathered = group
    for task in gathered["tasks"]:
        yield replace(task, item=(partition, list(gathered["blocks"])))


@dataclass
class ResolveJob(Job):
    """Decides which document of every pair stays."""

    stage: ClassVar[str] = "resolve"
    part_of: ClassVar[str | None] = "screen"
    sources: dict[int, str]
    screened: dict[int, ScreenedShard]
    shards: list[SignedShard]

    def run(self, shared: None, pairs: list[Pairs], meter: Meter, /) -> Resolved:
        verdicts = resolve(self.screened, self.shards, pairs, self.sources, self.folder)
        meter(len(verdicts))
        return Resolved([verdicts[number] for number in sorted(verdicts)])

    def files(self, result: Resolved) -> list[FileEntry]:
        return [*result.verdicts]


@dataclass(frozen=True)
class Resolved:
    """The verdicts on all shards, in order."""

    verdicts: list[TableEntry]


@dataclass(frozen=True)
class Screened:
    """What was decided about the records of a shard.

    Attributes:
        verdicts: Table of the records to drop.
        content: Hash (sha256) of the records that it was decided about.
    """

    verdicts: TableEntry
    content: str


def screen_stage(build: Build, tokenizer: TokenizerFiles) -> list[Screened | None]:
    """Screens the corpus as the configuration asks.

    Returns:
        The verdicts on every shard; None for each if nothing is screened.
    """
    config = build.config
    if not config.leakage.paths and config.dedup.jaccard is None:
        return [None] * len(build.shards)
    evaluation = _evaluate(build) if config.leakage.paths else None
    screened = _screen(build, tokenizer, evaluation)
    verdicts = [shard.verdicts for shard in screened]
    if config.dedup.jaccard is not None:
        verdicts = _find_duplicates(build, screened, config.dedup.jaccard)
    return [Screened(file, shard.content) for file, shard in zip(verdicts, screened, strict=True)]


def _evaluate(build: Build) -> TableEntry:
    settings = build.config.leakage
    shards = plan_evaluation(settings, int(build.config.chunk.shard_size), build.config.output)
    job = EvaluationJob(build.folder, build.config)
    decides = {
        "leakage": settings.model_dump(mode="json", exclude={"names"}),
        "input": [[shard.identity, shard.stamp] for shard in shards],
    }
    task = Task("evaluation", fingerprint(VERSION, decides), shards)
    size = sum(shard.bytes for shard in shards)
    return build.run_task(Stage(job, [task], TableEntry, "bytes", size))


def _screen(
    build: Build, tokenizer: TokenizerFiles, evaluation: TableEntry | None
) -> list[ScreenedShard]:
    config = build.config
    job = ScreenJob(build.folder, config, build.home)
    keys = ("seed", "leakage.ngram", "leakage.jaccard", "leakage.names", "dedup.jaccard")
    decides = config.settings(*keys) | {
        "tokenizer": [tokenizer.sha256, tokenizer.end_id],
        "leakage": evaluation.sha256 if evaluation else None,
    }
    tasks = [
        Task(
            shard.task_name,
            fingerprint(VERSION, decides | read_settings(config, shard)),
            shard,
            shard,
        )
        for shard in build.shards
    ]
    size = sum(shard.bytes for shard in build.shards)
    return build.run(Stage(job, tasks, ScreenedShard, "bytes", size))


def _find_duplicates(
    build: Build, screened: list[ScreenedShard], similarity: float
) -> list[TableEntry]:
    signed = [
        SignedShard(number, shard.signatures)
        for number, shard in enumerate(screened)
        if shard.signatures
    ]
    documents = sum(shard.file.rows for shard in signed)
    partitions = count_partitions(documents, Bands.for_threshold(similarity).count)
    pairs_job = PairsJob(build.folder, signed, similarity)
    signatures = digest([shard.file.sha256 for shard in signed])
    tasks = [
        Task(
            f"partition-{number:07d}",
            fingerprint(
                VERSION,
                {
                    "screen": signatures,
                    "partition": [number, partitions],
                    "dedup.jaccard": similarity,
                },
            ),
            number,
        )
        for number in range(partitions)
    ]
    gather = Placement(spread=GatherBands(build.folder, signed, partitions))
    pairs = build.run(Stage(pairs_job, tasks, Pairs, "partitions", partitions, gather))

    sources = {number: shard.source for number, shard in enumerate(build.shards)}
    job = ResolveJob(build.folder, sources, dict(enumerate(screened)), signed)
    decides = {
        "pairs": [part.file.sha256 for part in pairs],
        "screen": [[shard.verdicts.sha256 for shard in screened], [s.file.sha256 for s in signed]],
        "corpus": [*sources.values()],
    }
    task = Task("resolve", fingerprint(VERSION, decides), pairs)
    resolved = build.run_task(Stage(job, [task], Resolved, "shards", len(screened)))
    return resolved.verdicts
