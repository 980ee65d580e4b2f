"""Stage 2: which documents are left out for their content, where the configuration asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from retro_db.config import Config
from retro_db.corpus.planning import Shard, plan_evaluation
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
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.serialize import digest
from retro_db.tokens.tokenizer import Tokenizer

from ..engine.beam import beam
from ..engine.briefs import Brief, ReadBrief
from ..engine.jobs import Deal, Placement, Task, fingerprint
from ..engine.resume import Build, run_stage, sole
from .tokenizer import TokenizerFiles

VERSION = 2


@dataclass
class EvaluationJob:
    """Signs the evaluation documents."""

    config: Config
    folder: Folder
    stage: str = field(default="evaluation", init=False)

    def open(self) -> None:
        """Nothing to share."""

    def run(self, shared: None, shards: list[Shard], report: Callable[[int], None]) -> FileEntry:
        """Writes one file of signatures."""
        return write_evaluation(shards, self.config.leakage, self.folder)

    def files(self, result: FileEntry) -> list[FileEntry]:
        """The signatures."""
        return [result]


@dataclass
class ScreenJob:
    """Screens one planned shard."""

    config: Config
    folder: Folder
    home: Folder
    stage: str = field(default="screen", init=False)

    def open(self) -> tuple[Tokenizer, EvaluationSet | None]:
        """The tokenizer, and the evaluation documents if there are any."""
        leakage = self.config.leakage
        evaluation = open_evaluation(self.folder, leakage) if leakage.paths else None
        return Tokenizer.of_database(self.home), evaluation

    def run(
        self,
        shared: tuple[Tokenizer, EvaluationSet | None],
        shard: Shard,
        report: Callable[[int], None],
    ) -> ScreenedShard:
        """Writes verdicts and signatures."""
        return screen_shard(shard, self.config, *shared, self.folder, report)

    def files(self, result: ScreenedShard) -> list[FileEntry]:
        """Verdicts, and signatures where there are any."""
        return [file for file in (result.verdicts, result.signatures) if file]


@dataclass
class PairsJob:
    """Compares the documents that share a band, in one partition of the bands."""

    folder: Folder
    shards: list[SignedShard]
    similarity: float
    stage: str = field(default="pairs", init=False)

    def open(self) -> None:
        """Nothing to share."""

    def run(
        self, shared: None, item: tuple[int, Iterable[bytes]], report: Callable[[int], None]
    ) -> Pairs:
        """Writes the pairs."""
        partition, blocks = item
        found = find_pairs(partition, blocks, self.shards, self.similarity, self.folder)
        report(1)
        return found

    def files(self, result: Pairs) -> list[FileEntry]:
        """The pairs."""
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
    partition, found = group
    for task in found["tasks"]:
        yield replace(task, item=(partition, list(found["blocks"])))


@dataclass
class ResolveJob:
    """Decides which document of every pair stays."""

    folder: Folder
    sources: dict[int, str]
    screened: dict[int, ScreenedShard]
    shards: list[SignedShard]
    stage: str = field(default="resolve", init=False)

    def open(self) -> None:
        """Nothing to share."""

    def run(self, shared: None, pairs: list[Pairs], report: Callable[[int], None]) -> Resolved:
        """Writes the verdicts on every shard."""
        found = resolve(self.screened, self.shards, pairs, self.sources, self.folder)
        report(len(found))
        return Resolved([found[number] for number in sorted(found)])

    def files(self, result: Resolved) -> list[FileEntry]:
        """The verdicts."""
        return result.verdicts


@dataclass(frozen=True)
class Resolved:
    """The verdicts on all shards, in order."""

    verdicts: list[FileEntry]


def screen_stage(build: Build, tokenizer: TokenizerFiles) -> list[FileEntry | None]:
    """Runs the stages that the configuration asks for.

    Returns:
        The verdicts on every shard; None where nothing is screened.
    """
    config = build.config
    if not config.leakage.paths and config.dedup.jaccard is None:
        return [None] * len(build.shards)
    evaluation = _evaluate(build) if config.leakage.paths else None
    screened = _screen(build, tokenizer, evaluation)
    if config.dedup.jaccard is None:
        return [shard.verdicts for shard in screened]
    return list(_find_duplicates(build, screened, config.dedup.jaccard))


def _evaluate(build: Build) -> FileEntry:
    settings = build.config.leakage
    shards = plan_evaluation(settings, int(build.config.chunk.shard_size))
    job = EvaluationJob(build.config, build.folder)
    decides = {
        "leakage": settings.model_dump(mode="json", exclude={"names"}),
        "input": [[shard.identity, shard.stamp] for shard in shards],
    }
    task = Task("evaluation", fingerprint(VERSION, decides), shards)
    size = sum(shard.bytes for shard in shards)
    return sole(run_stage(build, job, [task], FileEntry, "bytes", size))


def _screen(
    build: Build, tokenizer: TokenizerFiles, evaluation: FileEntry | None
) -> list[ScreenedShard]:
    config = build.config
    job = ScreenJob(config, build.folder, build.home)
    keys = ("seed", "leakage.ngram", "leakage.jaccard", "leakage.names", "dedup.jaccard")
    decides = config.settings(*keys) | {
        "tokenizer": [tokenizer.sha256, tokenizer.end_id],
        "leakage": evaluation.sha256 if evaluation else None,
    }
    tasks = [
        Task(
            f"shard-{shard.number:07d}",
            fingerprint(VERSION, decides | read_settings(config, shard)),
            shard,
            shard,
        )
        for shard in build.shards
    ]
    size = sum(shard.bytes for shard in build.shards)
    return run_stage(build, job, tasks, ScreenedShard, "bytes", size)


def read_settings(config: Config, shard: Shard) -> dict[str, object]:
    """Everything that decides which records are read from a shard, by name."""
    source = config.source(shard.source)
    fields = {"text", "id", "separator", "max_document"}
    return {
        "corpus": source.model_dump(mode="json", include=fields),
        "input": shard.identity,
    }


def _find_duplicates(
    build: Build, screened: list[ScreenedShard], similarity: float
) -> list[FileEntry]:
    signed = [
        SignedShard(number, shard.signatures)
        for number, shard in enumerate(screened)
        if shard.signatures
    ]
    documents = sum(shard.file.rows or 0 for shard in signed)
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
    pairs = run_stage(build, pairs_job, tasks, Pairs, "partitions", partitions, gather)

    sources = {number: shard.source for number, shard in enumerate(build.shards)}
    job = ResolveJob(build.folder, sources, dict(enumerate(screened)), signed)
    decides = {
        "pairs": [part.file.sha256 for part in pairs],
        "screen": [[shard.verdicts.sha256 for shard in screened], [s.file.sha256 for s in signed]],
        "corpus": [*sources.values()],
    }
    task = Task("resolve", fingerprint(VERSION, decides), pairs)
    resolved = sole(run_stage(build, job, [task], Resolved, "shards", len(screened)))
    return resolved.verdicts
