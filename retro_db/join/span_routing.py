"""Routing the chunks of a span: each with its lists, to the partition of its nearest one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retro_db.index.structure import is_embedded, widen
from retro_db.join.keys import take_halves
from retro_db.join.labels import UNNAMED_KEY, UNNAMED_QUERY, chunk_labels, token_hashes
from retro_db.join.router import Router
from retro_db.join.setting import JoinSetting
from retro_db.join.spans import PartRows, Span
from retro_db.join.spatial_order import Order
from retro_db.reader.opening import open_files, read_documents
from retro_db.store.contracts import contract
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
        after: Number of nearest lists that are left out: they were visited before.
        nprobe: Number of nearest lists, with those that are left out.
    """

    home: Folder
    parameters: dict[str, str | int]
    named: list[str]
    are_queries_alone: bool
    after: int
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


def route_span(
    span: Span,
    only: np.ndarray | None,
    removed: np.ndarray,
    router: Router,
    order: Order,
    routing: Routing,
    setting: JoinSetting,
    folder: Folder,
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
        report: Called with the number of chunks routed since the last call.
    """
    pieces = [
        _route(piece, only, removed, router, order, routing, setting, report)
        for piece in span.pieces
    ]
    columns = _Columns(
        *(np.concatenate(arrays) for arrays in zip(*map(_arrays, pieces), strict=True))
    )
    by_list = np.argsort(columns.lists[:, 0], kind="stable")
    ends = np.searchsorted(columns.lists[by_list, 0], order.cuts)
    written: list[SlicedFile] = []
    path = setting.path("routed", shard=span.number)
    schema = setting.schema("routed", routing.nprobe - routing.after)
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


def _arrays(columns: _Columns) -> list[np.ndarray]:
    return list(vars(columns).values())


def _count_visits(order: Order, lists: np.ndarray) -> int:
    """Visits of chunks to partitions other than that of their first list."""
    if order.partitions == 1:
        return 0
    partitions = np.sort(order.partition_of(lists), axis=1)
    return int((np.diff(partitions, axis=1) > 0).sum())


def _route(
    piece: PartRows,
    only: np.ndarray | None,
    removed: np.ndarray,
    router: Router,
    order: Order,
    routing: Routing,
    setting: JoinSetting,
    report: Callable[[int], None],
) -> _Columns:
    """Routes rows of one part."""
    part = piece.part
    [embeddings] = open_files(routing.home, [part.keys_file], "embeddings", routing.parameters)
    documents = read_documents(routing.home, part.documents, part.rows)
    unnamed = UNNAMED_QUERY if routing.are_queries_alone else UNNAMED_KEY
    labels = chunk_labels(documents, part.first_id, routing.named, unnamed)
    blocks = []
    for start in range(piece.start, piece.stop, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, piece.stop)
        vectors = embeddings.read("vector", start, stop)
        ids = np.arange(start, stop) + part.first_id
        wanted = is_embedded(vectors) & ~np.isin(ids, removed, assume_unique=True)
        if only is not None:
            wanted &= np.isin(ids, only, assume_unique=True)
        rows = np.flatnonzero(wanted)
        vectors = take_halves(vectors, rows)
        lists = router.nearest(widen(vectors), routing.nprobe)[:, routing.after :]
        hashes = np.zeros(len(rows), np.uint64)
        if setting.passes_over_copies:
            [chunks] = open_files(routing.home, [part.chunks], "chunks", routing.parameters)
            tokens, lengths = (chunks.read(name, start, stop)[rows] for name in _TOKENS)
            hashes = token_hashes(tokens, lengths)
        document, name, in_training_split = (label[start + rows] for label in labels)
        indexed = in_training_split & (not routing.are_queries_alone)
        places = order.places[lists].astype(np.int32)
        blocks.append(_Columns(ids[rows], vectors, places, document, name, hashes, indexed))
        report(stop - start)
    return _Columns(*(np.concatenate(arrays) for arrays in zip(*map(_arrays, blocks), strict=True)))
