"""The kernel of the join, beside brute force in float64."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_db.join.keys import Keys, Labels, needed_keys
from retro_db.join.nearest import nearest
from retro_db.join.products import KeyMatrix, QueryMatrix
from retro_db.join.scan import Visitors, nearest_keys
from support.memory import peak

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU = torch.device("cpu")


def keys_of(
    vectors: np.ndarray, lists: np.ndarray, labels: Labels, count: int, precision: str, k: int
) -> Keys:
    """Keys of `count` lists; ids are the rows."""
    rows = np.argsort(lists, kind="stable")
    rows = rows[needed_keys(vectors, rows, labels[rows], lists[rows], k)]
    offsets = np.searchsorted(lists[rows], np.arange(count + 1))
    return Keys(offsets, rows, labels[rows], vectors, rows, PRECISIONS[precision], CPU)


def brute_force(
    vectors: np.ndarray, lists: np.ndarray, labels: Labels, visitors: Visitors, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same answer in float64, by comparing every query with every key."""
    queries = visitors.vectors.astype(np.float64)
    distances = ((queries[:, None] - vectors.astype(np.float64)[None]) ** 2).sum(axis=2)
    visited = np.zeros((len(queries), lists.max() + 1), bool)
    visited[visitors.rows, visitors.lists] = True
    distances[~visited[:, lists]] = np.inf
    distances[visitors.labels.documents[:, None] == labels.documents] = np.inf
    if labels.tokens is not None:
        distances[visitors.labels.tokens[:, None] == labels.tokens] = np.inf
    rounded = distances.astype(np.float32)
    rounded[rounded > visitors.bounds[:, None]] = np.inf
    return nearest(np.broadcast_to(np.arange(len(vectors)), distances.shape).copy(), rounded, k)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Labels, Visitors, int]:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    dimension = draw(st.sampled_from([1, 3, 8, 48]))
    count, queries = draw(st.integers(1, 300)), draw(st.integers(1, 60))
    lists_count = draw(st.integers(1, 12))
    spread = draw(st.sampled_from([1e-3, 1.0, 100.0]))
    # Few values, so that many keys are equal or equally near.
    grain = draw(st.sampled_from([0.25, 2.0**-9]))
    values = random.integers(-3, 4, (count, dimension)) * grain
    vectors = ((values + 2.5) * spread).astype(np.float16)
    lists = random.integers(lists_count, size=count)
    # Equal keys lie in the same list.
    _, firsts, inverse = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    lists = lists[firsts][inverse.reshape(-1)]
    tokens = random.integers(4, size=count).astype(np.uint64) if draw(st.booleans()) else None
    labels = Labels(np.sort(random.integers(draw(st.integers(1, 40)), size=count)), tokens)
    rows = random.integers(count, size=queries)
    visited = [random.permutation(lists_count)[: random.integers(lists_count + 1)] for _ in rows]
    # Some have none; of others it is the distance of a key, which is not beyond it.
    target = vectors[random.integers(count, size=queries)].astype(np.float32)
    bounds = ((target - vectors[rows].astype(np.float32)) ** 2).sum(axis=1, dtype=np.float32)
    bounds *= np.float32(1 + 1e-6)
    bounds[random.random(queries) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = np.inf
    k = draw(st.integers(1, 25))
    return (
        vectors,
        lists,
        labels,
        Visitors(
            vectors[rows],
            labels[rows],
            bounds,
            np.repeat(np.arange(queries), [len(v) for v in visited]),
            np.concatenate([np.empty(0, np.int64), *visited]),
        ),
        k,
    )


@settings(deadline=None, max_examples=150)
@given(problem=problems(), precision=st.sampled_from(sorted(PRECISIONS)))
def test_the_nearest_are_those_of_brute_force(problem, precision: str) -> None:
    vectors, lists, labels, visitors, k = problem
    count = int(lists.max()) + 1
    within = visitors.lists < count
    visitors = Visitors(
        visitors.vectors,
        visitors.labels,
        visitors.bounds,
        visitors.rows[within],
        visitors.lists[within],
    )
    keys = keys_of(vectors, lists, labels, count, precision, k)
    ids, distances = nearest_keys(keys, visitors, k)
    true_ids, true_distances = brute_force(vectors, lists, labels, visitors, k)
    # Whether a key at the bound counts, the last bit of a sum decides.
    at_bound = np.isclose(distances, visitors.bounds[:, None], rtol=1e-5)
    at_bound |= np.isclose(true_distances, visitors.bounds[:, None], rtol=1e-5)
    assert (np.isclose(distances, true_distances, rtol=1e-5, atol=0) | at_bound).all()
    assert ((ids < 0) == np.isinf(distances)).all()
    rows, columns = np.nonzero(ids >= 0)
    apart = vectors[ids[rows, columns]].astype(np.float64) - visitors.vectors[rows]
    exact = (apart**2).sum(axis=1)
    assert np.allclose(distances[rows, columns], exact, rtol=1e-5, atol=0)
    # Float32 sums may order keys otherwise that float64 finds about equally near; equal keys, never.
    differ = (ids[rows, columns] != true_ids[rows, columns]) & ~at_bound[rows, columns]
    stored, true = (found[rows, columns][differ] for found in (ids, true_ids))
    assert (vectors[stored] != vectors[true]).any(axis=1).all()
    assert (labels.documents[ids] != visitors.labels.documents[:, None])[ids >= 0].all()


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
@pytest.mark.parametrize("spread", [2.0**-14, 1.0, 300.0])
def test_no_key_at_its_bound_is_lost(precision: str, spread: float) -> None:
    """Each query's bound is the distance of a key, which lies just within it."""
    random = np.random.default_rng(0)
    for dimension in (2, 31, 384):
        vectors = (random.standard_normal((2000, dimension)) * spread).astype(np.float16)
        queries = (random.standard_normal((2000, dimension)) * spread).astype(np.float16)
        # From very near to very far.
        queries[::2] = vectors[::2] + queries[::2] * np.float16(2.0**-5)
        wide = queries.astype(np.float32)
        apart = wide.astype(np.float64) - vectors.astype(np.float64)
        bounds = (apart**2).sum(axis=1).astype(np.float32)
        keys = KeyMatrix(
            lambda start, stop, vectors=vectors: vectors[start:stop],
            len(vectors),
            dimension,
            PRECISIONS[precision],
            CPU,
        )
        matrix = QueryMatrix(wide, keys)
        matrix.bound(np.arange(2000), bounds)
        products = torch.mm(matrix.factors, keys.rows(0, 2000)[:2000].T)
        assert (products.diagonal() > 0).all()


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_brackets_hold_the_distance(precision: str) -> None:
    random = np.random.default_rng(1)
    vectors = random.standard_normal((500, 64)).astype(np.float16)
    queries = random.standard_normal((500, 64)).astype(np.float32)
    keys = KeyMatrix(lambda a, b: vectors[a:b], 500, 64, PRECISIONS[precision], CPU)
    matrix = QueryMatrix(queries, keys)
    matrix.bound(np.arange(500), np.full(500, 130.0, np.float32))
    products = torch.mm(matrix.factors, keys.rows(0, 500)[:500].T).float()
    kept = (products.view(torch.int32) & -65536).view(torch.float32).numpy()
    rows, columns = np.nonzero(kept > 0)
    near, far = matrix.distances(rows, columns, kept[rows, columns])
    apart = queries[rows].astype(np.float64) - vectors[columns].astype(np.float64)
    true = np.sqrt((apart**2).sum(axis=1))
    assert len(rows) > 50_000
    assert (near <= true).all()
    assert (true <= far).all()
    assert np.median(far - near) < 0.1 * np.median(true)


def test_the_block_does_not_matter() -> None:
    random = np.random.default_rng(2)
    vectors = random.standard_normal((5000, 48)).astype(np.float16)
    lists, documents = random.integers(20, size=5000), np.arange(5000) // 10
    visits = np.stack([random.permutation(20)[:7] for _ in range(5000)])
    answers = []
    for precision in PRECISIONS:
        keys = keys_of(vectors, lists, Labels(documents), 20, precision, 20)
        for step in (5000, 617, 64):
            pieces = []
            for start in range(0, 5000, step):
                rows = np.arange(start, min(start + step, 5000))
                pieces.append(
                    nearest_keys(
                        keys,
                        Visitors(
                            vectors[rows],
                            Labels(documents[rows]),
                            np.full(len(rows), np.inf, np.float32),
                            np.repeat(np.arange(len(rows)), 7),
                            visits[rows].reshape(-1),
                        ),
                        20,
                    )
                )
            answers.append([np.concatenate(arrays) for arrays in zip(*pieces, strict=True)])
    for ids, distances in answers[1:]:
        assert (ids == answers[0][0]).all()
        assert distances.tobytes() == answers[0][1].tobytes()


def test_copies_cost_nothing_and_come_by_ascending_id() -> None:
    """10,000 copies of one chunk, half of them in one document, and 100 other chunks."""
    random = np.random.default_rng(3)
    vectors = np.repeat(random.standard_normal((1, 64)), 10_100, axis=0).astype(np.float16)
    vectors[10_000:] = random.standard_normal((100, 64))
    documents = np.concatenate([np.zeros(5000, np.int64), np.arange(1, 5101)])
    labels, k = Labels(documents), 20
    before, start = peak(), time.process_time()
    keys = keys_of(vectors, np.zeros(10_100, np.int64), labels, 1, "float32", k)
    assert len(keys.ids) == 2 * k + 100
    visitors = Visitors(
        vectors,
        labels,
        np.full(10_100, np.inf, np.float32),
        np.arange(10_100),
        np.zeros(10_100, np.int64),
    )
    ids, distances = nearest_keys(keys, visitors, k)
    # All pairs would be 10^8, of eight bytes each.
    assert peak() - before < 300_000_000
    assert time.process_time() - start < 60
    assert (ids[:5000] == np.arange(5000, 5020)).all()
    assert (ids[5000:10_000] == np.arange(20)).all()
    assert (distances[:10_000] == 0).all()


def test_copies_of_equal_tokens_are_passed_over() -> None:
    vectors = np.ones((300, 8), np.float16)
    vectors[200:, 0] = np.arange(100)
    tokens = np.zeros(300, np.uint64)
    tokens[200:] = np.arange(1, 101)
    labels = Labels(np.arange(300), tokens)
    keys = keys_of(vectors, np.zeros(300, np.int64), labels, 1, "float32", 5)
    visitors = Visitors(
        vectors[:1],
        labels[:1],
        np.full(1, np.inf, np.float32),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
    )
    ids, distances = nearest_keys(keys, visitors, 5)
    assert ids.tolist() == [[201, 200, 202, 203, 204]]
    assert distances.tolist() == [[0, 1, 1, 4, 9]]
