"""The neighbors of all keys: the join, beside Faiss and ScaNN searching for all of them.

    python benchmarks/neighbors.py --synthetic 100000
    python benchmarks/neighbors.py --synthetic 2000000 --dimension 768 --peers ""    on a card, if any
    python benchmarks/neighbors.py --synthetic 1000000 --memory 2 --nprobe 128    the stage in 2 GB

Every side finds the 20 nearest keys of other documents: ours excludes a document exactly, the peers are asked
for more keys, of which those of other documents are kept. All sides take turns in one run on two threads;
their parameters are swept, and rates are compared at equal recall, between the points measured. Ours is the
bare join, with the keys in memory, in float32 and, where the processor multiplies it natively, in bfloat16;
then the whole stage, which reads and writes files, in one partition and in several.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from index import Data, Point, rate_at
from memory import own_memory, peak_while
from peers.environments import ENVIRONMENTS, environment
from peers.process import PeerProcess

from retro_db.index.keys import choose_key, parse_key
from retro_db.index.structure import faiss, inverted_file, widen
from retro_db.index.training import train_index
from retro_db.join.at_home import HomeResult, join_at_home
from retro_db.join.keys import Labels
from retro_db.join.on_visit import join_visits
from retro_db.join.partition import Routed, RoutedSlice
from retro_db.join.router import Router
from retro_db.join.scan import nearest_keys
from retro_db.join.setting import JoinSetting
from retro_db.join.span_routing import RoutedSpan, Routing, route_span
from retro_db.join.spans import Span, cut_spans, of_whole_parts
from retro_db.join.spatial_order import Order, cut_equally, cut_partitions, order_lists
from retro_db.manifest.parts import Part
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, describe
from retro_db.store.writing import TableWriter
from retro_db_pipelines.stages.neighbors import NeighborsJob

THREADS = 2
NEIGHBORS = 20
SAMPLED = 1000
PEER_QUERIES = 16_384
PART_ROWS = 250_000
MEMORY = 8_000_000_000
TARGET = 0.99
SHARES = (1 / 32, 1 / 16, 1 / 10, 1 / 8, 1 / 6, 1 / 4)
SHARES_OF_MANY = (1 / 100, 1 / 50, 1 / 35, 1 / 25, 1 / 16)
CANDIDATES = (100, 200, 400)


def quiet(count: int) -> None:
    """Takes a report of progress, and ignores it."""


@dataclass(frozen=True)
class Truth:
    """Sampled queries, and the distance of their tenth nearest key in other documents.

    Attributes:
        rows: int64 [q].
        tenth: float32 [q], squared.
    """

    rows: np.ndarray
    tenth: np.ndarray

    @classmethod
    def of(cls, data: Data, documents: np.ndarray) -> Truth:
        """Compares sampled queries with all keys."""
        rows = np.sort(np.random.default_rng(0).permutation(PEER_QUERIES)[:SAMPLED])
        rows = rows[rows < len(documents)]
        queries = data.embeddings[rows].astype(np.float32)
        best = np.full((len(rows), 10), np.inf, np.float32)
        for start in range(0, len(documents), 16_384):
            block = data.embeddings[start : start + 16_384].astype(np.float32)
            distances = faiss.pairwise_distances(queries, block)
            same = documents[rows, None] == documents[start : start + 16_384]
            distances[same] = np.inf
            best = np.sort(np.concatenate([best, distances], axis=1), axis=1)[:, :10]
        return cls(rows, best[:, -1])

    def recall(self, data: Data, documents: np.ndarray, ids: np.ndarray) -> float:
        """Returns recall@10 of ids int64 [n, 20] for the first n keys; as near as the tenth is a hit."""
        rows = self.rows
        near = ids[rows, :10]
        distances = data.embeddings[np.maximum(near, 0)].astype(np.float32)
        distances -= data.embeddings[rows].astype(np.float32)[:, None]
        hits = (distances**2).sum(axis=2) <= self.tenth[:, None] * (1 + 1e-4) + 1e-4
        hits &= (near >= 0) & (documents[near] != documents[rows, None])
        return float(hits.mean())


class Stage:
    """Our stage over files of embeddings, as a build runs it, one process after another.

    Args:
        data: The keys.
        documents: int64 [n], the document of each.
        index: The trained index.
        place: Folder of the files.
        setting: What the join agrees on.
        partitions: Number of partitions; 0 for as many as the memory asks for.
    """

    def __init__(
        self,
        data: Data,
        documents: np.ndarray,
        index: faiss.Index,
        place: Path,
        setting: JoinSetting,
        partitions: int,
    ) -> None:
        self.folder = Folder(str(place))
        self.setting = setting
        self.router = Router(index)
        self.parts = _write_parts(data, documents, self.folder)
        ivf = inverted_file(index)
        ordered = order_lists(ivf.quantizer.reconstruct_n(0, ivf.nlist))
        homes = np.concatenate(
            [
                self.router.nearest(data.embeddings[row : row + 65_536].astype(np.float32), 1)[:, 0]
                for row in range(0, len(documents), 65_536)
            ]
        )
        lengths = np.bincount(homes, minlength=ivf.nlist)
        places = np.empty(ivf.nlist, np.int64)
        places[ordered] = np.arange(ivf.nlist)
        most = setting.most_rows
        cuts = (
            cut_equally(lengths[ordered], partitions)
            if partitions
            else cut_partitions(lengths[ordered], most)
        )
        self.order = Order(places, cuts)
        self.spans = cut_spans(self.parts, 0, most)
        self.gathered = cut_spans(self.parts, 0, setting.most_gathered_rows)
        self.starts = np.array([span.first_id for span in self.gathered])

    def run(self) -> float:
        """Routes, joins and gathers; returns the seconds that it took."""
        start = time.perf_counter()
        self.routed = [self._route(span) for span in self.spans]
        numbers = range(self.order.partitions)
        self.homes = [self._home(number) for number in numbers]
        self.near = [file for home in self.homes for file in home.near]
        for number in numbers if self.order.partitions > 1 else ():
            self.near += self._visit(number, self.homes)
        gathered = NeighborsJob(self.folder, self.folder, [self.near], self.setting)
        for spans in of_whole_parts(self.gathered):
            gathered.run(None, spans, quiet)
        return time.perf_counter() - start

    @property
    def moved(self) -> tuple[float, float]:
        """Bytes a key that the stage wrote, and that it read: keys once at home, and once for visits."""
        routed = sum(span.routed.file.bytes for span in self.routed)
        visits = sum(file.file.bytes for home in self.homes for file in home.visits)
        near = sum(file.file.bytes for file in self.near)
        embeddings = 2 * sum(part.keys_file.bytes for part in self.parts)
        reads = 2 if self.order.partitions > 1 else 1
        count = sum(part.rows for part in self.parts)
        written, read = routed + visits + near, embeddings + reads * routed + visits + near
        return written / count, read / count

    def keys(self, number: int) -> Routed:
        """Reads what was routed to a partition."""
        slices = [
            RoutedSlice(span.routed.at(number), int(span.rows_of_partitions[number]))
            for span in self.routed
        ]
        return Routed.read(self.folder, slices, self.setting, self.setting.nprobe, quiet)

    def _route(self, span: Span) -> RoutedSpan:
        parameters: dict[str, str | int] = {"dimension": self.setting.dimension}
        routing = Routing(
            self.folder,
            parameters,
            [],
            are_queries_alone=False,
            nprobe=self.setting.nprobe,
        )
        none = np.empty(0, np.int64)
        return route_span(
            span,
            None,
            none,
            self.router,
            self.order,
            routing,
            self.setting,
            self.folder,
            threads=THREADS,
            report=quiet,
        )

    def _bounds(self, number: int) -> tuple[int, int]:
        first, end = self.order.cuts[number : number + 2].tolist()
        return first, end

    def _home(self, number: int) -> HomeResult:
        routed = self.keys(number)
        keys = routed.keys(*self._bounds(number), self.setting)
        options = {"threads": THREADS, "report": quiet}
        return join_at_home(
            keys, routed, number, self.order, self.starts, self.setting, self.folder, **options
        )

    def _visit(self, number: int, homes: Sequence[HomeResult]) -> list:
        keys = self.keys(number).keys(*self._bounds(number), self.setting)
        visits = [home.visits_to(number) for home in homes]
        options = {"threads": THREADS, "report": quiet}
        first = self._bounds(number)[0]
        return join_visits(
            keys, visits, number, first, self.starts, self.setting, self.folder, **options
        )


def _write_parts(data: Data, documents: np.ndarray, folder: Folder) -> list[Part]:
    """Writes embeddings and documents in files of whole documents."""
    count = -(-len(documents) // PART_ROWS)
    cuts = [len(data.starts) * number // count for number in range(count + 1)]
    parts = []
    for number, (first, end) in enumerate(pairwise(cuts)):
        starts, counts = data.starts[first:end], data.counts[first:end]
        begin, stop = int(starts[0]), int(starts[-1] + counts[-1])
        entries = []
        for name in ("embeddings", "documents"):
            table = contract(name)
            schema = table.schema(dimension=data.dimension)
            path = table.name(number, 0)
            is_parquet = table.format == "parquet"
            with folder.writing(path) as temporary:
                with TableWriter(temporary, schema, table.batch_rows, parquet=is_parquet) as writer:
                    if is_parquet:
                        writer.append(
                            {
                                "source": ["keys"] * len(starts),
                                "id": [str(start) for start in starts],
                                "first_chunk": starts - begin,
                                "chunk_count": counts,
                                "split": ["train"] * len(starts),
                            }
                        )
                    else:
                        for row in range(begin, stop, table.batch_rows):
                            rows = slice(row, min(row + table.batch_rows, stop))
                            writer.append({"vector": data.embeddings[rows]})
                entries.append(describe(temporary, path, writer.rows))
        # Their tokens are not read.
        chunks = replace(entries[0], path="chunks")
        parts.append(Part(number, 0, begin, chunks, entries[1], entries[0]))
    return parts


def bare_join(stage: Stage, data: Data, documents: np.ndarray) -> tuple[float, np.ndarray]:
    """Joins all keys, in memory, in one partition: seconds with routing, and ids int64 [n, 20]."""
    count, setting = len(documents), stage.setting
    start = time.perf_counter()
    lists = np.empty((count, setting.nprobe), np.int32)

    def route(row: int) -> None:
        rows = slice(row, row + 16_384)
        nearest = stage.router.nearest(widen(data.embeddings[rows]), setting.nprobe)
        lists[rows] = stage.order.places[nearest]

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(route, range(0, count, 16_384)))
    routed = Routed(
        np.arange(count), data.embeddings, lists, Labels(documents), np.ones(count, bool)
    )
    end = len(stage.order.places)
    keys = routed.keys(0, end, setting)
    order = np.argsort(lists[:, 0], kind="stable")
    step = setting.block_rows(THREADS, count)
    ids = np.empty((count, NEIGHBORS), np.int64)

    def join(row: int) -> None:
        rows = order[row : row + step]
        ids[rows] = nearest_keys(keys, routed.visitors(rows, 0, end), NEIGHBORS)[0]

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(join, range(0, count, step)))
    return time.perf_counter() - start, ids


class FaissPeer:
    """One Faiss index with FastScan, whose candidates are re-ranked from float32 in memory."""

    name = "Faiss"

    def __init__(self, data: Data, index: faiss.Index, *, fast_scan: bool) -> None:
        faiss.omp_set_num_threads(THREADS)
        # As if it was read: with the tables that a search uses.
        self._plain = faiss.deserialize_index(faiss.serialize_index(index))
        self._plain.add(data.embeddings.astype(np.float32))
        ivf = inverted_file(self._plain)
        self._index = faiss.IndexIVFPQFastScan(ivf) if fast_scan else ivf
        self._exact = faiss.IndexFlatL2(data.dimension)
        self._exact.add(data.embeddings.astype(np.float32))

    def search(
        self, queries: np.ndarray, documents: np.ndarray, breadth: int, rerank: int
    ) -> tuple[float, np.ndarray]:
        """Searches; returns the seconds, and ids int64 [q, 20] of other documents."""
        faiss.omp_set_num_threads(THREADS)
        start = time.perf_counter()
        parameters = faiss.SearchParametersIVF(nprobe=breadth)
        candidates = self._index.search(queries, rerank, params=parameters)[1]
        labels = np.ascontiguousarray(np.maximum(candidates, 0))
        distances = np.empty(labels.shape, np.float32)
        pointer = faiss.swig_ptr
        self._exact.compute_distance_subset(
            len(queries), pointer(queries), rerank, pointer(distances), pointer(labels)
        )
        own = documents[labels] == documents[: len(queries), None]
        distances[own | (candidates < 0)] = np.inf
        nearest = np.argpartition(distances, NEIGHBORS, axis=1)[:, :NEIGHBORS]
        near = np.take_along_axis(distances, nearest, axis=1)
        nearest = np.take_along_axis(nearest, np.argsort(near, axis=1), axis=1)
        ids = np.take_along_axis(candidates, nearest, axis=1)
        return time.perf_counter() - start, ids


class ScannPeer(PeerProcess):
    """ScaNN in a separate environment and process: batched, with re-ordering.

    Args:
        environments: Folder of the peers' environments.
        place: Folder of keys.npy, queries.npy and the results.
        lists: Number of lists of our index.
    """

    def __init__(self, environments: Path, place: Path, lists: int) -> None:
        self._result = place / "scann.npy"
        python = environment("scann", environments)
        files = place / "keys.npy", place / "queries.npy"
        super().__init__(python, "index_search.py", "scann", *files, lists, max(CANDIDATES))
        print(f"ScaNN built in {float(self.answer('built')):,.1f} s", flush=True)

    def search(
        self, queries: np.ndarray, documents: np.ndarray, breadth: int, rerank: int
    ) -> tuple[float, np.ndarray]:
        """Searches; returns the seconds that it took, and ids int64 [q, 20] of other documents."""
        self.ask(f"{breadth} {rerank} {self._result}")
        took = float(self.answer("took"))
        start = time.perf_counter()
        candidates = np.load(self._result)
        own = documents[candidates] == documents[: len(queries), None]
        # The others first, in their order.
        order = np.argsort(own, axis=1, kind="stable")[:, :NEIGHBORS]
        ids = np.take_along_axis(candidates, order, axis=1)
        return took + time.perf_counter() - start, ids


def compare(
    data: Data,
    place: Path,
    environments: Path,
    peers: Sequence[str],
    key: str,
    options: argparse.Namespace,
) -> None:
    """Prints all figures of one set of keys."""
    documents = np.repeat(np.arange(len(data.starts)), data.counts)
    parsed = parse_key(key, data.dimension)
    points = np.random.default_rng(1).permutation(len(documents))[: 256 * max(parsed.lists, 16)]
    index = train_index(parsed, data.embeddings[np.sort(points)].astype(np.float32))
    print(f"{len(documents):,} keys of {data.dimension} dimensions, {key}", flush=True)
    truth = Truth.of(data, documents)
    setting = JoinSetting(
        data.dimension,
        1,
        NEIGHBORS,
        by_name=False,
        passes_over_copies=False,
        memory=MEMORY,
    )
    stage = Stage(data, documents, index, place / "one", setting, 1)
    queries = np.ascontiguousarray(data.embeddings[:PEER_QUERIES].astype(np.float32))
    np.save(place / "keys.npy", data.embeddings)
    np.save(place / "queries.npy", queries)
    sides: dict[str, Callable[[int, int], tuple[float, np.ndarray]]] = {}

    def ours(products: str) -> Callable[[int, int], tuple[float, np.ndarray]]:
        def run(breadth: int, rerank: int) -> tuple[float, np.ndarray]:
            stage.setting = replace(setting, nprobe=breadth, products=products)
            return bare_join(stage, data, documents)

        return run

    precisions = ["float32", "bfloat16"] if options.precision == "both" else [options.precision]
    for products in precisions:
        sides[f"join, {products}"] = ours(products)
    opened = []
    if "faiss" in peers:
        faiss_peer = FaissPeer(data, index, fast_scan=parsed.fast_scan)
        sides["Faiss"] = lambda b, r: faiss_peer.search(queries, documents, b, r)
    if "scann" in peers:
        opened.append(ScannPeer(environments, place, parsed.lists))
        sides["ScaNN"] = lambda b, r: opened[0].search(queries, documents, b, r)
    shares = SHARES_OF_MANY if parsed.lists > 2000 else SHARES
    breadths = sorted({max(1, round(parsed.lists * share)) for share in shares})
    rates = sweep(sides, breadths, data, documents, truth, options.rounds)
    for name, rate in rates.items():
        beside = ", ".join(
            f"{rate / rates[peer]:.3f} of {peer}" for peer in ("Faiss", "ScaNN") if peer in rates
        )
        print(f"{name:<16} {rate:,.0f} keys/s at recall {TARGET}; {beside}", flush=True)
    for peer in opened:
        peer.close()
    compare_stage(data, documents, index, place, setting, breadths[len(breadths) // 2], options)


def sweep(
    sides: dict[str, Callable[[int, int], tuple[float, np.ndarray]]],
    breadths: Sequence[int],
    data: Data,
    documents: np.ndarray,
    truth: Truth,
    rounds: int,
) -> dict[str, float]:
    """Prints every side's curves; returns its best rate at the target recall."""
    curves: dict[tuple[str, int], list[Point]] = {}
    for breadth in breadths:
        taken: dict[tuple[str, int], list[float]] = {}
        ids: dict[tuple[str, int], np.ndarray] = {}
        for _ in range(rounds):
            for name, run in sides.items():
                for rerank in (0,) if name.startswith("join") else CANDIDATES:
                    spent, ids[name, rerank] = run(breadth, rerank)
                    taken.setdefault((name, rerank), []).append(len(ids[name, rerank]) / spent)
        for side, rates in taken.items():
            recall = truth.recall(data, documents, ids[side])
            curves.setdefault(side, []).append(Point(breadth, recall, statistics.median(rates)))
    best: dict[str, float] = {}
    for (name, rerank), curve in curves.items():
        shown = ", ".join(f"{p.breadth}: {p.recall:.4f} {p.rate:,.0f}/s" for p in curve)
        print(f"{name}{f', {rerank} re-ranked' if rerank else ''}: {shown}", flush=True)
        best[name] = np.fmax(best.get(name, np.nan), rate_at(curve, TARGET))
    return best


def compare_stage(
    data: Data,
    documents: np.ndarray,
    index: faiss.Index,
    place: Path,
    setting: JoinSetting,
    breadth: int,
    options: argparse.Namespace,
) -> None:
    """Prints the whole stage, files and all, beside the bare join."""
    for partitions in options.partitions:
        folder = place / f"partitions-{partitions}"
        stage = Stage(data, documents, index, folder, replace(setting, nprobe=breadth), partitions)
        ratios, rates = [], []
        for _ in range(options.rounds):
            bare, _ = bare_join(stage, data, documents)
            whole = stage.run()
            ratios.append(bare / whole)
            rates.append(len(documents) / whole)
        visits = sum(int(span.visits_of_partitions.sum()) for span in stage.routed)
        print(
            f"the whole stage in {stage.order.partitions} partitions, nprobe {breadth}: "
            f"{statistics.median(ratios):.3f} of the bare join, {statistics.median(rates):,.0f} keys/s, "
            f"{visits / len(documents):.1f} visits a key",
            flush=True,
        )
        shutil.rmtree(folder)


def measure_memory(data: Data, key: str, place: Path, memory: int, nprobe: int) -> None:
    """Prints the most memory that the stage takes beside mapped files, where it may take so much."""
    documents = np.repeat(np.arange(len(data.starts)), data.counts)
    # The keys lie in a file, as those of a build do.
    np.save(place / "keys.npy", data.embeddings)
    data = replace(data, embeddings=np.load(place / "keys.npy", mmap_mode="r"))
    parsed = parse_key(key, data.dimension)
    points = np.random.default_rng(1).permutation(len(documents))[: 64 * parsed.lists]
    index = train_index(parsed, data.embeddings[np.sort(points)].astype(np.float32))
    setting = JoinSetting(
        data.dimension,
        nprobe,
        NEIGHBORS,
        by_name=False,
        passes_over_copies=False,
        memory=memory,
    )
    stage = Stage(data, documents, index, place / "stage", setting, 0)
    before = own_memory()
    took, peak = peak_while(own_memory, stage.run)
    print(
        f"{len(documents):,} keys of {data.dimension} dimensions, {key}, nprobe {nprobe}, "
        f"{memory / 1e9:.1f} GB: {stage.order.partitions} partitions, at most "
        f"{(peak - before) / 1e9:.2f} GB beside mapped files and {before / 1e9:.2f} GB before it began; "
        f"{len(documents) / took:,.0f} keys/s; {stage.moved[0]:,.0f} bytes a key written, "
        f"{stage.moved[1]:,.0f} read"
    )


def main() -> None:
    """Reads the command line and runs what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthetic", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--key", help="index key; the choice of auto by default")
    parser.add_argument("--peers", default="faiss,scann")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "both"), default="both")
    parser.add_argument("--partitions", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, help="GB of a worker, for the stage alone")
    parser.add_argument("--nprobe", type=int, default=128, help="with --memory")
    options = parser.parse_args()
    from vectors import vectors

    data = Data.of_rows(*vectors(options.synthetic, options.dimension))
    key = options.key or choose_key(len(data.embeddings), data.dimension, MEMORY)
    place = Path(tempfile.mkdtemp(prefix="retro-db-neighbors-"))
    try:
        if options.memory:
            measure_memory(data, key, place, round(1e9 * options.memory), options.nprobe)
            return
        peers = [name for name in options.peers.split(",") if name]
        compare(data, place, options.environments, peers, key, options)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
