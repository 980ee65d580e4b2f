"""What all tasks of one join agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from retro_db.store.contracts import contract

# Bytes that a query of a block takes beside its embedding: survivors, neighbors, labels.
_QUERY_BYTES = 2048
# Bytes that one of a chunk's k neighbors takes: about three pairs, thrice while they are sorted.
_GATHERED_BYTES = 180
# Bytes of a visit beside the embedding and its lists.
_VISIT_BYTES = 32
_LEAST_BLOCK, _MOST_BLOCK = 1024, 1 << 16


@dataclass(frozen=True)
class JoinSetting:
    """What all tasks of one join agree on.

    Attributes:
        dimension: d of the embeddings.
        nprobe: Lists that a query visits.
        k: Number of neighbors.
        by_name: Whether queries exclude the documents of their names, as those of query corpora do; else
            their own documents.
        passes_over_copies: Whether queries exclude chunks with their own tokens.
        memory: Bytes of a worker.
        products: Type of the products, or auto for this processor's fastest; it decides no result.
        turn: What the names of folders end with: empty unless queries go round in waves, or again.
    """

    dimension: int
    nprobe: int
    k: int
    by_name: bool
    passes_over_copies: bool
    memory: int
    products: str = "auto"
    turn: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes of a chunk of a partition in memory: embedding, lists, labels and neighbors."""
        return 2 * self.dimension + 4 * self.nprobe + 20 * self.k + 64

    @property
    def most_rows(self) -> int:
        """Chunks that fill a quarter of the memory: another is for their factors, half for all else."""
        return max(1, self.memory // 4 // self.row_bytes)

    @property
    def most_gathered_rows(self) -> int:
        """Chunks whose neighbors of all partitions fill a third of the memory while they are merged."""
        return max(1, self.memory // 3 // (_GATHERED_BYTES * self.k))

    @property
    def visit_bytes(self) -> int:
        """Bytes of a visit on its way: embedding, labels and bound. Each of its lists takes four more."""
        return 2 * self.dimension + _VISIT_BYTES

    def partitions_for(self, chunks: int, wanted: int | Literal["auto"]) -> int:
        """Number of partitions, about: no list is cut, so that there may be some more, or fewer.

        Args:
            chunks: Number of chunks.
            wanted: `neighbors.partitions`.
        """
        return max(1, -(-chunks // self.most_rows)) if wanted == "auto" else wanted

    def block_rows(self, threads: int, queries: int) -> int:
        """Queries of a block: each thread has one in hand, and blocks of equal size end at the same time.

        Args:
            threads: Number of threads.
            queries: Number of all queries, about.
        """
        each = 10 * self.dimension + 4 * self.nprobe + 24 * self.k + _QUERY_BYTES
        most = max(_LEAST_BLOCK, min(_MOST_BLOCK, self.memory // 6 // threads // each))
        rounds = -(-queries // (most * threads))
        return max(_LEAST_BLOCK, -(-queries // max(1, rounds * threads)))

    def path(self, table: str, **names: str | int) -> str:
        """Path of one of the join's intermediate files.

        Args:
            table: routed, visits or near.
            **names: What the contract's path names.
        """
        return contract(table).path.format(turn=self.turn, **names)

    def schema(self, table: str, nprobe: int | None = None) -> pa.Schema:
        """Schema of one of the join's intermediate files.

        Args:
            table: routed, visits or near.
            nprobe: Lists of a routed chunk, if these are not those that queries visit.
        """
        return contract(table).schema(dimension=self.dimension, nprobe=nprobe or self.nprobe)
