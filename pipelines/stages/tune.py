"""Tunes the search: finds the exact neighbors of sampled queries part by part, and measures recall."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from retro_db.index.drawing import QUERIES, Drawn, read_queries
from retro_db.index.keys import parse_key
from retro_db.index.part_embeddings import embedding_column, load_embeddings
from retro_db.index.structure import read_index
from retro_db.join.breadth import RECALL_AT, JoinBreadth, SampledQueries, measure_breadth
from retro_db.join.router import Router
from retro_db.manifest.parts import Part, contents_of
from retro_db.meter import Meter
from retro_db.search.finder import Finder
from retro_db.search.ground_truth import (
    exact_neighbors,
    merge_neighbors,
    query_blocks,
)
from retro_db.search.searching import (
    Searcher,
    SearchSettings,
    group_partitions,
    open_searcher,
    resident_bytes,
)
from retro_db.search.tuning import MeasuredQueries, Tuned, depths_for, tune
from retro_db.store.folder import FileEntry, Folder, TableEntry, describe
from retro_db.store.gathering import ColumnReader
from retro_db.threads import Share

from ..engine.context import Build
from ..engine.jobs import Job, Placement, Stage, Task, fingerprint
from . import draw
from .train import TrainedIndex

VERSION = 3
# More than are compared: summing in another order may swap nearly equal distances.
_EXACT = 2 * RECALL_AT
_QUERIES_PATH = "state/tuning/queries.npz"


@dataclass(frozen=True)
class FilledIndex:
    """An index whose search is still to be tuned.

    Attributes:
        key: Index key.
        lists: Number of inverted lists.
        template: The trained index.
        partitions: Files of the inverted lists, as the database sees them.
        lengths: For each of them, packed numbers: the entries of each of its lists.
        fine: Files of fine codes; none if the embeddings are kept.
    """

    key: str
    lists: int
    template: TrainedIndex
    partitions: list[TableEntry]
    lengths: list[str]
    fine: list[TableEntry] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """How widely chunks and texts must be searched for, as measured.

    Attributes:
        join: Lists that a chunk visits when all neighbors are found.
        search: Settings of the search for single texts.
    """

    join: JoinBreadth
    search: Tuned


@dataclass(frozen=True)
class BuiltIndex(FilledIndex):
    """An index with its measured search: all that later stages need to know about it.

    Attributes:
        measured: How widely it is searched.
    """

    measured: Measured = field(kw_only=True)

    @property
    def search(self) -> Tuned:
        """Settings of the search for single texts, and how they were measured."""
        return self.measured.search

    @property
    def entries(self) -> int:
        """Number of chunks in the index."""
        return sum(file.rows for file in self.partitions)


@dataclass(frozen=True)
class TuningFile:
    """What a task of the stages before tuning wrote."""

    file: FileEntry


@dataclass(frozen=True)
class TuningQueries(TuningFile):
    """The queries that the search is tuned with.

    Attributes:
        count: Number of queries.
    """

    count: int


@dataclass
class SampleJob(Job):
    """Collects the queries that the search is tuned with."""

    stage: ClassVar[str] = "sample"
    part_of: ClassVar[str | None] = "tune"

    def run(self, shared: None, drawn: list[Drawn], meter: Meter, /) -> TuningQueries:
        vectors, own = read_queries(self.folder, drawn)
        meter(len(vectors))
        return TuningQueries(_save(self.folder, _QUERIES_PATH, vectors, own), len(vectors))

    def files(self, result: TuningFile) -> list[FileEntry]:
        return [result.file]


@dataclass
class TruthJob(Job):
    """Finds the queries' exact neighbors in one part."""

    stage: ClassVar[str] = "truth"
    part_of: ClassVar[str | None] = "tune"
    home: Folder
    dimension: int
    cores: Share

    def open(self) -> tuple[np.ndarray, np.ndarray]:
        return _load(self.folder, _QUERIES_PATH)

    def run(self, shared: tuple[np.ndarray, np.ndarray], part: Part, meter: Meter, /) -> TuningFile:
        embeddings = load_embeddings(self.home, part, self.dimension)
        neighbors = exact_neighbors(*shared, embeddings, _EXACT, self.cores.threads, meter)
        return TuningFile(_save(self.folder, f"state/tuning/{part.name}.npz", *neighbors))

    def files(self, result: TuningFile) -> list[FileEntry]:
        return [result.file]


@dataclass
class TuneJob(Job):
    """Chooses how the index is searched by measured recall."""

    stage: ClassVar[str] = "tune"
    home: Folder
    key: str
    template: FileEntry
    partitions: Sequence[FileEntry]
    memory: int
    dimension: int
    depths: tuple[int, ...]
    max_nprobe: int | None
    target: float
    cores: Share

    def open(self) -> Searcher:
        return open_searcher(self.home, self.key, self.template, self.partitions, self.memory)

    def run(
        self,
        shared: Searcher,
        item: tuple[list[Part], list[FileEntry]],
        meter: Meter,
        /,
    ) -> Measured:
        parts, truth = item
        vectors, own = _load(self.folder, _QUERIES_PATH)
        distances = np.full((len(vectors), _EXACT), np.inf, np.float32)
        best = distances, np.full((len(vectors), _EXACT), -1, np.int64)
        for file in truth:
            best = merge_neighbors(best, _load(self.folder, file.path), _EXACT)
        embeddings = embedding_column(self.home, parts, self.dimension)
        # What it starts from does not matter: tuning replaces it.
        finder = Finder(shared, embeddings, SearchSettings(1, self.depths[-1]), self.max_nprobe)
        queries = MeasuredQueries(
            query_blocks(vectors, own), best[1], are_all_chunks=len(embeddings) <= QUERIES
        )
        tuned = tune(finder, queries, self.target, self.depths, self.cores.threads)
        meter(len(vectors))
        return Measured(self._measure_join(vectors, best, embeddings), tuned)

    def _measure_join(
        self, vectors: np.ndarray, best: tuple[np.ndarray, np.ndarray], embeddings: ColumnReader
    ) -> JoinBreadth:
        router = Router(read_index(self.home.verified(self.template)))
        distances, ids = best
        # A chunk that is missing has no distance: any embedding stands in for its own.
        neighbors = embeddings[np.maximum(ids, 0)]
        all_chunks = len(embeddings) <= QUERIES
        queries = SampledQueries(vectors, neighbors, distances, are_all_chunks=all_chunks)
        limit = min(self.max_nprobe or router.lists, router.lists)
        return measure_breadth(router, queries, self.target, limit)


def search_groups(
    partitions: Sequence[FileEntry], key: str, dimension: int, memory: int
) -> list[tuple[int, int]]:
    """Partitions opened together; the grouping breaks ties between equal distances."""
    parsed = parse_key(key, dimension)
    return group_partitions([resident_bytes(file.bytes, parsed) for file in partitions], memory)


def tune_stage(
    build: Build, parts: list[Part], drawn: list[Drawn], index: FilledIndex, dimension: int
) -> BuiltIndex:
    """Finds the exact neighbors of sampled queries, and chooses the search by them.

    Args:
        build: The build.
        parts: All parts of the database, their files as the database sees them.
        drawn: What was drawn from each part.
        index: The index.
        dimension: Dimension d of the embeddings.

    Returns:
        The index with its search.
    """
    queries, exact = _exact_neighbors(build, parts, drawn, dimension)
    config = build.config
    job = TuneJob(
        folder=build.folder,
        home=build.home,
        key=index.key,
        template=index.template.file,
        partitions=index.partitions,
        memory=int(config.index.memory),
        dimension=dimension,
        depths=depths_for(config.neighbors.rerank, config.neighbors.k),
        max_nprobe=config.neighbors.max_nprobe,
        target=config.index.recall_target,
        cores=Share(tasks=1),
    )
    decides = {
        "index.key": index.key,
        "assemble": [file.sha256 for file in index.partitions],
        "truth": [file.sha256 for file in exact],
        "index.memory": search_groups(index.partitions, index.key, dimension, job.memory),
        "neighbors.rerank": job.depths,
        "neighbors.max_nprobe": job.max_nprobe,
        "index.recall_target": job.target,
    }
    task = Task("tuned", fingerprint(VERSION, decides), (parts, exact))
    placement = Placement.in_memory(job.memory)
    measured = build.run_task(Stage(job, [task], Measured, "queries", queries, placement))
    return BuiltIndex(**vars(index), measured=measured)


def _exact_neighbors(
    build: Build, parts: list[Part], drawn: list[Drawn], dimension: int
) -> tuple[int, list[FileEntry]]:
    """Number of sampled queries, and a file of their exact neighbors in each part."""
    contents = [(part.first_id, *contents_of(part)) for part in parts]
    seed = build.config.seed
    sample = SampleJob(build.folder)
    decides = {"seed": seed, "draw": draw.VERSION, "embed": contents}
    task = Task("queries", fingerprint(VERSION, decides), drawn)
    chunks = sum(part.rows for part in parts)
    queries = build.run_task(Stage(sample, [task], TuningQueries, "chunks", min(chunks, QUERIES)))

    truth = TruthJob(build.folder, build.home, dimension, build.engine.share(len(parts)))
    sampled = queries.file.sha256
    tasks = [
        Task(part.name, fingerprint(VERSION, {"sample": sampled, "embed": content}), part)
        for part, content in zip(parts, contents, strict=True)
    ]
    results = build.run(Stage(truth, tasks, TuningFile, "chunks", chunks))
    return queries.count, [result.file for result in results]


def _save(folder: Folder, path: str, first: np.ndarray, second: np.ndarray) -> FileEntry:
    with folder.writing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, first, second)
        return describe(temporary, path)


def _load(folder: Folder, path: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(io.BytesIO(folder.read(path))) as arrays:
        return arrays["arr_0"], arrays["arr_1"]
