"""How fast the sharded index is filled and searched, and how well, beside indexes of the same embeddings.

    python benchmarks/index.py DB                     the kept embeddings of a database
    python benchmarks/index.py --synthetic 1000000    vectors as hard to search as those of real text
    python benchmarks/index.py --memory               a million of them through every stage, in 8 GB?

All sides take turns in one run, and ratios are medians over rounds. Filling: our encode and assemble
stages beside `add_with_ids` of one Faiss index that was trained the same. Searching: our partitions, in
memory as one, beside that index; then recall@10 among all chunks against exact search and queries a
second, all with the same number of candidates re-ranked exactly and two threads, for ours, monolithic
Faiss with our re-ranking, autofaiss's choice, and, in separate environments that pip fills,
ScaNN and hnswlib. `neighbors.py` compares how the neighbors of all keys are found.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from peers.environments import ENVIRONMENTS, environment
from peers.process import PeerProcess

import retro_db
from retro_db.index.filling import assemble_partition, encode_part, list_ranges, partition_path
from retro_db.index.keys import choose_key, parse_key
from retro_db.index.part_embeddings import PartEmbeddings
from retro_db.index.structure import faiss, inverted_file, transform
from retro_db.index.training import PATH, Sampling, StoredPoints, sample_points, train_index
from retro_db.search.finder import Finder
from retro_db.search.part_documents import Documents
from retro_db.search.searching import QueryBlock, Searcher, SearchSettings
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder
from retro_db.store.gathering import ColumnReader, Table
from retro_db.store.tables import IpcFile
from retro_db.store.writing import TableWriter

THREADS = 2
PART_ROWS = 250_000
PARTITIONS = 3
RERANK = 200
NEIGHBORS = 20
QUERIES = 4096
ALONE = 300
TARGET = 0.99
PEERS = ("scann", "hnswlib")
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)
# For thousands of lists: the same recall takes a smaller share of more lists.
SHARES_OF_MANY = (1 / 512, 1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)
MANY = 1000
EFS = (25, 50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Data:
    """Embeddings in documents, without embeddings of zeros.

    Attributes:
        embeddings: float16 [n, d].
        starts: int64 [D], first row of every document.
        counts: int64 [D], rows of every document.
    """

    embeddings: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @property
    def dimension(self) -> int:
        """Dimension of the embeddings, d."""
        return int(self.embeddings.shape[1])

    @classmethod
    def of_rows(cls, embeddings: np.ndarray, document_of_row: np.ndarray) -> Data:
        """Groups rows into documents by the document of each row, ascending."""
        _, starts, counts = np.unique(document_of_row, return_index=True, return_counts=True)
        return cls(embeddings, starts, counts)

    @classmethod
    def of_database(cls, url: str) -> Data:
        """Reads all chunks of a database that have an embedding."""
        database = retro_db.open(url)
        ids = np.arange(len(database))
        embeddings = database.embeddings[ids]
        embedded = embeddings.any(axis=1)
        return cls.of_rows(embeddings[embedded], database.chunks.documents(ids)[embedded])

    @classmethod
    def synthetic(cls, count: int) -> Data:
        """Makes embeddings that resemble those of real text."""
        from vectors import vectors

        return cls.of_rows(*vectors(count))


class Stages:
    """Our stages over files of embeddings, as a build runs them, in a separate folder."""

    def __init__(self, data: Data, key: str, place: Path, partitions: int = PARTITIONS) -> None:
        self.key = key
        self._parsed = parse_key(key, data.dimension)
        self._partitions = partitions
        (place / "db" / "index").mkdir(parents=True)
        self.folder = Folder(str(place / "db"))
        self.parts, self.documents = _write_parts(data, place)
        count = len(data.embeddings)
        sampling = Sampling(data.dimension, count, self._points, seed=0)
        sample = sample_points(StoredPoints(lambda: self.parts), sampling)
        self.trained = train_index(self._parsed, sample)
        faiss.write_index(self.trained, str(place / "db" / PATH))

    @property
    def _points(self) -> int:
        return max(self._parsed.lists, self._parsed.codebook_size) * 256

    def encode(self) -> None:
        """Encodes the embeddings of every part."""
        table, self._codes, self._entries = contract("codes"), [], []
        schema = table.schema(code_size=inverted_file(self.trained).code_size)
        for number, part in enumerate(self.parts):
            path = table.name(number, 0)
            entry, counted = encode_part(part, path, self.trained, THREADS, self.folder, quiet)
            rows = entry.rows
            file = IpcFile(self.folder.local(path), schema, rows, table.batch_rows)
            self._codes.append(file)
            self._entries.append(counted)

    def assemble(self) -> None:
        """Assembles every partition from the codes."""
        entries = np.sum(self._entries, axis=0)
        ranges = list_ranges(entries, self._parsed.lists, self._partitions)
        for number, (first, end) in enumerate(ranges):
            path = partition_path(number)
            lists = range(first, end)
            assemble_partition(self.trained, lists, self._codes, path, self.folder, quiet)

    def searcher(self) -> Searcher:
        """Opens all partitions as one index."""
        paths = [self.folder.local(partition_path(number)) for number in range(self._partitions)]
        return Searcher(self.folder.local(PATH), paths, self.key)

    @property
    def embeddings(self) -> ColumnReader:
        """Reader of the embeddings, which takes ids."""
        return Table([part.embeddings for part in self.parts]).column("vector")


def quiet(count: int) -> None:
    """Takes a report of progress, and ignores it."""


def _write_parts(data: Data, place: Path) -> tuple[list[PartEmbeddings], list[Documents]]:
    """Writes the embeddings in files of whole documents; returns them with each file's documents."""
    table = contract("embeddings")
    schema = table.schema(dimension=data.dimension)
    count = -(-len(data.embeddings) // PART_ROWS)
    cuts = [len(data.starts) * number // count for number in range(count + 1)]
    parts, documents = [], []
    for number, (first, end) in enumerate(pairwise(cuts)):
        starts, counts = data.starts[first:end], data.counts[first:end]
        begin, stop = int(starts[0]), int(starts[-1] + counts[-1])
        path = place / f"embeddings-{number}.arrow"
        with TableWriter(path, schema, table.batch_rows) as writer:
            for row in range(begin, stop, table.batch_rows):
                writer.append({"vector": data.embeddings[row : min(row + table.batch_rows, stop)]})
        file = IpcFile(path, schema, stop - begin, table.batch_rows)
        parts.append(PartEmbeddings(begin, file, np.ones(stop - begin, bool)))
        exclude = [
            ((int(start), int(start + count)),) for start, count in zip(starts, counts, strict=True)
        ]
        documents.append(Documents(starts - begin, counts, exclude))
    return parts, documents


# Filling and searching, beside one index of plain Faiss.


def compare_filling(stages: Stages, data: Data, rounds: int) -> faiss.Index:
    """Prints how fast partitions are filled beside one index; returns that index."""
    encoding, filling, theirs = [], [], []
    ids = np.arange(len(data.embeddings))
    for _ in range(rounds):
        encoding.append(seconds(stages.encode))
        filling.append(encoding[-1] + seconds(stages.assemble))
        # Faiss takes one copy of all embeddings as float32; ours reads float16 from files.
        plain = faiss.deserialize_index(faiss.serialize_index(stages.trained))
        faiss.omp_set_num_threads(THREADS)
        theirs.append(
            seconds(lambda index=plain: index.add_with_ids(data.embeddings.astype(np.float32), ids))
        )
    for name, ours in (("encode", encoding), ("encode and assemble", filling)):
        ratio, rate = median_ratio(theirs, ours), len(ids) / statistics.median(ours)
        print(f"{name} beside add_with_ids: {ratio:.3f} ({rate:,.0f} keys/s)", flush=True)
    return plain


def plain_search(
    name: str, index: faiss.Index, exact: faiss.Index, *, fast_scan: bool = False
) -> Engine:
    """Searches one index of plain Faiss, with FastScan if the index key has it, and exact re-ranking."""
    lists = inverted_file(index)
    inner = faiss.IndexIVFPQFastScan(lists) if fast_scan else lists

    def candidates(queries: np.ndarray, breadth: int, count: int) -> np.ndarray:
        faiss.omp_set_num_threads(THREADS)
        parameters = faiss.SearchParametersIVF(nprobe=breadth)
        return inner.search(transform(index, queries), count, params=parameters)[1]

    def search(queries: np.ndarray, breadth: int, rerank: int) -> np.ndarray:
        return refined(exact, queries, candidates(queries, breadth, rerank))

    return Engine(name, search, candidates)


def refined(exact: faiss.Index, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns the nearest candidates by exact distance, which Faiss computes from embeddings in memory."""
    labels = np.ascontiguousarray(np.maximum(candidates, 0))
    distances = np.empty(labels.shape, np.float32)
    pointer = faiss.swig_ptr
    exact.compute_distance_subset(
        len(queries), pointer(queries), labels.shape[1], pointer(distances), pointer(labels)
    )
    distances[candidates < 0] = np.inf
    order = np.argsort(distances, axis=1)[:, :NEIGHBORS]
    return np.take_along_axis(candidates, order, axis=1)


Search = Callable[[np.ndarray, int, int], np.ndarray]


@dataclass(frozen=True)
class Engine:
    """An index or a peer that finds the nearest 20 of queries, visiting `breadth` lists.

    Attributes:
        name: Name that is printed.
        search: Function from queries float32 [n, d], breadth and the number of candidates that are
            re-ranked to ids int64 [n, 20].
        candidates: The same function without re-ranking, to ids int64 [n, candidates].
    """

    name: str
    search: Search
    candidates: Search


def our_search(stages: Stages) -> Engine:
    """Searches our partitions, in memory as one."""
    searcher, embeddings = stages.searcher(), stages.embeddings
    pool = ThreadPoolExecutor(THREADS)

    def blocks(queries: np.ndarray) -> list[QueryBlock]:
        return [QueryBlock(queries[row : row + 1024]) for row in range(0, len(queries), 1024)]

    def candidates(queries: np.ndarray, breadth: int, count: int) -> np.ndarray:
        settings = SearchSettings(breadth, count)
        return np.concatenate([ids for _, ids in searcher.search(blocks(queries), settings, pool)])

    def search(queries: np.ndarray, breadth: int, rerank: int) -> np.ndarray:
        finder = Finder(searcher, embeddings, SearchSettings(breadth, rerank))
        return np.concatenate([ids for ids, _ in finder.find(blocks(queries), NEIGHBORS, pool)])

    return Engine("retro-db", search, candidates)


def autofaiss_search(data: Data, exact: faiss.Index, megabytes: float) -> tuple[Engine, int]:
    """Returns autofaiss's choice within the memory that ours takes, and its number of lists."""
    from autofaiss import build_index

    index, _ = build_index(
        data.embeddings.astype(np.float32),
        save_on_disk=False,
        metric_type="l2",
        max_index_memory_usage=f"{max(megabytes, 1):.0f}MB",
        current_memory_available="8GB",
        should_be_memory_mappable=True,
        nb_cores=THREADS,
        verbose=40,
    )
    lists = inverted_file(index)
    return plain_search("autofaiss", index, exact), int(lists.nlist)


class Peer(PeerProcess):
    """A peer in a separate environment and process.

    Args:
        name: One of PEERS.
        environments: Folder of the peers' environments.
        place: Folder of keys.npy, queries.npy and the results.
        lists: Number of lists of our index.
    """

    def __init__(self, name: str, environments: Path, place: Path, lists: int) -> None:
        python = environment(name, environments)
        self._result = place / f"{name}.npy"
        files = place / "keys.npy", place / "queries.npy"
        super().__init__(python, "index_search.py", name, *files, lists)
        print(f"{name} built in {float(self.answer('built')):,.1f} s", flush=True)

    def search(self, breadth: int, rerank: int) -> tuple[float, np.ndarray]:
        """Searches; returns the seconds that the peer took, and its ids int64 [n, 20]."""
        self.ask(f"{breadth} {rerank} {self._result}")
        return float(self.answer("took")), np.load(self._result)


# Recall against queries a second.


@dataclass(frozen=True)
class Point:
    """Recall@10 and queries a second at one breadth."""

    breadth: int
    recall: float
    rate: float


def true_neighbors(data: Data, queries: np.ndarray) -> np.ndarray:
    """Computes squared distances of the 10 nearest, float32 [q, 10], streamed over all embeddings."""
    best = np.full((len(queries), 10), np.inf, np.float32)
    faiss.omp_set_num_threads(THREADS)
    for start in range(0, len(data.embeddings), 65_536):
        block = data.embeddings[start : start + 65_536].astype(np.float32)
        near = faiss.knn(queries, block, 10)[0]
        best = np.sort(np.concatenate([best, near], axis=1), axis=1)[:, :10]
    return best


def recall_of(data: Data, queries: np.ndarray, ids: np.ndarray, truth: np.ndarray) -> float:
    """Returns recall@10, where a neighbor as near as the tenth counts as a hit."""
    near = data.embeddings[np.maximum(ids[:, :10], 0)].astype(np.float32)
    distances = ((near - queries[:, None]) ** 2).sum(axis=2)
    # The truth is float32 of another order of additions.
    hits = (distances <= truth[:, 9:] * (1 + 1e-4) + 1e-4) & (ids[:, :10] >= 0)
    return float(hits.mean())


def compare_searching(
    engines: Sequence[tuple[str, Callable[[int, int], tuple[float, np.ndarray]], Sequence[int]]],
    data: Data,
    queries: np.ndarray,
    rounds: int,
) -> dict[str, float]:
    """Prints every engine's curve; returns queries a second at the target recall by name."""
    truth = true_neighbors(data, queries[:1000])
    curves: dict[str, list[Point]] = {name: [] for name, _, _ in engines}
    longest = max(len(breadths) for _, _, breadths in engines)
    for position in range(longest):
        here = [(name, run, b[position]) for name, run, b in engines if position < len(b)]
        took: dict[str, list[float]] = {name: [] for name, _, _ in here}
        neighbors: dict[str, np.ndarray] = {}
        for _ in range(rounds):
            for name, run, breadth in here:
                spent, neighbors[name] = run(breadth, RERANK)
                took[name].append(spent)
        for name, _, breadth in here:
            recall = recall_of(data, queries[:1000], neighbors[name][:1000], truth)
            rate = len(queries) / statistics.median(took[name])
            curves[name].append(Point(breadth, recall, rate))
    for name, curve in curves.items():
        shown = ", ".join(f"{p.breadth}: {p.recall:.3f} {p.rate:,.0f}/s" for p in curve)
        print(f"{name:<16} {shown}")
    return {name: rate_at(curve, TARGET) for name, curve in curves.items()}


def tries(lists: int) -> list[int]:
    """Returns the numbers of lists to visit."""
    shares = SHARES if lists < MANY else SHARES_OF_MANY
    return [max(1, round(lists * share)) for share in shares]


def rate_at(curve: Sequence[Point], recall: float) -> float:
    """Interpolates queries a second at a recall between the points around it; nan if it is not reached."""
    for lower, upper in pairwise(curve):
        if lower.recall <= recall <= upper.recall:
            share = (recall - lower.recall) / max(upper.recall - lower.recall, 1e-9)
            return float(np.exp(np.interp(share, [0, 1], np.log([lower.rate, upper.rate]))))
    return curve[0].rate if curve[0].recall >= recall else float("nan")


def compare(
    data: Data, key: str, place: Path, environments: Path, peers: Sequence[str], rounds: int
) -> None:
    """Prints all figures of one set of embeddings."""
    chosen = np.random.default_rng(0).permutation(len(data.embeddings))[:QUERIES]
    queries = data.embeddings[chosen].astype(np.float32)
    stages = Stages(data, key, place)
    parsed = parse_key(key, data.dimension)
    print(f"{len(data.embeddings):,} keys of {data.dimension} dimensions, {key}", flush=True)
    plain_index = compare_filling(stages, data, rounds)
    exact = faiss.IndexFlatL2(data.dimension)
    exact.add(data.embeddings.astype(np.float32))
    ours = our_search(stages)
    plain = plain_search("Faiss, one index", plain_index, exact, fast_scan=parsed.fast_scan)
    breadths = tries(parsed.lists)
    usual = breadths[-3]
    bare = [
        [seconds(lambda e=e: e.candidates(queries, usual, RERANK)) for e in (ours, plain)]
        for _ in range(2 * rounds)
    ]
    ratio = median_ratio([row[1] for row in bare], [row[0] for row in bare])
    print(f"search without re-ranking beside one index, nprobe {usual}: {ratio:.3f}")
    compare_alone(ours, plain, queries[:ALONE], usual, rounds)

    def timed(engine: Engine) -> Callable[[int, int], tuple[float, np.ndarray]]:
        def run(breadth: int, rerank: int) -> tuple[float, np.ndarray]:
            start = time.perf_counter()
            neighbors = engine.search(queries, breadth, rerank)
            return time.perf_counter() - start, neighbors

        return run

    engines = [(engine.name, timed(engine), breadths) for engine in (ours, plain)]
    np.save(place / "keys.npy", data.embeddings)
    np.save(place / "queries.npy", queries)
    opened = []
    for name in peers:
        if name == "autofaiss":
            size = sum(p.stat().st_size for p in (place / "db" / "index").iterdir())
            engine, lists = autofaiss_search(data, exact, size / 1e6)
            engines.append((name, timed(engine), tries(lists)))
        else:
            peer = Peer(name, environments, place, parsed.lists)
            opened.append(peer)
            engines.append((name, peer.search, EFS if name == "hnswlib" else breadths))
    rates = compare_searching(engines, data, queries, rounds)
    for name, rate in rates.items():
        beside = "" if name == ours.name else f", ours {rates[ours.name] / rate:.3f} of it"
        print(f"{name:<16} {rate:,.0f} queries/s at recall {TARGET}{beside}")
    for peer in opened:
        peer.close()


def compare_alone(
    ours: Engine, plain: Engine, queries: np.ndarray, breadth: int, rounds: int
) -> None:
    """Prints how fast single queries are found, as texts are that are looked up one by one."""

    def search_all(engine: Engine) -> None:
        for row in range(len(queries)):
            engine.search(queries[row : row + 1], breadth, RERANK)

    took = [[seconds(lambda e=e: search_all(e)) for e in (ours, plain)] for _ in range(2 * rounds)]
    ratio = median_ratio([row[1] for row in took], [row[0] for row in took])
    rate = len(queries) / statistics.median(row[0] for row in took)
    print(
        f"one query at a time beside one index, nprobe {breadth}: {ratio:.3f} ({rate:,.0f}/s)",
        flush=True,
    )


# A million embeddings through every stage.


def measure_memory(place: Path) -> None:
    """Prints the peak memory of training, encoding, assembling and searching a million embeddings."""
    data = Data.synthetic(1_000_000)
    made = peak_gigabytes()
    key = choose_key(len(data.embeddings), data.dimension, 8_000_000_000)
    start = time.perf_counter()
    stages = Stages(data, key, place)
    trained = time.perf_counter()
    stages.encode()
    stages.assemble()
    filled = time.perf_counter()
    print(
        f"{len(data.embeddings):,} keys of {data.dimension} dimensions, {key}: train "
        f"{trained - start:,.0f} s, encode and assemble {filled - trained:,.0f} s"
    )
    print(f"peak memory {peak_gigabytes():.2f} GB, of which making the keys took {made:.2f}")


def peak_gigabytes() -> float:
    """Returns the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def seconds(run: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Returns the median ratio over rounds."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def main() -> None:
    """Reads the command line and runs what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", nargs="?")
    parser.add_argument("--synthetic", type=int)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--key", help="index key; the choice of auto by default")
    parser.add_argument("--peers", default="autofaiss,scann,hnswlib")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="retro-db-index-"))
    try:
        if arguments.memory:
            measure_memory(place)
            return
        if arguments.synthetic:
            data = Data.synthetic(arguments.synthetic)
        elif arguments.database:
            data = Data.of_database(arguments.database)
        else:
            parser.error("give a database, --synthetic or --memory")
        key = arguments.key or choose_key(len(data.embeddings), data.dimension, 8_000_000_000)
        peers = [name for name in arguments.peers.split(",") if name]
        compare(data, key, place, arguments.environments, peers, arguments.rounds)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
