"""What each stage moves, and what its tasks need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retro_db.config import Config
from retro_db.index.drawing import QUERIES, Drawing
from retro_db.index.keys import parse_key
from retro_db.manifest.model import query_path
from retro_db.plan.corpus_facts import Corpus, Facts
from retro_db.plan.index_plan import IndexPlan
from retro_db.plan.join_plan import JoinPlan
from retro_db.plan.manifests import Files
from retro_db.store.folder import FileEntry

# Id and range of the document of a chunk that is drawn.
_DRAWN_BYTES = 24


@dataclass(frozen=True)
class StageNeeds:
    """What a stage moves, and what its tasks need; records and other small files apart.

    Attributes:
        read: Bytes that it reads in sequence.
        written: Bytes that it writes.
        random_reads: Rows that it reads one by one.
        memory: Bytes of memory of a task, beside libraries and models; 0 where that is little.
        disk: Bytes of a task's files on its worker's disk, where the database lies on an object store.
    """

    read: int
    written: int
    random_reads: int = 0
    memory: int = 0
    disk: int = 0


@dataclass(frozen=True)
class DrawnBytes:
    """Bytes of the chunks that are drawn while the corpus is embedded.

    Attributes:
        points: Those that train the index; 0 if training reads the embeddings themselves.
        queries: Those that it is tuned with.
    """

    points: int
    queries: int

    @property
    def all(self) -> int:
        """All of them."""
        return self.points + self.queries


@dataclass(frozen=True)
class PlannedFiles:
    """Files of a build, as they are planned.

    Attributes:
        tables: Files of the corpus and of each query corpus, by table.
        trained: The trained index.
        partitions: Partitions of the index.
        codes: Bytes of the codes.
        drawn: Bytes of what is drawn to train and to tune.
    """

    tables: Sequence[Files]
    trained: FileEntry
    partitions: Sequence[FileEntry]
    codes: int
    drawn: DrawnBytes


def stage_needs(
    config: Config,
    facts: Facts,
    files: PlannedFiles,
    join: JoinPlan,
    index: IndexPlan,
) -> dict[str, StageNeeds]:
    """Reckons what all stages need that read or write tables.

    Args:
        config: Configuration of the build.
        facts: Corpora, encoder and tokenizer to build from.
        files: Files of the build.
        join: The join of the corpus with itself.
        index: The index.

    Returns:
        By the name of the stage.
    """
    corpus = files.tables[0]
    embeddings, parts = _size(corpus["embeddings"]), len(corpus["chunks"])
    trained, lists = files.trained.bytes, _size(files.partitions)
    largest = max(file.bytes for file in files.partitions)
    drawn = files.drawn
    # The transforms are trained first, on some of the points: then they are read twice.
    key = parse_key(index.key, index.dimension)
    passes = 2 if key.has_transforms or not config.embeddings.keep else 1
    sampled = passes * (drawn.points or embeddings)
    candidates = min(QUERIES, _rows(corpus)) * config.neighbors.rerank
    touched = embeddings * min(1.0, candidates / parts)
    part = embeddings // parts
    planned = _of_corpus("", facts.corpus, corpus, config, join, 1.0)
    embed = planned["embed"]
    return planned | {
        "embed": StageNeeds(embed.read, embed.written + drawn.all, disk=embed.disk),
        "draw": StageNeeds(0, 0),
        "train": StageNeeds(
            sampled, trained, memory=index.training_bytes, disk=0 if drawn.points else embeddings
        ),
        "encode": StageNeeds(
            embeddings + trained,
            files.codes,
            memory=trained,
            disk=part + files.codes // parts + trained,
        ),
        "assemble": StageNeeds(
            files.codes, lists, memory=largest, disk=files.codes + trained + largest
        ),
        "sample": StageNeeds(drawn.queries, drawn.queries),
        "truth": StageNeeds(embeddings, 0, disk=part),
        "tune": StageNeeds(
            lists + trained,
            0,
            random_reads=candidates,
            memory=join.worker_memory,
            disk=lists + trained + round(touched),
        ),
    }


def plan_drawn(config: Config, index: IndexPlan, chunks: int) -> DrawnBytes:
    """Plans what is drawn to train an index and to tune it.

    Args:
        config: Configuration of the build.
        index: The index.
        chunks: Number of chunks of the corpus, validation included.
    """
    share = min(1.0, index.training_points / index.entries)
    drawing = Drawing.of(index.dimension, points=share, chunks=chunks, seed=config.seed)
    row = 2 * index.dimension + _DRAWN_BYTES
    return DrawnBytes(round(drawing.points * index.entries) * row, min(QUERIES, chunks) * row)


def _of_corpus(
    folder: str, corpus: Corpus, files: Files, config: Config, join: JoinPlan, share: float
) -> dict[str, StageNeeds]:
    """The stages that a corpus and a query corpus have, whose chunks are a share of the corpus's."""
    chunks, documents, embeddings, neighbors = (
        _size(files[table]) for table in ("chunks", "documents", "embeddings", "neighbors")
    )
    parts = len(files["chunks"])
    compared = chunks if config.neighbors.drop_duplicates else 0
    routed, visits, near_home, near_visits = (
        round(share * size)
        for size in (join.routed_bytes, join.visits_bytes, join.home_bytes, join.found_bytes)
    )
    keys, memory = join.routed_bytes, join.worker_memory
    # The corpus's queries are its keys.
    queries = routed if folder else 0
    read = sum(shard.bytes for shard in corpus.shards)
    at_home, on_visits = visits + near_home, near_visits
    return {
        f"{folder}chunk": StageNeeds(read, chunks + documents, disk=(chunks + documents) // parts),
        f"{folder}embed": StageNeeds(chunks, embeddings, disk=(chunks + embeddings) // parts),
        f"{folder}route": StageNeeds(
            embeddings + compared, routed, memory=memory, disk=(embeddings + routed) // parts
        ),
        f"{folder}home": StageNeeds(
            keys + queries, at_home, memory=memory, disk=at_home // join.partitions
        ),
        f"{folder}visit": StageNeeds(
            join.waves * keys + visits, on_visits, memory=memory, disk=on_visits // join.partitions
        ),
        f"{folder}neighbors": StageNeeds(
            near_home + near_visits + embeddings,
            neighbors,
            memory=memory,
            disk=(embeddings + neighbors) // parts,
        ),
    }


def needs_of_queries(
    config: Config, facts: Facts, tables: Sequence[Files], join: JoinPlan
) -> dict[str, StageNeeds]:
    """Reckons what the stages of query corpora need.

    Args:
        config: Configuration of the build.
        facts: Corpora, encoder and tokenizer to build from.
        tables: Files of the corpus and of each query corpus, by table.
        join: The join of the corpus with itself.
    """
    needs: dict[str, StageNeeds] = {}
    for query, files in zip(facts.queries, tables[1:], strict=True):
        share = _rows(files) / max(_rows(tables[0]), 1)
        needs |= _of_corpus(f"{query_path(query.name)}/", query, files, config, join, share)
    return needs


def _size(files: Sequence[FileEntry]) -> int:
    return sum(file.bytes for file in files)


def _rows(files: Files) -> int:
    return sum(file.rows for file in files["chunks"])
