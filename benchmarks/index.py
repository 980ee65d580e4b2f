"""How fast the sharded index is filled and searched, and how well, beside what others make of the same keys.

    python benchmarks/index.py DB                     the kept embeddings of a database
    python benchmarks/index.py --synthetic 1000000    vectors as hard to search as those of real text
    python benchmarks/index.py --memory               a million of them through every stage, in 8 GB?

Everything takes turns in one run, and ratios are medians over rounds. Filling: our encode and assemble
stages beside `add_with_ids` of one Faiss index with the same template. Searching: our partitions, in
memory as one, beside that index; then recall@10 among all chunks against exact search and queries a
second, all with the same number of candidates re-ranked exactly and two threads, for ours, monolithic
Faiss with our re-ranking, autofaiss's own choice, and, in environments of their own that pip fills,
ScaNN and hnswlib. Last, ours as a build uses it: with the document selector, and the whole stage.
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
from retro_db.index.training import PATH, Sampling, sample_embeddings, train_index
from retro_db.search.finder import Finder
from retro_db.search.part_documents import Documents
from retro_db.search.part_neighbors import PartQueries, neighbors_part
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
TARGET = 0.99
PEERS = ("scann", "hnswlib")
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)
# Of thousands of lists: the same recall takes a smaller share of more of them.
SHARES_OF_MANY = (1 / 512, 1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)
MANY = 1000
EFS = (25, 50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Data:
    """Keys in documents, none of them a zero.

    Attributes:
        keys: float16 [n, d].
        starts: int64 [D], first row of every document.
        counts: int64 [D], rows of every document.
    """

    keys: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @classmethod
    def of_rows(cls, keys: np.ndarray, document_of_row: np.ndarray) -> Data:
        """From the document of each row, ascending."""
        _, starts, counts = np.unique(document_of_row, return_index=True, return_counts=True)
        return cls(keys, starts, counts)

    @classmethod
    def of_database(cls, url: str) -> Data:
        """All chunks with a key."""
        database = retro_db.open(url)
        every = np.arange(len(database))
        keys = database.embeddings[every]
        keyed = keys.any(axis=1)
        return cls.of_rows(keys[keyed], database.chunks.documents(every)[keyed])

    @classmethod
    def synthetic(cls, count: int) -> Data:
        """Vectors that resemble those of real text."""
        from vectors import vectors

        return cls.of_rows(*vectors(count))


class Stages:
    """Our stages over files of keys, as a build runs them, in a folder of their own."""

    def __init__(self, data: Data, key: str, place: Path, partitions: int = PARTITIONS) -> None:
        self.key = key
        self._parsed = parse_key(key, data.keys.shape[1])
        self._partitions = partitions
        (place / "db" / "index").mkdir(parents=True)
        self.folder = Folder(str(place / "db"))
        self.parts, self.documents = _write_parts(data, place)
        sample = sample_embeddings(
            self.parts, Sampling(data.keys.shape[1], len(data.keys), self._points, seed=0)
        )
        self.template = train_index(self._parsed, sample)
        faiss.write_index(self.template, str(place / "db" / PATH))

    @property
    def _points(self) -> int:
        return max(self._parsed.lists, self._parsed.codebook_size) * 256

    def encode(self) -> None:
        """Encodes every part."""
        table, self._codes, self._entries = contract("codes"), [], []
        schema = table.schema(code_size=inverted_file(self.template).code_size)
        for number, part in enumerate(self.parts):
            path = table.name(number, 0)
            entry, counted = encode_part(part, path, self.template, THREADS, self.folder, quiet)
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
            assemble_partition(self.template, lists, self._codes, path, self.folder, quiet)

    def searcher(self) -> Searcher:
        """All partitions as one index."""
        paths = [self.folder.local(partition_path(number)) for number in range(self._partitions)]
        return Searcher(self.folder.local(PATH), paths, self.key)

    @property
    def keys(self) -> ColumnReader:
        """The keys by id."""
        return Table([part.embeddings for part in self.parts]).column("vector")


def quiet(count: int) -> None:
    """A report that nobody reads."""


def _write_parts(data: Data, place: Path) -> tuple[list[PartEmbeddings], list[Documents]]:
    """The keys in files of whole documents, and each file's documents."""
    table = contract("embeddings")
    schema = table.schema(dimension=data.keys.shape[1])
    count = -(-len(data.keys) // PART_ROWS)
    cuts = [len(data.starts) * number // count for number in range(count + 1)]
    parts, documents = [], []
    for number, (first, end) in enumerate(pairwise(cuts)):
        starts, counts = data.starts[first:end], data.counts[first:end]
        begin, stop = int(starts[0]), int(starts[-1] + counts[-1])
        path = place / f"keys-{number}.arrow"
        with TableWriter(path, schema, table.batch_rows) as writer:
            for row in range(begin, stop, table.batch_rows):
                writer.append({"vector": data.keys[row : min(row + table.batch_rows, stop)]})
        file = IpcFile(path, schema, stop - begin, table.batch_rows)
        parts.append(PartEmbeddings(begin, file, np.ones(stop - begin, bool)))
        own = [((int(one), int(one + count)),) for one, count in zip(starts, counts, strict=True)]
        documents.append(Documents(starts - begin, counts, own))
    return parts, documents


# Filling and searching, beside one index of plain Faiss.


def compare_filling(stages: Stages, data: Data, rounds: int) -> faiss.Index:
    """Prints how fast partitions are filled beside one index; returns that index."""
    encoding, filling, theirs = [], [], []
    ids = np.arange(len(data.keys))
    for _ in range(rounds):
        encoding.append(seconds(stages.encode))
        filling.append(encoding[-1] + seconds(stages.assemble))
        # Faiss takes one copy of all keys as float32; ours reads float16 from files.
        plain = faiss.clone_index(stages.template)
        faiss.omp_set_num_threads(THREADS)
        theirs.append(
            seconds(lambda index=plain: index.add_with_ids(data.keys.astype(np.float32), ids))
        )
    for name, ours in (("encode", encoding), ("encode and assemble", filling)):
        ratio, rate = median_ratio(theirs, ours), len(ids) / statistics.median(ours)
        print(f"{name} beside add_with_ids: {ratio:.3f} ({rate:,.0f} keys/s)", flush=True)
    return plain


def plain_search(name: str, index: faiss.Index, fast: bool, exact: faiss.Index) -> Engine:
    """One index of plain Faiss with FastScan where the key has it, and exact re-ranking."""
    lists = inverted_file(index)
    inner = faiss.IndexIVFPQFastScan(lists) if fast else lists

    def candidates(queries: np.ndarray, breadth: int, count: int) -> np.ndarray:
        faiss.omp_set_num_threads(THREADS)
        parameters = faiss.SearchParametersIVF(nprobe=breadth)
        return inner.search(transform(index, queries), count, params=parameters)[1]

    def search(queries: np.ndarray, breadth: int, rerank: int) -> np.ndarray:
        found = candidates(queries, breadth, rerank)
        return refined(exact, queries, found)

    return Engine(name, search, candidates)


def refined(exact: faiss.Index, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The nearest of candidates by exact distance, as Faiss computes it from all keys in memory."""
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
    """Something that finds the nearest 20 of queries, visiting `breadth` lists.

    Attributes:
        name: What is printed.
        search: Queries float32 [n, d], breadth and candidates re-ranked, to ids int64 [n, 20].
        candidates: The same without re-ranking, to ids int64 [n, candidates].
    """

    name: str
    search: Search
    candidates: Search


def our_search(stages: Stages) -> Engine:
    """Our partitions, in memory as one."""
    searcher, keys = stages.searcher(), stages.keys
    pool = ThreadPoolExecutor(THREADS)

    def blocks(queries: np.ndarray) -> list[QueryBlock]:
        return [QueryBlock(queries[row : row + 1024]) for row in range(0, len(queries), 1024)]

    def candidates(queries: np.ndarray, breadth: int, count: int) -> np.ndarray:
        settings = SearchSettings(breadth, count)
        return np.concatenate([ids for _, ids in searcher.search(blocks(queries), settings, pool)])

    def search(queries: np.ndarray, breadth: int, rerank: int) -> np.ndarray:
        finder = Finder(searcher, keys, SearchSettings(breadth, rerank))
        return np.concatenate([ids for ids, _ in finder.find(blocks(queries), NEIGHBORS, pool)])

    return Engine("retro-db", search, candidates)


def autofaiss_search(data: Data, exact: faiss.Index, megabytes: float) -> tuple[Engine, int]:
    """Autofaiss's own choice within the memory that ours takes, and its number of lists."""
    from autofaiss import build_index

    index, _ = build_index(
        data.keys.astype(np.float32),
        save_on_disk=False,
        metric_type="l2",
        max_index_memory_usage=f"{max(megabytes, 1):.0f}MB",
        current_memory_available="8GB",
        should_be_memory_mappable=True,
        nb_cores=THREADS,
        verbose=40,
    )
    lists = inverted_file(index)

    return plain_search("autofaiss", index, False, exact), int(lists.nlist)


class Peer(PeerProcess):
    """A peer in an environment and a process of its own.

    Args:
        name: One of PEERS.
        environments: Folder in which each peer's is kept.
        place: Where keys.npy and queries.npy lie, and results come.
        lists: Of our index.
    """

    def __init__(self, name: str, environments: Path, place: Path, lists: int) -> None:
        python = environment(name, environments)
        self._result = place / f"{name}.npy"
        files = place / "keys.npy", place / "queries.npy"
        super().__init__(python, "index_search.py", name, *files, lists)
        print(f"{name} built in {float(self.answer('built')):,.1f} s", flush=True)

    def search(self, breadth: int, rerank: int) -> tuple[float, np.ndarray]:
        """Seconds that the peer took, and its ids int64 [n, 20]."""
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
    """Exact squared distances of the 10 nearest, float32 [q, 10], streamed over all keys."""
    best = np.full((len(queries), 10), np.inf, np.float32)
    faiss.omp_set_num_threads(THREADS)
    for start in range(0, len(data.keys), 65_536):
        block = data.keys[start : start + 65_536].astype(np.float32)
        near = faiss.knn(queries, block, 10)[0]
        best = np.sort(np.concatenate([best, near], axis=1), axis=1)[:, :10]
    return best


def recall_of(data: Data, queries: np.ndarray, ids: np.ndarray, truth: np.ndarray) -> float:
    """Recall@10, where what is as near as the tenth counts as found."""
    near = data.keys[np.maximum(ids[:, :10], 0)].astype(np.float32)
    distances = ((near - queries[:, None]) ** 2).sum(axis=2)
    # The truth is float32 of another order of additions.
    found = (distances <= truth[:, 9:] * (1 + 1e-4) + 1e-4) & (ids[:, :10] >= 0)
    return float(found.mean())


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
        found: dict[str, np.ndarray] = {}
        for _ in range(rounds):
            for name, run, breadth in here:
                spent, found[name] = run(breadth, RERANK)
                took[name].append(spent)
        for name, _, breadth in here:
            recall = recall_of(data, queries[:1000], found[name][:1000], truth)
            rate = len(queries) / statistics.median(took[name])
            curves[name].append(Point(breadth, recall, rate))
    for name, curve in curves.items():
        shown = ", ".join(f"{p.breadth}: {p.recall:.3f} {p.rate:,.0f}/s" for p in curve)
        print(f"{name:<16} {shown}")
    return {name: rate_at(curve, TARGET) for name, curve in curves.items()}


def tries(lists: int) -> list[int]:
    """Numbers of lists to visit."""
    shares = SHARES if lists < MANY else SHARES_OF_MANY
    return [max(1, round(lists * share)) for share in shares]


def rate_at(curve: Sequence[Point], recall: float) -> float:
    """Queries a second at a recall, between the two points around it; nan where it is not reached."""
    for lower, upper in pairwise(curve):
        if lower.recall <= recall <= upper.recall:
            share = (recall - lower.recall) / max(upper.recall - lower.recall, 1e-9)
            return float(np.exp(np.interp(share, [0, 1], np.log([lower.rate, upper.rate]))))
    return curve[0].rate if curve[0].recall >= recall else float("nan")


# Ours as a build uses it.


def compare_stage(
    stages: Stages, plain: Engine, data: Data, queries: np.ndarray, breadth: int, rounds: int
) -> None:
    """Prints the neighbors stage, with its selector, re-ranking and writing, beside bare searching."""
    finder = Finder(stages.searcher(), stages.keys, SearchSettings(breadth, RERANK))
    part, documents = stages.parts[0], stages.documents[0]
    asked = data.keys[: part.embeddings.rows].astype(np.float32)
    bare, whole = [], []
    for _ in range(rounds):
        bare.append(seconds(lambda: plain.candidates(asked, breadth, RERANK)))
        whole.append(
            seconds(
                lambda: neighbors_part(
                    PartQueries(part.embeddings, documents),
                    finder,
                    NEIGHBORS,
                    contract("neighbors").name(0, 0),
                    stages.folder,
                    threads=THREADS,
                    report=quiet,
                )
            )
        )
    ratio, rate = median_ratio(bare, whole), len(asked) / statistics.median(whole)
    print(f"neighbors stage beside Faiss's bare search: {ratio:.3f} ({rate:,.0f} chunks/s)")


def compare(
    data: Data, key: str, place: Path, environments: Path, peers: Sequence[str], rounds: int
) -> None:
    """Prints everything of one set of keys."""
    chosen = np.random.default_rng(0).permutation(len(data.keys))[:QUERIES]
    queries = data.keys[chosen].astype(np.float32)
    stages = Stages(data, key, place)
    lists = parse_key(key, data.keys.shape[1]).lists
    print(f"{len(data.keys):,} keys of {data.keys.shape[1]} dimensions, {key}", flush=True)
    plain_index = compare_filling(stages, data, rounds)
    exact = faiss.IndexFlatL2(data.keys.shape[1])
    exact.add(data.keys.astype(np.float32))
    ours = our_search(stages)
    plain = plain_search(
        "Faiss, one index", plain_index, parse_key(key, data.keys.shape[1]).fast_scan, exact
    )
    breadths = tries(lists)
    usual = breadths[-3]
    bare = [
        [seconds(lambda e=e: e.candidates(queries, usual, RERANK)) for e in (ours, plain)]
        for _ in range(2 * rounds)
    ]
    ratio = median_ratio([row[1] for row in bare], [row[0] for row in bare])
    print(f"search without re-ranking beside one index, nprobe {usual}: {ratio:.3f}")
    compare_stage(stages, plain, data, queries, usual, rounds)

    def timed(engine: Engine) -> Callable[[int, int], tuple[float, np.ndarray]]:
        def run(breadth: int, rerank: int) -> tuple[float, np.ndarray]:
            start = time.perf_counter()
            found = engine.search(queries, breadth, rerank)
            return time.perf_counter() - start, found

        return run

    engines = [(engine.name, timed(engine), breadths) for engine in (ours, plain)]
    np.save(place / "keys.npy", data.keys)
    np.save(place / "queries.npy", queries)
    opened = []
    for name in peers:
        if name == "autofaiss":
            size = sum(p.stat().st_size for p in (place / "db" / "index").iterdir())
            engine, own = autofaiss_search(data, exact, size / 1e6)
            engines.append((name, timed(engine), tries(own)))
        else:
            peer = Peer(name, environments, place, lists)
            opened.append(peer)
            engines.append((name, peer.search, EFS if name == "hnswlib" else breadths))
    rates = compare_searching(engines, data, queries, rounds)
    for name, rate in rates.items():
        beside = "" if name == ours.name else f", ours {rates[ours.name] / rate:.3f} of it"
        print(f"{name:<16} {rate:,.0f} queries/s at recall {TARGET}{beside}")
    for peer in opened:
        peer.close()


# A million keys through every stage.


def measure_memory(place: Path) -> None:
    """Prints the peak memory of training, encoding, assembling and searching a million keys."""
    data = Data.synthetic(1_000_000)
    made = peak_gigabytes()
    key = choose_key(len(data.keys), data.keys.shape[1], 8_000_000_000)
    start = time.perf_counter()
    stages = Stages(data, key, place)
    trained = time.perf_counter()
    stages.encode()
    stages.assemble()
    filled = time.perf_counter()
    searcher = stages.searcher()
    finder = Finder(searcher, stages.keys, SearchSettings(searcher.lists // 16, RERANK))
    part, held = stages.parts[0], stages.documents[0]
    fewer = int(np.searchsorted(np.cumsum(held.counts), 50_000)) + 1
    documents = Documents(held.starts[:fewer], held.counts[:fewer], held.exclude[:fewer])
    path = contract("neighbors").name(0, 0)
    queries = PartQueries(part.embeddings, documents)
    entry, short = neighbors_part(
        queries, finder, NEIGHBORS, path, stages.folder, threads=THREADS, report=quiet
    )
    done = time.perf_counter()
    print(
        f"{len(data.keys):,} keys of {data.keys.shape[1]} dimensions, {key}: train "
        f"{trained - start:,.0f} s, encode and assemble {filled - trained:,.0f} s, neighbors of "
        f"{entry.rows:,} chunks {done - filled:,.0f} s, {short} rows short"
    )
    print(f"peak memory {peak_gigabytes():.2f} GB, of which making the keys took {made:.2f}")


def peak_gigabytes() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def seconds(run: Callable[[], object]) -> float:
    """What a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over rounds."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def main() -> None:
    """Reads the command line and runs what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", nargs="?")
    parser.add_argument("--synthetic", type=int)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--key", help="index key; what auto would take, if left out")
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
        key = arguments.key or choose_key(len(data.keys), data.keys.shape[1], 8_000_000_000)
        peers = [name for name in arguments.peers.split(",") if name]
        compare(data, key, place, arguments.environments, peers, arguments.rounds)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
