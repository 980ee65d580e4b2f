"""Routing the chunks of a span: each with its lists, to the partition of its nearest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from retro_db.index.structure import widen
from retro_db.join.keys import take_halves
from retro_db.join.labels import UNNAMED_KEY, UNNAMED_QUERY, chunk_labels, token_hashes
from retro_db.join.router import Router
from retro_db.join.setting import JoinSetting
from retro_db.join.spans import PartRows, Span
from retro_db.join.spatial_order import Order
from retro_db.reader.opening import open_files, read_documents
from retro_db.store.contracts import contract
from retro_db.store.embedded import is_embedded
from retro_db.store.folder import Folder
from retro_db.store.packing import pack_numbers, unpack_numbers
from retro_db.store.slices import SlicedFile, writing_slices

_BLOCK_ROWS = 8192
_TOKENS = ("tokens", "length")


@dataclass(frozen=True)
class RoutedSpan:
    """The chunks of one span, by partition.

    Attributes:
        routed: The file, a slice for each partition.
        rows: Packed numbers: the chunks of each slice.
        visits: Packed numbers: the visits of each slice's chunks to other partitions.
    """

    routed: SlicedFile
    rows: str
    visits: str

    @property
    def rows_of_partitions(self) -> np.ndarray:
        """Chunks of each slice: int64 [partitions]."""
        return unpack_numbers(self.rows)

    @property
    def visits_of_partitions(self) -> np.ndarray:
        """Visits of each slice's chunks to other partitions: int64 [partitions]."""
        return unpack_numbers(self.visits)


@dataclass(frozen=True)
class Routing:
    """How chunks are routed.

    Attributes:
        home: Folder of their files.
        parameters: Parameters of the contracts' types: token_type, chunk_tokens, dimension.
        named: Sources whose records name their documents.
        are_queries_alone: Whether none may be anyone's neighbor: chunks of a query corpus.
        nprobe: Number of nearest lists that a chunk visits.
    """

    home: Folder
    parameters: dict[str, str | int]
    named: list[str]
    are_queries_alone: bool
    nprobe: int


@dataclass(frozen=True)
class _Columns:
    ids: np.ndarray
    vectors: np.ndarray
    lists: np.ndarray
    documents: np.ndarray
    names: np.ndarray
    tokens: np.ndarray
    indexed: np.ndarray

    @classmethod
    def empty(cls, dimension: int, nprobe: int) -> _Columns:
        vectors, lists = np.empty((0, dimension), np.float16), np.empty((0, nprobe), np.int32)
        integers = [np.empty(0, np.int64) for _ in range(3)]
        tokens, indexed = np.empty(0, np.uint64), np.empty(0, bool)
        return cls(integers[0], vectors, lists, integers[1], integers[2], tokens, indexed)

    @classmethod
    def joined(cls, blocks: Sequence[_Columns]) -> _Columns:
        arrays = zip(*(vars(block).values() for block in blocks), strict=True)
        return cls(*(np.concatenate(column) for column in arrays))


def route_span(
    span: Span,
    only: np.ndarray | None,
    removed: np.ndarray,
    router: Router,
    order: Order,
    routing: Routing,
    setting: JoinSetting,
    folder: Folder,
    *,
    threads: int,
    report: Callable[[int], None],
) -> RoutedSpan:
    """Writes the embedded chunks of a span, each with its lists, by partition.

    Args:
        span: The chunks.
        only: int64 [n], ascending ids of the chunks that are wanted; None for all.
        removed: int64 [r], ascending ids of removed chunks, which are left out.
        router: Router of the trained index.
        order: Order of the lists.
        routing: How chunks are routed.
        setting: What the join agrees on.
        folder: Folder of the join.
        threads: Number of blocks routed side by side; the result does not depend on it.
        report: Called with the number of chunks routed since the last call.
    """
    blocks = [_Columns.empty(setting.dimension, routing.nprobe)]
    with ThreadPoolExecutor(threads) as pool:
        for piece in span.pieces:
            route = _Route(piece, only, removed, router, order, routing, setting)
            starts = range(piece.start, piece.stop, _BLOCK_ROWS)
            for start, block in zip(starts, pool.map(route.block, starts), strict=True):
                blocks.append(block)
                report(min(_BLOCK_ROWS, piece.stop - start))
    columns = _Columns.joined(blocks)
    by_list = np.argsort(columns.lists[:, 0], kind="stable")
    ends = np.searchsorted(columns.lists[by_list, 0], order.cuts)
    written: list[SlicedFile] = []
    path = setting.path("routed", shard=span.number)
    schema = setting.schema("routed", routing.nprobe)
    step = contract("routed").batch_rows
    visits = np.zeros(order.partitions, np.int64)
    with writing_slices(folder, path, schema, written) as writer:
        for partition in range(order.partitions):
            writer.begin()
            for start in range(ends[partition], ends[partition + 1], step):
                rows = by_list[start : min(start + step, ends[partition + 1])]
                lists = columns.lists[rows]
                visits[partition] += _count_visits(order, lists)
                writer.write(
                    {
                        "id": columns.ids[rows],
                        "vector": take_halves(columns.vectors, rows),
                        "lists": lists,
                        "document": columns.documents[rows],
                        "name": columns.names[rows],
                        "tokens": columns.tokens[rows],
                        "indexed": columns.indexed[rows],
                    }
                )
    return RoutedSpan(written[0], pack_numbers(np.diff(ends)), pack_numbers(visits))


def _count_visits(order: Order, lists: np.ndarray) -> int:
    """Visits of chunks to partitions other than that of their first list."""
    if order.partitions == 1:
        return 0
    partitions = np.sort(order.partition_of(lists), axis=1)
    return int((np.diff(partitions, axis=1) > 0).sum())


class _Route:
    """Routes rows of one part."""

    def __init__(
        self,
        piece: PartRows,
        only: np.ndarray | None,
        removed: np.ndarray,
        router: Router,
        order: Order,
        routing: Routing,
        setting: JoinSetting,
    ) -> None:
        part, home, parameters = piece.part, routing.home, routing.parameters
        self._piece = piece
        self._only = only
        self._removed = removed
        self._router = router
        self._order = order
        self._routing = routing
        [self._embeddings] = open_files(home, [part.keys_file], "embeddings", parameters)
        self._chunks = None
        if setting.passes_over_copies:
            [self._chunks] = open_files(home, [part.chunks], "chunks", parameters)
        documents = read_documents(home, part.documents, part.rows)
        unnamed = UNNAMED_QUERY if routing.are_queries_alone else UNNAMED_KEY
        self._labels = chunk_labels(documents, part.first_id, routing.named, unnamed)

    def block(self, start: int) -> _Columns:
        """Routes the wanted ones of some rows from `start` on."""
        stop = min(start + _BLOCK_ROWS, self._piece.stop)
        first_id = self._piece.part.first_id
        vectors = self._embeddings.read("vector", start, stop)
        wanted = is_embedded(vectors)
        wanted[_among(self._removed, start + first_id, stop + first_id)] = False
        if self._only is not None:
            chosen = np.zeros(stop - start, bool)
            chosen[_among(self._only, start + first_id, stop + first_id)] = True
            wanted &= chosen
        rows = np.flatnonzero(wanted)
        vectors = take_halves(vectors, rows)
        lists = self._router.nearest(widen(vectors), self._routing.nprobe)
        hashes = np.zeros(len(rows), np.uint64)
        if self._chunks is not None:
            tokens, lengths = (self._chunks.read(name, start, stop)[rows] for name in _TOKENS)
            hashes = token_hashes(tokens, lengths)
        document, name, in_training_split = (label[start + rows] for label in self._labels)
        return _Columns(
            ids=rows + start + first_id,
            vectors=vectors,
            lists=self._order.places[lists].astype(np.int32),
            documents=document,
            names=name,
            tokens=hashes,
            indexed=in_training_split & (not self._routing.are_queries_alone),
        )


def _among(ids: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Those of ascending ids that are start to stop - 1, counted from start."""
    return ids[slice(*np.searchsorted(ids, [start, stop]))] - start
