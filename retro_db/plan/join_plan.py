"""The join, planned: its partitions, and the bytes that it writes and reads, all of them in sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retro_db.config import Config
from retro_db.join.setting import JoinSetting
from retro_db.plan.breadth_law import BreadthLaw, PredictedBreadth

# Tuning decides how many lists a chunk visits; before it, a plan takes this number.
USUAL_NPROBE = 64
# Labels of a routed chunk; one neighbor on its way.
_ROUTED_BYTES, _NEIGHBOR_BYTES = 33, 20
# Neighbors that a query finds on all its visits, as a multiple of k: its bound keeps others away.
_FOUND_ON_VISITS = 2
# Other partitions that a chunk visits at nprobe 64, 256 partitions and 4,000 lists, a million keys; and the
# powers by which that follows each. Measured from 10,000 to a million keys (docs/scale.md), and extrapolated
# beyond.
_VISITED = 24.15
_BY_NPROBE, _BY_PARTITIONS, _BY_LISTS = 0.82, 0.42, -0.30


@dataclass(frozen=True)
class JoinPlan:
    """How neighbors are found, and what that takes.

    Attributes:
        nprobe: Lists that a chunk visits.
        partitions: Number of partitions of the join.
        visited: Other partitions that a chunk visits, about.
        waves: Number of waves that keep what is on its way within `neighbors.scratch`.
        routed_bytes: Bytes of the chunks with their lists, by partition.
        visits_bytes: Bytes of what is on its way to other partitions.
        home_bytes: Bytes of the neighbors that are found at home.
        found_bytes: Bytes of the neighbors that are found on visits.
        written_bytes: Bytes that all stages of the join write, but for the neighbors table.
        read_bytes: Bytes that they read.
        key_reads: Times that the keys of a partition are read.
        disk_bytes: Bytes of intermediate files at any time.
        worker_memory: Bytes of memory of a worker.
        operations: Multiplications of the products that sort out what is near.
    """

    nprobe: int
    partitions: int
    visited: float
    waves: int
    routed_bytes: int
    visits_bytes: int
    home_bytes: int
    found_bytes: int
    written_bytes: int
    read_bytes: int
    key_reads: int
    disk_bytes: int
    worker_memory: int
    operations: int


@dataclass(frozen=True)
class BreadthPlan:
    """What the join takes for one recall, as a sample predicts it.

    Attributes:
        breadth: Lists that a chunk visits, with their range.
        moved_bytes: Bytes that the join writes and reads.
        operations: Multiplications of its products.
    """

    breadth: PredictedBreadth
    moved_bytes: int
    operations: int


def plan_breadths(
    config: Config, lists: int, dimension: int, chunks: int, laws: Sequence[BreadthLaw]
) -> list[BreadthPlan]:
    """Plans the join for every recall that a sample was measured for.

    Args:
        config: Configuration of the build.
        lists: Inverted lists of the index.
        dimension: d of the embeddings.
        chunks: Number of chunks, N.
        laws: How many lists the recalls take.
    """
    plans = []
    for law in laws:
        breadth = law.predict(chunks, lists)
        join = plan_join(config, lists, dimension, chunks, breadth.nprobe)
        moved = join.written_bytes + join.read_bytes
        plans.append(BreadthPlan(breadth, moved, join.operations))
    return plans


def plan_join(
    config: Config, lists: int, dimension: int, chunks: int, nprobe: int | None = None
) -> JoinPlan:
    """Plans the join of all chunks with one another.

    Args:
        config: Configuration of the build.
        lists: Inverted lists of the index.
        dimension: d of the embeddings.
        chunks: Number of chunks, N.
        nprobe: Lists that a chunk visits; None for a usual number.
    """
    nprobe = min(nprobe or USUAL_NPROBE, config.neighbors.max_nprobe or lists, lists)
    setting = planned_setting(config, dimension, nprobe)
    partitions = min(lists, setting.partitions_for(chunks, config.neighbors.partitions))
    visited = visited_partitions(nprobe, partitions, lists)
    routed = chunks * (2 * dimension + 4 * nprobe + _ROUTED_BYTES)
    visits = round(chunks * visited * setting.visit_bytes) + 4 * chunks * nprobe
    visits = visits if partitions > 1 else 0
    home_bytes = chunks * config.neighbors.k * _NEIGHBOR_BYTES
    found_bytes = home_bytes * _FOUND_ON_VISITS if partitions > 1 else 0
    near = home_bytes + found_bytes
    scratch = config.neighbors.scratch
    waves = max(1, -(-visits // int(scratch))) if scratch else 1
    key_reads = 1 + (waves if partitions > 1 else 0)
    # Embeddings are read to be routed, and to tell chunks that have none.
    embeddings = 2 * 2 * dimension * chunks
    return JoinPlan(
        nprobe=nprobe,
        partitions=partitions,
        visited=round(visited, 2),
        waves=waves,
        routed_bytes=routed,
        visits_bytes=visits,
        home_bytes=home_bytes,
        found_bytes=found_bytes,
        written_bytes=routed + visits + near,
        read_bytes=embeddings + key_reads * routed + visits + near,
        key_reads=key_reads,
        disk_bytes=routed + visits // waves + near,
        worker_memory=setting.memory,
        operations=multiplications(chunks, nprobe, lists, dimension),
    )


def planned_setting(config: Config, dimension: int, nprobe: int) -> JoinSetting:
    """What the tasks of a join of the corpus with itself would agree on."""
    return JoinSetting(
        dimension,
        nprobe,
        config.neighbors.k,
        by_name=False,
        passes_over_copies=config.neighbors.drop_duplicates,
        memory=int(config.index.memory),
        products=config.neighbors.products,
    )


def multiplications(chunks: int, nprobe: int, lists: int, dimension: int) -> int:
    """Multiplications that compare every chunk with all chunks of the lists that it visits."""
    return chunks * nprobe * -(-chunks // lists) * dimension


def visited_partitions(nprobe: int, partitions: int, lists: int) -> float:
    """Other partitions that hold some of a chunk's lists, about.

    Args:
        nprobe: Lists that a chunk visits.
        partitions: Number of partitions.
        lists: Number of lists.
    """
    law = _VISITED * (nprobe / 64) ** _BY_NPROBE
    law *= (partitions / 256) ** _BY_PARTITIONS * (lists / 4000) ** _BY_LISTS
    return min(law, nprobe - 1, partitions - 1)
