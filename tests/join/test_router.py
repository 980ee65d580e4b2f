"""Which lists a chunk visits depends on the chunk alone."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from retro_db.index.keys import parse_key
from retro_db.index.structure import inverted_file
from retro_db.index.training import train_index
from retro_db.join.router import Router
from retro_db.join.spatial_order import (
    cut_equally,
    cut_partitions,
    order_lists,
    partition_waves,
)


@functools.cache
def router_of(key: str) -> Router:
    return Router(train_index(parse_key(key, 24), points()))


def points(count: int = 3000, dimension: int = 24) -> np.ndarray:
    random = np.random.default_rng(0)
    centers = random.standard_normal((30, dimension))
    noise = 0.4 * random.standard_normal((count, dimension))
    return (centers[random.integers(30, size=count)] + noise).astype(np.float32)


@pytest.mark.parametrize("key", ["IVF64,Flat", "OPQ8_16,IVF64,PQ8", "IVF64_HNSW8,Flat"])
@pytest.mark.parametrize("nprobe", [1, 9, 64])
def test_lists_do_not_depend_on_the_block(key: str, nprobe: int) -> None:
    x = points()
    router = router_of(key)
    whole = router.nearest(x, nprobe)
    assert np.sort(whole, axis=1).tolist() == [sorted(set(row)) for row in whole.tolist()]
    shifted = np.concatenate([router.nearest(x[:333], nprobe), router.nearest(x[333:], nprobe)])
    assert (np.sort(shifted, axis=1) == np.sort(whole, axis=1)).all()
    assert (shifted[:, 0] == whole[:, 0]).all()


def test_the_first_list_does_not_depend_on_how_many_are_asked_for() -> None:
    """Of a graph too, whose search is wider for more lists; each list once, none missing."""
    x = points()
    for key in ("IVF400_HNSW4,Flat", "IVF64,Flat"):
        router = Router(train_index(parse_key(key, 24), np.tile(x, (5, 1))))
        homes = router.nearest(x[:500], 1)[:, 0]
        for nprobe in (60, router.lists - 20, router.lists):
            lists = router.nearest(x[:500], nprobe)
            assert (lists[:, 0] == homes).all()
            ordered = np.sort(lists, axis=1)
            assert (ordered >= 0).all()
            assert (np.diff(ordered, axis=1) > 0).all()


def test_lists_are_the_nearest_by_exact_distance() -> None:
    x = points()
    index = train_index(parse_key("IVF64,Flat", 24), x)
    quantizer = inverted_file(index).quantizer
    # Two centroids at a distance that float32 cannot tell apart from many points.
    centroids = quantizer.reconstruct_n(0, 64)
    centroids[1] = centroids[0] * np.float32(1 + 2.0**-23)
    quantizer.reset()
    quantizer.add(centroids)
    exact = ((x[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
    for nprobe in (1, 5):
        lists = Router(index).nearest(x, nprobe)
        order = np.argsort(exact, axis=1, kind="stable")[:, :nprobe]
        assert (np.sort(lists, axis=1) == np.sort(order, axis=1)).all()
        assert (lists[:, 0] == order[:, 0]).all()


def test_every_list_is_counted_where_many_lie_at_the_margin_of_rounding() -> None:
    """Distances of all values that float32 has around the one of the last list."""
    random = np.random.default_rng(0)
    index = train_index(
        parse_key("IVF512,Flat", 4), random.standard_normal((16_384, 4), np.float32)
    )
    directions = random.standard_normal((512, 4))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    # So long that the margin is no whole number of steps between them.
    squares = 0.9958 * np.linspace(1 - 2e-5, 1 + 2e-5, 512)
    shell = directions * np.sqrt(squares)[:, None]
    quantizer = inverted_file(index).quantizer
    quantizer.reset()
    quantizer.add(shell.astype(np.float32))
    queries = np.zeros((64, 4), np.float32)
    queries[:, 0] = np.linspace(0, 1e-7, 64)
    centroids = shell.astype(np.float32).astype(np.float64)
    exact = ((queries[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
    for nprobe in (200, 256, 300):
        lists = Router(index).nearest(queries, nprobe)
        order = np.argsort(exact, axis=1, kind="stable")[:, :nprobe]
        assert (np.sort(lists, axis=1) == np.sort(order, axis=1)).all()


def test_near_lists_lie_side_by_side() -> None:
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(8), 16)
    shuffled = random.permutation(128)
    centers = 10 * random.standard_normal((8, 12))
    centroids = (centers[clusters] + random.standard_normal((128, 12)))[shuffled]
    ordered = order_lists(centroids.astype(np.float32))
    assert sorted(ordered.tolist()) == list(range(128))
    changes = np.diff(clusters[shuffled][ordered]) != 0
    assert changes.sum() == 7


def test_equal_centroids_are_ordered_too() -> None:
    assert sorted(order_lists(np.ones((50, 4), np.float32)).tolist()) == list(range(50))


@pytest.mark.parametrize("most", [1, 7, 100, 10_000])
def test_partitions_hold_no_more_keys_than_fit(most: int) -> None:
    lengths = np.random.default_rng(2).integers(0, 20, 300)
    cuts = cut_partitions(lengths, most)
    assert cuts[0] == 0
    assert cuts[-1] == 300
    assert (np.diff(cuts) > 0).all()
    sizes = np.add.reduceat(lengths, cuts[:-1])
    assert (sizes[np.diff(cuts) > 1] <= most).all()


@pytest.mark.parametrize("partitions", [1, 3, 64, 500])
def test_partitions_are_of_about_equal_size(partitions: int) -> None:
    lengths = np.full(100, 5)
    cuts = cut_equally(lengths, partitions)
    assert len(cuts) - 1 == min(partitions, 100)
    assert np.ptp(np.diff(cuts)) <= 1
    assert cut_equally(np.zeros(10, np.int64), 4)[-1] == 10


def test_waves_stay_below_their_bytes() -> None:
    assert partition_waves([5, 5, 5, 20, 1], 10) == [
        range(2),
        range(2, 3),
        range(3, 4),
        range(4, 5),
    ]
    assert partition_waves([5, 5], None) == [range(2)]
    assert partition_waves([0], 0) == [range(1)]
