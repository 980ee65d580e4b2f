"""Tuning: what it chooses really meets the target, and what it advises really would."""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from retro_db.hashing import fractions_of
from retro_db.index.drawing import QUERIES
from retro_db.index.filling import partition_path
from retro_db.index.keys import parse_key
from retro_db.index.training import PATH, train_index
from retro_db.search.finder import Finder
from retro_db.search.ground_truth import (
    exact_neighbors,
    merge_neighbors,
    query_blocks,
)
from retro_db.search.searching import QueryBlock, Searcher, SearchSettings
from retro_db.search.tuning import MeasuredQueries, Tuned, depths_for, tune
from retro_db.store.folder import Folder
from retro_db.store.gathering import Table
from support import brute_force
from support.indexes import D, fill, make_keys, make_parts, quiet

CHUNKS, DOCUMENT = 3000, 10


class Trial:
    """An index over clustered keys in documents of ten chunks, ready to be tuned."""

    def __init__(
        self,
        place: Path,
        key: str,
        max_nprobe: int | None = None,
        keys: np.ndarray | None = None,
    ) -> None:
        place.mkdir(exist_ok=True)
        folder = Folder(str(place / "db"))
        self.keys = make_keys(CHUNKS) if keys is None else keys
        self.parts = make_parts(place, self.keys, 2)
        template = train_index(parse_key(key, D), self.keys.astype(np.float32))
        partitions = min(2, parse_key(key, D).lists)
        fill(folder, template, self.parts, partitions)
        paths = [folder.local(partition_path(number)) for number in range(partitions)]
        searcher = Searcher(folder.local(PATH), paths, key)
        column = Table([part.embeddings for part in self.parts]).column("vector")
        self.finder = Finder(searcher, column, SearchSettings(1, 50), max_nprobe)
        ids = np.flatnonzero(fractions_of(np.arange(len(self.keys)), 1) < QUERIES / len(self.keys))
        vectors, own = self.keys[ids].astype(np.float32), np.array([own_range(i) for i in ids])
        self.queries = query_blocks(vectors, own)
        near = [exact_neighbors(vectors, own, part, 20, 2, quiet) for part in self.parts]
        self.near = functools.reduce(lambda a, b: merge_neighbors(a, b, 20), near)[1]

    def tune(self, target: float, rerank: int) -> Tuned:
        depths = depths_for(rerank, 10)
        queries = MeasuredQueries(self.queries, self.near, are_all_chunks=False)
        return tune(self.finder, queries, target, depths, threads=2)

    def recall(self, settings: SearchSettings) -> float:
        """By brute force, over chunks that tuning did not ask about."""
        asked = np.random.default_rng(7).permutation(CHUNKS)[:300]
        indexed = np.arange(CHUNKS) % 17 != 0
        documents = np.arange(CHUNKS) // DOCUMENT
        truth, _ = brute_force.neighbors(self.keys, documents, indexed, 10, asked)
        blocks = [
            QueryBlock(self.keys[[row]].astype(np.float32), (own_range(row),)) for row in asked
        ]
        finder = dataclasses.replace(self.finder, settings=settings)
        with ThreadPoolExecutor(2) as pool:
            found = np.concatenate([ids for ids, _ in finder.find(blocks, 10, pool)])
        return brute_force.recall(found, truth, 10)


def own_range(row: int) -> tuple[int, int]:
    """Ids of a chunk's document."""
    first = row // DOCUMENT * DOCUMENT
    return first, first + DOCUMENT


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Coarse codes, so that the number of candidates matters."""
    return Trial(tmp_path_factory.mktemp("trial"), "IVF64,PQ8x4fs")


def test_sampled_truth_is_that_of_brute_force(trial: Trial) -> None:
    assert 1000 <= len(trial.queries) <= 1400
    indexed = np.arange(CHUNKS) % 17 != 0
    documents = np.arange(CHUNKS) // DOCUMENT
    firsts = np.array([block.exclude[0][0] for block in trial.queries])
    vectors = np.concatenate([block.vectors for block in trial.queries])
    for place in range(0, len(trial.queries), 29):
        exact = ((trial.keys.astype(np.float64) - vectors[place]) ** 2).sum(axis=1)
        exact[~indexed | (documents == firsts[place] // DOCUMENT)] = np.inf
        near = trial.near[place]
        np.testing.assert_allclose(exact[near], np.sort(exact)[: len(near)], rtol=1e-5)


@pytest.mark.parametrize("target", [0.8, 0.95, 0.99])
def test_the_narrowest_search_that_meets_the_target(trial: Trial, target: float) -> None:
    tuned = trial.tune(target, rerank=400)
    assert tuned.remedy is None
    assert tuned.curve[-1].lower_bound >= target
    assert trial.recall(tuned.settings) >= target
    below = [
        point
        for point in tuned.curve[:-1]
        if point.nprobe < tuned.settings.nprobe or point.rerank < tuned.settings.rerank
    ]
    assert all(point.lower_bound < target for point in below)


def test_what_is_advised_would_meet_the_target(trial: Trial) -> None:
    tuned = trial.tune(0.99, rerank=20)
    assert tuned.settings.nprobe <= 16
    assert tuned.curve[-1].lower_bound < 0.99
    assert tuned.remedy is not None
    name, rerank = tuned.remedy.split(": ")
    assert name == "neighbors.rerank"
    again = trial.tune(0.99, rerank=int(rerank))
    assert again.remedy is None
    assert trial.recall(again.settings) >= 0.99


def test_a_limit_on_the_lists_is_named(tmp_path: Path) -> None:
    limited = Trial(tmp_path / "fine", "IVF64,SQ8", max_nprobe=2)
    tuned = limited.tune(0.99, rerank=50)
    assert tuned.settings.nprobe <= 2
    assert tuned.remedy == "neighbors.max_nprobe: null"
    coarse = Trial(tmp_path / "coarse", "IVF64,PQ8x4fs", max_nprobe=2)
    advised = coarse.tune(0.99, rerank=20).remedy
    assert advised is not None
    both, number = advised.rsplit(": ", 1)
    assert both == "neighbors.max_nprobe: null with neighbors.rerank"
    freed = dataclasses.replace(coarse.finder, max_nprobe=None)
    coarse.finder = freed
    assert coarse.tune(0.99, rerank=int(number)).remedy is None


def test_what_is_chosen_stays_within_what_is_configured(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "IVF1,PQ8x4fs")
    tuned = trial.tune(0.99, rerank=20)
    assert tuned.settings == SearchSettings(nprobe=1, rerank=20)
    assert (tuned.remedy or "").startswith("neighbors.rerank: ")
    five = trial.tune(0.99, rerank=5)
    assert five.curve[-1].rerank == 5
    assert five.curve[-1].recall <= 0.5, "five candidates hold no more than half of ten"


def test_few_lists_are_tried_first(tmp_path: Path) -> None:
    tuned = Trial(tmp_path, "IVF64,SQ8").tune(0.3, rerank=50)
    assert tuned.settings.nprobe == 1


def test_no_sample_proves_a_recall_of_one(tmp_path: Path) -> None:
    tuned = Trial(tmp_path, "IVF4,Flat").tune(0.5, rerank=50)
    assert tuned.curve[-1].recall <= 1
    every = Trial(tmp_path / "all", "IVF1,Flat").tune(1.0, rerank=50)
    assert every.remedy is None, "all lists without a miss: nothing more can be done"
    assert every.curve[-1].recall == 1
    assert 0.99 < every.curve[-1].lower_bound < 1


def test_codes_that_no_number_of_candidates_helps(tmp_path: Path) -> None:
    shapeless = np.random.default_rng(3).normal(size=(20_000, D)).astype(np.float16)
    tuned = Trial(tmp_path, "IVF2,PQ1x4", keys=shapeless).tune(0.99, rerank=10)
    assert tuned.remedy == "an index.key with finer codes, such as SQ8"


def test_the_breadth_among_centroids_is_tuned(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "IVF64_HNSW8,SQ8")
    tuned = trial.tune(0.95, rerank=100)
    breadth = tuned.settings.ef_search
    assert breadth is not None
    assert tuned.settings.nprobe <= breadth < 128
    assert trial.recall(tuned.settings) >= 0.95
