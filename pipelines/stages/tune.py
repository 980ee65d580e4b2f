"""Stages 8 to 10: sample queries, find their exact neighbors part by part, tune the search to them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from retro_db.index.keys import parse_key
from retro_db.index.part_embeddings import embedding_column, load_embeddings
from retro_db.manifest.model import IndexInfo
from retro_db.manifest.parts import Part, contents_of
from retro_db.search.exact import (
    QUERIES,
    exact_neighbors,
    merge_neighbors,
    query_blocks,
    read_queries,
    sample_rows,
)
from retro_db.search.finder import Finder
from retro_db.search.part_documents import load_documents
from retro_db.search.searching import (
    Searcher,
    SearchSettings,
    group_partitions,
    open_searcher,
    resident_bytes,
)
from retro_db.search.tuning import RECALL_AT, MeasuredQueries, Tuned, depths_for, tune
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.store.serialize import to_json
from retro_db.threads import Share

from ..engine.jobs import Placement, Task, fingerprint
from ..engine.resume import Build, run_stage, sole
from .train import TrainedIndex

VERSION = 1
# More than are compared: sums in another order may swap what is nearly as far.
_EXACT = 2 * RECALL_AT
_QUERIES_PATH = "state/tuning/queries.npz"


@dataclass(frozen=True)
class TuningFile:
    """What a task of the stages before tuning wrote."""

    file: FileEntry


@dataclass
class SampleJob:
    """Samples the queries that the search is tuned with."""

    folder: Folder
    home: Folder
    dimension: int
    seed: int
    stage: str = field(default="sample", init=False)

    def open(self) -> None:
        """Nothing to share."""

    def run(self, shared: None, parts: list[Part], report: Callable[[int], None]) -> TuningFile:
        """Writes them."""
        chunks = sum(part.rows for part in parts)
        vectors, own = [np.empty((0, self.dimension), np.float32)], [np.empty((0, 2), np.int64)]
        for part in parts:
            rows = sample_rows(part.first_id, part.rows, chunks, self.seed)
            if len(rows):
                embeddings = load_embeddings(self.home, part, self.dimension).embeddings
                found = read_queries(rows, embeddings, load_documents(self.home, part))
                vectors.append(found[0])
                own.append(found[1])
                report(len(rows))
        file = _save(self.folder, _QUERIES_PATH, np.concatenate(vectors), np.concatenate(own))
        return TuningFile(file)

    def files(self, result: TuningFile) -> list[FileEntry]:
        """The queries."""
        return [result.file]


@dataclass
class TruthJob:
    """Finds the queries' exact neighbors in one part."""

    folder: Folder
    home: Folder
    dimension: int
    cores: Share
    stage: str = field(default="truth", init=False)

    def open(self) -> tuple[np.ndarray, np.ndarray]:
        """The queries, and the ids of their own documents."""
        return _load(self.folder, _QUERIES_PATH)

    def run(
        self, shared: tuple[np.ndarray, np.ndarray], part: Part, report: Callable[[int], None]
    ) -> TuningFile:
        """Writes distances and ids."""
        embeddings = load_embeddings(self.home, part, self.dimension)
        found = exact_neighbors(*shared, embeddings, _EXACT, self.cores.threads, report)
        return TuningFile(_save(self.folder, f"state/tuning/{part.name}.npz", *found))

    def files(self, result: TuningFile) -> list[FileEntry]:
        """Distances and ids."""
        return [result.file]


@dataclass
class TuneJob:
    """Chooses how the index is searched by measured recall."""

    folder: Folder
    home: Folder
    key: str
    template: FileEntry
    partitions: list[FileEntry]
    memory: int
    dimension: int
    depths: tuple[int, ...]
    max_nprobe: int | None
    target: float
    cores: Share
    stage: str = field(default="tune", init=False)

    def open(self) -> Searcher:
        """The index."""
        return open_searcher(self.home, self.key, self.template, self.partitions, self.memory)

    def run(
        self,
        shared: Searcher,
        item: tuple[list[Part], list[FileEntry]],
        report: Callable[[int], None],
    ) -> Tuned:
        """Measures."""
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
        report(len(vectors))
        return tuned

    def files(self, result: Tuned) -> list[FileEntry]:
        """None."""
        return []


def search_groups(
    partitions: list[FileEntry], key: str, dimension: int, memory: int
) -> list[tuple[int, int]]:
    """Partitions that are opened together: they decide among candidates that are equally far."""
    parsed = parse_key(key, dimension)
    return group_partitions([resident_bytes(file.bytes, parsed) for file in partitions], memory)


def tune_stages(
    build: Build,
    parts: list[Part],
    key: str,
    template: FileEntry,
    partitions: list[FileEntry],
    dimension: int,
) -> Tuned:
    """Runs the three stages.

    Args:
        build: The build.
        parts: All parts of the database, their files as the database sees them.
        key: Of the index.
        template: The trained index.
        partitions: All lists.
        dimension: d.

    Returns:
        How the index is to be searched.
    """
    config = build.config
    contents = [(part.first_id, *contents_of(part)) for part in parts]
    sample = SampleJob(build.folder, build.home, dimension, config.seed)
    mark = fingerprint(VERSION, {"seed": sample.seed, "embed": contents})
    size = min(sum(part.rows for part in parts), QUERIES)
    task = Task("queries", mark, parts)
    queries = sole(run_stage(build, sample, [task], TuningFile, "chunks", size))

    truth = TruthJob(build.folder, build.home, dimension, build.engine.share(len(parts)))
    tasks = [
        Task(part.name, fingerprint(VERSION, {"sample": queries.file.sha256, "embed": own}), part)
        for part, own in zip(parts, contents, strict=True)
    ]
    total = sum(part.rows for part in parts)
    exact = [one.file for one in run_stage(build, truth, tasks, TuningFile, "chunks", total)]

    job = TuneJob(
        build.folder,
        build.home,
        key,
        template,
        partitions,
        int(config.index.memory),
        dimension,
        depths_for(config.neighbors.rerank, config.neighbors.k),
        config.neighbors.max_nprobe,
        config.index.recall_target,
        Share(tasks=1),
    )
    decides = {
        "index.key": key,
        "assemble": [file.sha256 for file in partitions],
        "truth": [file.sha256 for file in exact],
        "index.memory": search_groups(partitions, key, dimension, job.memory),
        "neighbors.rerank": job.depths,
        "neighbors.max_nprobe": job.max_nprobe,
        "index.recall_target": job.target,
    }
    tuned = Task("tuned", fingerprint(VERSION, decides), (parts, exact))
    placement = Placement.in_memory(job.memory)
    return sole(run_stage(build, job, [tuned], Tuned, "queries", size, placement))


def _save(folder: Folder, path: str, one: np.ndarray, other: np.ndarray) -> FileEntry:
    with folder.writing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, one, other)
        return describe(temporary, path)


def _load(folder: Folder, path: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(io.BytesIO(folder.read(path))) as held:
        return held["arr_0"], held["arr_1"]


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
