"""In which order a training run reads sequences, and that it goes on where it stopped."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retro_db import RetroDataset, RetroSampler
from retro_db.errors import InputError
from retro_db.reader.order import Order, permuted
from support.projects import Project, make_project
from support.texts import python_sources

RANKS, WORKERS, BATCH = 4, 2, 3


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two sources, of which the smaller one weighs three times as much; more of the first was appended."""
    folder = tmp_path_factory.mktemp("mixed")
    texts = python_sources(40)
    rest = texts[34:]
    project = make_project(
        folder, texts[:30], split={"validation": 0.1}, chunk={"shard_size": 15_000}
    )
    small = folder / "small.jsonl"
    small.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts[30:34]))
    project.settings["corpus"].append({"name": "small", "paths": [str(small)], "weight": 3.0})
    assert project.build() == 0
    more = folder / "more.jsonl"
    more.write_bytes(
        b"".join(orjson.dumps({"text": text, "id": text[:99]}) + b"\n" for text in rest)
    )
    again = [{"name": "test", "paths": [str(more)], "id": "id"}]
    assert replace(project, settings=project.settings | {"corpus": again}).build("--append") == 0
    return project


@given(st.integers(1, 3000), st.integers(0, 2**70), st.integers(0, 5))
def test_a_permutation_takes_every_position_elsewhere(count: int, seed: int, epoch: int) -> None:
    found = permuted(np.arange(count), count, (seed, epoch))
    assert sorted(found.tolist()) == list(range(count))


@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0.01, 10)), min_size=1, max_size=5),
    st.integers(0, 9),
)
def test_an_order_honors_weights(sources: list[tuple[int, float]], seed: int) -> None:
    counts, weights = zip(*sources, strict=True)
    order = Order(counts, weights, seed)
    every = np.arange(len(order))
    drawn: Counter[int] = Counter()
    for epoch in range(3):
        found = order.sequences(epoch, every)
        drawn.update(found.tolist())
        total = sum(w for c, w in sources if c)
        for one, end in enumerate(np.cumsum(counts).tolist()):
            share = len(order) * weights[one] / total if counts[one] else 0
            taken = int(((found < end) & (found >= end - counts[one])).sum())
            assert abs(taken - share) < 1.001
            within = [drawn[i] for i in range(end - counts[one], end)]
            assert not within or max(within) - min(within) <= 1, "none again before all"
    plain = Order(counts, None, seed)
    assert sorted(plain.sequences(7, every).tolist()) == every.tolist()


def read(
    dataset: RetroDataset, state: Any, steps: int | None, ranks: int, batch: int
) -> tuple[list[int], Any]:
    """Numbers of the sequences that all ranks read in so many steps, told by their tokens, and the state."""
    known = {dataset[i]["tokens"].tobytes(): i for i in range(len(dataset))}
    found, states = [], []
    for rank in range(ranks):
        sampler = RetroSampler(dataset, batch, rank, ranks, seed=5, weighted=False)
        if state is not None:
            sampler.load_state_dict(state)
        loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=WORKERS)
        used = 0
        for one in loader:
            used += 1
            found += [known[tokens.numpy().tobytes()] for tokens in one["tokens"]]
            if used == steps:
                break
        states.append(sampler.state_dict(used if steps is None else steps))
    assert steps is None or all(one == states[0] for one in states)
    return found, states[0]


def test_an_epoch_stopped_and_resumed_twice_has_every_sequence_once(mixed: Project) -> None:
    dataset = RetroDataset(mixed.open(), seq_len=128, k=2)
    assert len(dataset) > 2 * RANKS * BATCH + 30
    first, state = read(dataset, None, 2, RANKS, BATCH)
    # Resumed with another batch size, then with fewer ranks.
    second, state = read(dataset, state, 3, RANKS, 2)
    third, state = read(dataset, state, None, 3, BATCH)
    assert sorted(first + second + third) == list(range(len(dataset)))
    assert state["epoch"] == 1 or state["position"] > len(dataset) - 3 * BATCH
    assert first + second != sorted(first + second)


def test_each_iteration_is_the_next_epoch(mixed: Project) -> None:
    dataset = RetroDataset(mixed.open(), seq_len=128, k=2)
    sampler = RetroSampler(dataset, 4, weighted=False)
    epochs = [[i for batch in sampler for i in batch] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(dataset)))
    assert len(sampler) == -(-len(dataset) // 4)
    resumed = RetroSampler(dataset, 4, weighted=False)
    resumed.load_state_dict({**sampler.state_dict(2), "epoch": 1})
    assert [i for batch in resumed for i in batch] == epochs[1][8:]
    assert resumed.state_dict(len(resumed))["epoch"] == 2


def test_persistent_workers_read_epoch_after_epoch(mixed: Project) -> None:
    dataset = RetroDataset(mixed.open(), seq_len=128, k=2)
    sampler = RetroSampler(dataset, 4, weighted=False)
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=sampler, num_workers=2, persistent_workers=True
    )
    for epoch in range(2):
        expected = RetroSampler(dataset, 4, weighted=False)
        expected.load_state_dict({**expected.state_dict(), "epoch": epoch})
        for batch, indices in zip(loader, expected, strict=True):
            assert np.array_equal(batch["tokens"].numpy(), dataset[indices]["tokens"])


def test_sources_are_drawn_by_weight(mixed: Project) -> None:
    dataset = RetroDataset(mixed.open(), seq_len=128, k=2)
    assert [run.source for run in dataset.runs] == ["test", "small", "test"]
    assert {run.first for run in dataset.runs[1:]} == {r.first + r.count for r in dataset.runs[:-1]}
    light, heavy, more = (range(run.first, run.first + run.count) for run in dataset.runs)
    drawn = Counter(i for batch in RetroSampler(dataset, 4) for i in batch)
    share = sum(drawn[i] for i in heavy) / len(dataset)
    assert abs(share - 0.75) < 1 / len(dataset)
    for source in ([*heavy], [*light, *more]):
        times = [drawn[i] for i in source]
        assert max(times) - min(times) <= 1


def test_dropping_the_last_gives_every_rank_as_many(mixed: Project) -> None:
    dataset = RetroDataset(mixed.open(), seq_len=128, k=2)
    steps = len(dataset) // (3 * 4)
    samplers = [RetroSampler(dataset, 4, rank, 3, drop_last=True) for rank in range(3)]
    batches = [list(sampler) for sampler in samplers]
    assert [len(one) for one in batches] == [len(sampler) for sampler in samplers] == [steps] * 3
    assert {len(batch) for one in batches for batch in one} == {4}
    assert samplers[0].state_dict(steps)["epoch"] == 1


def test_a_state_of_something_else_is_refused(mixed: Project, small: Project) -> None:
    dataset = RetroDataset(mixed.open(), seq_len=128, k=2)
    state = RetroSampler(dataset, 4).state_dict()
    with pytest.raises(InputError, match="state: its seed is 0, here it is 1"):
        RetroSampler(dataset, 4, seed=1).load_state_dict(state)
    with pytest.raises(InputError, match="state: its sequences is"):
        RetroSampler(RetroDataset(small.open(), seq_len=128), 4).load_state_dict(state)
    for wrong in ({"batch_size": 0}, {"rank": 2, "ranks": 2}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            RetroSampler(dataset, **{"batch_size": 4, **wrong})
