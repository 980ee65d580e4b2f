"""The sharded index against one plain Faiss index, and keys."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_db.errors import CorpusError, IndexKeyError
from retro_db.hashing import fractions_of
from retro_db.index.filling import list_ranges, partition_path, plan_partitions
from retro_db.index.keys import (
    IndexKey,
    check_trainable,
    choose_key,
    parse_key,
    points_within,
    reduce_key,
    training_bytes,
)
from retro_db.index.kmeans import assign, cluster, cluster_in_levels
from retro_db.index.part_embeddings import PartEmbeddings
from retro_db.index.structure import (
    faiss,
    inverted_file,
    list_codes,
    list_ids,
    read_index,
    transform,
)
from retro_db.index.training import (
    PATH,
    Sampling,
    StoredPoints,
    create_index,
    predict_size,
    sample_points,
    train_and_write,
    train_index,
    train_lists,
    train_transforms,
    training_points,
)
from retro_db.meter import Meter
from retro_db.search.finder import Finder
from retro_db.search.reranking import Candidates
from retro_db.search.searching import IdRanges, QueryBlock, Searcher, SearchSettings
from retro_db.store.folder import Folder
from retro_db.store.gathering import Table
from support.indexes import D, fill, make_keys, make_parts


def sampled(parts: list[PartEmbeddings], entries: int, points: int, seed: int) -> np.ndarray:
    """A sample of the parts."""
    return sample_points(StoredPoints(lambda: parts), Sampling(D, entries, points, seed))


@pytest.mark.parametrize("quantizer", ["", "_HNSW8"])
@pytest.mark.parametrize(
    "text",
    [
        "IVF16{},Flat",
        "IVF16{},PQ8",
        "OPQ4_16,IVF16{},PQ4",
        "IVF16{},SQ8",
        "IVF16{},RaBitQ",
        "IVF16{},PQ8x4fs",
        "IVF16{},PQ8x4fsr",
        "PCA16,IVF16{},PQ8x4fs",
    ],
)
def test_partitions_equal_one_plain_index(tmp_path: Path, text: str, quantizer: str) -> None:
    keys, text = make_keys(3000), text.format(quantizer)
    key = parse_key(text, D)
    indexed = np.flatnonzero(np.arange(len(keys)) % 17)
    template = train_index(key, keys[indexed].astype(np.float32))
    # As if it was read: with the tables that a search uses.
    plain = faiss.deserialize_index(faiss.serialize_index(template))
    plain.add_with_ids(keys[indexed].astype(np.float32), indexed)
    whole = inverted_file(plain)
    queries = keys[:50].astype(np.float32)
    expected = plain_search(plain, queries, key.fast_scan)

    for shards in (1, 4, 16):
        for partitions in (1, 3, 8):
            place = tmp_path / f"{shards}-{partitions}"
            place.mkdir()
            folder = Folder(str(place / "db"))
            fill(folder, template, make_parts(place, keys, shards), partitions)
            paths = [folder.local(partition_path(number)) for number in range(partitions)]
            assert_same_lists(paths, whole)
            searcher = Searcher(folder.local(PATH), paths, text)
            for ours, theirs in zip(search(searcher, queries), expected, strict=True):
                assert np.array_equal(ours, theirs)
            if partitions > 1:
                largest = max(path.stat().st_size for path in paths)
                streamed = Searcher(folder.local(PATH), paths, text, memory=largest)
                assert streamed.streams
                assert_same_but_for_ties(search(streamed, queries), expected)


def search(
    searcher: Searcher, queries: np.ndarray, count: int = 10, exclude: IdRanges = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Distances and ids of one block with nprobe 5."""
    with ThreadPoolExecutor(2) as pool:
        settings = SearchSettings(nprobe=5, rerank=count)
        [found] = searcher.search([QueryBlock(queries, exclude)], settings, pool)
    return found


def assert_same_but_for_ties(
    found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]
) -> None:
    """Equal distances, and equal ids nearer than the last; those at its distance may be others."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for distances, ids, truth in zip(*found, expected[1], strict=True):
        nearer = distances < distances[-1]
        assert set(ids[nearer]) == set(truth[nearer])


def plain_search(
    index: faiss.Index, queries: np.ndarray, fast_scan: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What stock Faiss finds with nprobe 5, on one thread."""
    faiss.omp_set_num_threads(1)
    whole = inverted_file(index)
    if not fast_scan:
        whole.nprobe = 5
        return index.search(queries, 10)
    x = queries
    if isinstance(index, faiss.IndexPreTransform):
        x = faiss.downcast_VectorTransform(index.chain.at(0)).apply(queries)
    fast = faiss.IndexIVFPQFastScan(whole)
    return fast.search(x, 10, params=faiss.SearchParametersIVF(nprobe=5))


def assert_same_lists(paths: list[Path], whole: faiss.IndexIVF) -> None:
    """The lists of all partitions, in order, are those of one index, bit for bit."""
    number = 0
    for path in paths:
        partition = faiss.read_index(str(path))
        assert partition.ntotal == inverted_file(partition).ntotal
        lists = inverted_file(partition).invlists
        for own in range(inverted_file(partition).nlist):
            assert np.array_equal(list_ids(lists, own), list_ids(whole.invlists, number))
            assert np.array_equal(list_codes(lists, own), list_codes(whole.invlists, number))
            number += 1
    assert number == whole.nlist


def test_an_excluded_range_is_never_found(tmp_path: Path) -> None:
    keys = make_keys(2000)
    parts = make_parts(tmp_path, keys, 2)
    folder = Folder(str(tmp_path / "db"))
    text = "IVF16,PQ8x4fs"
    template = train_index(
        parse_key(text, D),
        sampled(parts, 2000, 10_000, seed=0),
    )
    fill(folder, template, parts, 2)
    paths = [folder.local(partition_path(number)) for number in range(2)]
    for memory in (None, 1):
        searcher = Searcher(folder.local(PATH), paths, text, memory)
        few = ((np.int64(0), np.int64(300)), (500, 1000), (1990, 2000))
        many = tuple((first, first + 50) for first in range(0, 2000, 100))
        for exclude in (few, many):
            _, found = search(searcher, keys[:30].astype(np.float32), 100, exclude)
            kept = found[found >= 0]
            assert len(kept) > 1500
            assert not any(((kept >= first) & (kept < end)).any() for first, end in exclude)
            assert (kept < 500).any()


def test_many_lists_and_candidates_are_searched_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = make_keys(2000)
    parts = make_parts(tmp_path, keys, 2)
    folder = Folder(str(tmp_path / "db"))
    text = "IVF16,Flat"
    fill(folder, train_index(parse_key(text, D), keys.astype(np.float32)), parts, 2)
    column = Table([part.embeddings for part in parts]).column("vector")
    blocks = [QueryBlock(keys[start : start + 50].astype(np.float32)) for start in (0, 50, 1000)]
    paths = [folder.local(partition_path(number)) for number in range(2)]
    finder = Finder(Searcher(folder.local(PATH), paths, text), column, SearchSettings(16, 100))
    with ThreadPoolExecutor(2) as pool:
        whole = finder.find(blocks, 10, pool)
        monkeypatch.setattr("retro_db.search.searching._MOST_VISITS", 16 * 7)
        monkeypatch.setattr("retro_db.search.reranking._MOST_EMBEDDINGS", 150)
        monkeypatch.setattr("retro_db.search.reranking._MOST_SHARED_EMBEDDINGS", 300)
        pieces = finder.find(blocks, 10, pool)
    for one, other in zip(whole, pieces, strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])


def test_a_partition_opens_from_another_folder(tmp_path: Path) -> None:
    keys = make_keys(1000)
    parts = make_parts(tmp_path, keys, 1)
    folder = Folder(str(tmp_path / "db"))
    template = train_index(
        parse_key("IVF8,SQ8", D),
        sampled(parts, 1000, 1000, seed=0),
    )
    fill(folder, template, parts, 1)
    moved = tmp_path / "elsewhere.faissindex"
    folder.local(partition_path(0)).rename(moved)
    index = read_index(moved)
    distances, ids = index.search(keys[1:2].astype(np.float32), 1)
    assert ids[0, 0] == 1
    assert distances[0, 0] < 0.01


def test_exact_distances_order_and_padding(tmp_path: Path) -> None:
    keys = make_keys(500)
    parts = make_parts(tmp_path, keys, 3)
    column = Table([part.embeddings for part in parts]).column("vector")
    queries = keys[:4].astype(np.float32)
    # 250 to 289 repeat 0 to 39, so that query 0 is as near to 0 as to 250.
    candidates = np.array([[250, 0, 7, -1], [-1, -1, -1, -1], [2, 252, 1, 3], [499, 5, 6, 3]])
    found = Candidates(candidates)
    ids, distances = found.nearest(found.distances(queries, column), 5)
    assert ids.shape == distances.shape == (4, 5)
    assert ids[0].tolist() == [0, 250, 7, -1, -1]
    assert distances[0, :2].tolist() == [0, 0]
    assert ids[1].tolist() == [-1] * 5
    assert np.isinf(distances[1]).all()
    assert ids[2, :2].tolist() == [2, 252]
    exact = ((keys[ids[3, :4]].astype(float) - keys[3].astype(float)) ** 2).sum(axis=1)
    np.testing.assert_allclose(distances[3, :4], exact, rtol=1e-5)


def test_the_training_sample_is_uniform_over_the_corpus(tmp_path: Path) -> None:
    keys = np.arange(20_000, dtype=np.float16)[:, None] * np.ones(D, np.float16)
    parts = make_parts(tmp_path, keys, 4)
    sample = sampled(parts, 18_823, 4000, seed=3)
    assert 3700 < len(sample) < 4300
    positions = sample[:, 0]
    thirds = np.histogram(positions[np.isfinite(positions)], bins=3, range=(0, 20_000))[0]
    assert thirds.min() > 0.8 * thirds.max(), "not a prefix"
    assert np.array_equal(sample, sampled(parts, 18_823, 4000, seed=3))


@given(
    entries=st.lists(st.integers(0, 1000), min_size=1, max_size=60),
    partitions=st.integers(1, 70),
)
def test_ranges_of_lists_tile_them(entries: list[int], partitions: int) -> None:
    ranges = list_ranges(np.array(entries), len(entries), partitions)
    assert len(ranges) == min(partitions, len(entries))
    assert all(first < end for first, end in ranges)
    assert [0, *(end for _, end in ranges)] == [*(first for first, _ in ranges), len(entries)]


@given(
    entries=st.lists(st.integers(0, 1000), min_size=1, max_size=60),
    room=st.integers(1, 20_000),
)
def test_planned_partitions_are_within_the_memory(entries: list[int], room: int) -> None:
    code = 200
    ranges = plan_partitions(np.array(entries), len(entries), code, 4 * code * room)
    held = [sum(entries[first:end]) for first, end in ranges]
    assert sum(held) == sum(entries)
    assert max(held) <= max(room, *entries), "but for a single list, which is never cut"
    assert len(ranges) == 1 or sum(entries) > room


def test_planned_partitions_are_files_of_four_gigabytes_at_most() -> None:
    entries = np.full(1024, 400_000)
    ranges = plan_partitions(entries, 4096, 200, memory=64_000_000_000)
    assert len(ranges) == 21
    assert max((end - first) / 4 for first, end in ranges) * 400_000 * 200 <= 4_000_000_000


def test_all_partitions_together_are_little_more_than_one_file(tmp_path: Path) -> None:
    keys = make_keys(20_000)
    parts = make_parts(tmp_path, keys, 2)
    folder = Folder(str(tmp_path / "db"))
    # Each repeats rotation and code book, some kB: little beside codes once there are many.
    key = parse_key("OPQ8_32,IVF64_HNSW8,SQ8", D)
    template = train_index(key, sampled(parts, 20_000, 3_000, seed=0))
    fill(folder, template, parts, 8)
    plain = faiss.clone_index(template)
    plain.add_with_ids(keys[np.arange(len(keys)) % 17 != 0].astype(np.float32), np.arange(18_823))
    together = sum(folder.local(partition_path(number)).stat().st_size for number in range(8))
    assert together <= 1.1 * len(faiss.serialize_index(plain))


class Given:
    """Points that come in batches of a size."""

    def __init__(self, vectors: np.ndarray, batch: int) -> None:
        self._vectors = vectors
        self._batch = batch

    def read(self, share: float, seed: int) -> Iterator[np.ndarray]:
        below = fractions_of(np.arange(len(self._vectors)), seed) < share
        for start in range(0, len(below), self._batch):
            rows = slice(start, start + self._batch)
            yield self._vectors[rows][below[rows]]


def trained_in_levels(key: IndexKey, points: np.ndarray, above: int) -> faiss.Index:
    """An index whose lists come from two levels of k-means above a number of them."""
    index = train_transforms(key, points)
    train_lists(index, key, transform(index, points), threads=2, two_levels_above=above)
    return index


@pytest.mark.parametrize("text", ["IVF64,PQ8x4fs", "OPQ4_16,IVF64_HNSW8,PQ4x4", "PCA16,IVF64,SQ8"])
def test_centroids_of_two_levels_are_about_as_near(text: str) -> None:
    key, points = parse_key(text, D), make_keys(6000).astype(np.float32)
    one, two, again = (trained_in_levels(key, points, above) for above in (100_000, 50, 50))
    errors = []
    for index in (one, two):
        ivf = inverted_file(index)
        assert index.is_trained
        assert ivf.quantizer.ntotal == 64
        distances, _ = ivf.quantizer.search(transform(index, points), 1)
        errors.append(distances.mean())
    assert errors[1] < 1.15 * errors[0]
    assert np.array_equal(faiss.serialize_index(two), faiss.serialize_index(again))
    assert not np.array_equal(faiss.serialize_index(one), faiss.serialize_index(two))


def test_a_short_row_is_searched_up_to_the_limit(tmp_path: Path) -> None:
    keys = make_keys(2000)
    parts = make_parts(tmp_path, keys, 2)
    folder = Folder(str(tmp_path / "db"))
    text = "IVF16,Flat"
    fill(folder, train_index(parse_key(text, D), keys.astype(np.float32)), parts, 2)
    column = Table([part.embeddings for part in parts]).column("vector")
    queries, indexed = keys[:20].astype(np.float32), 1000 - len(range(1003, 2000, 17))
    found = {}
    for limit in (1, 4, None):
        paths = [folder.local(partition_path(number)) for number in range(2)]
        searcher = Searcher(folder.local(PATH), paths, text)
        finder = Finder(searcher, column, SearchSettings(1, indexed), limit)
        with ThreadPoolExecutor(1) as pool:
            [(ids, _)] = finder.find([QueryBlock(queries, ((0, 1000),))], indexed, pool)
        found[limit] = (ids >= 0).sum(axis=1)
    assert (found[1] < found[4]).all()
    assert (found[4] < indexed).any()
    assert (found[None] == indexed).all()


@pytest.mark.parametrize(
    "text", ["IVF16,Flat", "IVF16,PQ8x4fs", "OPQ4_16,IVF64_HNSW8,PQ4", "IVF16,RaBitQ", "IVF16,SQ8"]
)
def test_the_predicted_size_is_that_of_the_file(tmp_path: Path, text: str) -> None:
    key, keys = parse_key(text, D), make_keys(20_000).astype(np.float32)
    index = train_index(key, keys[:3000])
    index.add(keys)
    _, predicted = predict_size(key, D, len(keys))
    assert predicted == pytest.approx(len(faiss.serialize_index(index)), rel=0.1)


def test_keys_are_parsed_and_refused() -> None:
    key = parse_key("OPQ16_64,IVF256_HNSW32,PQ16", 768)
    assert (key.lists, key.sub_quantizers, key.bits) == (256, 16, 8)
    assert key.factory == "OPQ16_64,IVF256_HNSW32,PQ16x8np"
    fast = parse_key("IVF128,PQ192x4fs", 384)
    assert fast.fast_scan
    assert not fast.by_residual
    assert fast.factory == "IVF128,PQ192x4np"
    for wrong in ("Flat", "HNSW32", "IVF64,PQ7", "IVF64,PQ8x8fs", "IVF0,Flat"):
        with pytest.raises(IndexKeyError, match=r"index\.key"):
            parse_key(wrong, 384)
    assert parse_key("Pad400,IVF16,PQ50", 384).sub_quantizers == 50


@pytest.mark.parametrize(
    "text",
    [
        "IVF16,PQ8x4fsr_32",
        "IVF16,PQ8x4fs_64",
        "IVF16,RaBitQfs",
        "IVF16,PQ8+8",
        "IVF16,RQ4x4",
        "L2norm,IVF16,Flat",
        "ITQ16,IVF16,SQ8",
        "IVF64_NSG8,SQ8",
        "IVF64(IVF8,Flat),SQ8",
        "IVF16,PQ8,RFlat",
    ],
)
def test_keys_that_cannot_be_divided_are_refused(text: str) -> None:
    with pytest.raises(IndexKeyError, match="cannot be divided into partitions"):
        create_index(parse_key(text, 64), 64)


def test_what_a_corpus_can_train() -> None:
    check_trainable(parse_key("IVF10,Flat", 32), 300)
    with pytest.raises(IndexKeyError, match="300 chunks"):
        check_trainable(parse_key("IVF10,Flat", 32), 299)
    with pytest.raises(IndexKeyError, match="256 chunks"):
        check_trainable(parse_key("IVF1,PQ8", 32), 255)
    with pytest.raises(IndexKeyError, match="24 chunks"):
        check_trainable(parse_key("PCA24,IVF1,Flat", 32), 23)


@pytest.mark.parametrize("seed", range(6))
def test_a_sample_that_the_memory_bounds_is_large_enough(tmp_path: Path, seed: int) -> None:
    keys, key = make_keys(6000), parse_key("IVF64,SQ8", D)
    least = 64 * 30
    with pytest.raises(IndexKeyError, match=r"index\.memory"):
        training_points(key, D, len(keys), memory=training_bytes(key, D, least))
    points = training_points(key, D, len(keys), memory=training_bytes(key, D, least + 300))
    assert points < 2300
    sample = sample_points(
        StoredPoints(lambda: make_parts(tmp_path, keys, 2)), Sampling(D, len(keys), points, seed)
    )
    assert len(sample) >= least * 16 / 17
    assert training_points(key, D, len(keys), memory=10**9) == 64 * 256
    assert training_points(key, D, least, memory=10**9) >= least


@given(
    text=st.sampled_from(["IVF64,SQ8", "OPQ4_16,IVF64,PQ4", "PCA16,IVF64,SQ8"]),
    memory=st.integers(100_000, 10**10),
)
def test_points_within_the_memory_are_the_most_that_are(text: str, memory: int) -> None:
    key = parse_key(text, 384)
    points = points_within(key, 384, memory)
    assert training_bytes(key, 384, points) <= memory < training_bytes(key, 384, points + 1)


@pytest.mark.parametrize("chunks", [1, 3, 999, 1000, 4217, 9086, 1_000_000, 4_000_000])
def test_automatic_keys_can_be_trained(chunks: int) -> None:
    for dimension in (384, 768, 1024):
        key = parse_key(choose_key(chunks, dimension, 64_000_000_000), dimension)
        check_trainable(key, chunks)


@pytest.mark.parametrize("chunks", [1168, 100_000, 4_000_000])
def test_automatic_keys_can_be_trained_in_the_memory(chunks: int) -> None:
    for memory in (2_000_000, 50_000_000, 64_000_000_000):
        key = parse_key(choose_key(chunks, 384, memory), 384)
        assert training_points(key, 384, chunks, memory) >= key.lists * 30


@pytest.fixture(params=["with autofaiss", "without"])
def proposals(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "autofaiss.external.optimize", None)
    else:
        pytest.importorskip("autofaiss", reason="has no release for this Python")


@pytest.mark.usefixtures("proposals")
@pytest.mark.parametrize("memory", [4, 16, 32, 64, 512])
def test_proposed_keys_fit_and_can_be_trained_in_the_memory(memory: int) -> None:
    memory *= 1_000_000_000
    for chunks in (5_000_000, 20_000_000, 500_000_000, 28_000_000_000):
        for dimension in (384, 768, 1024):
            key = parse_key(choose_key(chunks, dimension, memory), dimension)
            assert training_points(key, dimension, chunks, memory) >= key.lists * 30
            streamed = chunks * (8 + 8) > memory
            assert streamed or chunks * (key.sub_quantizers * key.bits // 8 + 8) <= memory


@pytest.mark.usefixtures("proposals")
def test_large_automatic_keys_fit_the_vectors() -> None:
    key = choose_key(10_000_000, 384, 64_000_000_000)
    assert parse_key(key, 384).lists >= 4096
    width = int(key.split(",")[0].split("_")[1])
    assert width <= 384


@pytest.mark.parametrize("points", [1, 10, 100, 5000])
def test_reduced_keys_can_be_trained(points: int) -> None:
    for text in ("OPQ48_192,IVF65536_HNSW32,PQ48", "IVF4096(IVF64,PQ8),SQ8", "IVF64,PQ192x4fs"):
        check_trainable(parse_key(reduce_key(text, points, 384), 384), points)


@pytest.mark.parametrize("text", ["IVF690,PQ16x4fs", "OPQ8_32,IVF690_HNSW8,PQ8x4"])
@pytest.mark.parametrize("above", [100_000, 600])
def test_training_does_not_depend_on_threads(text: str, above: int) -> None:
    # At this size sums of one thread and of several would differ in the last bits.
    rng = np.random.default_rng(1)
    points, key = rng.normal(size=(30_000, 64)).astype(np.float32), parse_key(text, 64)
    transforms = faiss.serialize_index(train_transforms(key, points[:600]))
    templates = set()
    for threads in (1, 4):
        faiss.omp_set_num_threads(threads)
        index = faiss.deserialize_index(transforms)
        sampling = Sampling(64, len(points), len(points), seed=0)
        sample = sample_points(Given(points, 10_000), sampling, index)
        train_lists(index, key, sample, threads, above)
        templates.add(faiss.serialize_index(index).tobytes())
    assert len(templates) == 1


def train_on(place: Path, vectors: np.ndarray, text: str, fine: str | None = None) -> None:
    """Trains an index on all of some vectors."""
    folder, dimension = Folder(str(place)), vectors.shape[1]
    points, sampling = Given(vectors, 10), Sampling(dimension, len(vectors), len(vectors), seed=0)
    train_and_write(points, parse_key(text, dimension), fine, sampling, folder, Meter(), threads=2)


@pytest.mark.parametrize("text", ["OPQ8_32,IVF16,PQ8x4", "PCA24,IVF16,SQ8", "RR48,IVF16,PQ8x4fs"])
def test_the_sample_does_not_depend_on_batches(text: str) -> None:
    """Parts that were embedded in several runs hand over what is drawn in other pieces."""
    vectors = np.random.default_rng(0).normal(size=(24_576, 48)).astype(np.float16)
    sampling = Sampling(48, len(vectors), 20_000, seed=0)
    index = train_transforms(parse_key(text, 48), vectors[:600].astype(np.float32))
    samples = {
        sample_points(Given(vectors, batch), sampling, index).tobytes()
        for batch in (8192, 24_576, 1001)
    }
    assert len(samples) == 1


@pytest.mark.parametrize(
    ("text", "fine"), [("IVF1,Flat", "SQ8"), ("OPQ8_32,IVF4,PQ8", None), ("PCA24,IVF2,SQ8", None)]
)
def test_hardly_any_embedding_is_told(tmp_path: Path, text: str, fine: str | None) -> None:
    none = np.empty((0, 48), np.float16)
    with pytest.raises(CorpusError, match="no chunk has a word"):
        train_on(tmp_path, none, text, fine)
    if fine is None:
        with pytest.raises(IndexKeyError, match="needs"):
            train_on(tmp_path, np.ones((5, 48), np.float16), text)


@pytest.mark.parametrize("above", [10**6, 100])
def test_the_points_of_training_are_held_once(above: int) -> None:
    points = np.random.default_rng(0).normal(size=(100_000, 64)).astype(np.float32)
    key = parse_key("IVF390,Flat", 64)
    index = train_transforms(key, points)
    tracemalloc.start()
    train_lists(index, key, points, threads=2, two_levels_above=above)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert points.nbytes + peak < training_bytes(key, 64, len(points))


def test_k_means_is_as_good_as_that_of_faiss() -> None:
    points = np.random.default_rng(2).normal(size=(20_000, 16)).astype(np.float32)
    theirs = faiss.Kmeans(16, 200, niter=10, seed=1)
    theirs.train(points)
    for place, tolerance in ((cluster, 1.005), (cluster_in_levels, 1.03)):
        centroids = place(points, 200, 1, 2)
        nearest = assign(points, centroids, 2)
        errors = np.concatenate(
            [((rows[:, None] - centroids) ** 2).sum(axis=2) for rows in np.split(points, 40)]
        )
        assert np.array_equal(nearest, errors.argmin(axis=1))
        assert errors.min(axis=1).sum() < tolerance * theirs.obj[-1]


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=200), clusters=st.integers(1, 30))
def test_k_means_takes_equal_points(values: list[int], clusters: int) -> None:
    points = np.repeat(np.array(values, np.float32)[:, None], 4, axis=1)
    clusters = min(clusters, len(points))
    for place in (cluster, cluster_in_levels):
        centroids = place(points, clusters, 0, 2)
        assert centroids.shape == (clusters, 4)
        assert np.isfinite(centroids).all()


def test_training_leaves_no_warning_of_few_points(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    points = make_keys(400).astype(np.float32)
    for text in ("IVF8,PQ8x4fs", "OPQ4_16,IVF8,PQ4", "PCA16,IVF8,SQ8", "IVF8_HNSW8,RaBitQ"):
        train_index(parse_key(text, D), points)
    assert capfd.readouterr() == ("", "")
