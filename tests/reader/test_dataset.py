"""What a trainer reads."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from retro_db import RetroDataset
from retro_db.errors import InputError
from support.projects import Project


def test_examples_against_the_tables_one_by_one(small: Project) -> None:
    database = small.open()
    documents = [d for d in database.documents.to_pylist() if d["split"] == "train"]
    rows = [
        (number, d["first_chunk"] + i)
        for number, d in enumerate(documents)
        for i in range(d["chunk_count"])
    ]
    dataset = RetroDataset(database, seq_len=512, k=3)
    assert len(dataset) == -(-len(rows) // 8)
    pad = database.manifest.chunk.pad_id
    for index in range(len(dataset)):
        example = dataset[index]
        own = rows[index * 8 : index * 8 + 8]
        sources = [documents[number] for number, _ in own]
        ranges = [range(d["first_chunk"], d["first_chunk"] + d["chunk_count"]) for d in sources]
        assert example["tokens"].shape == example["mask"].shape == (512,)
        assert example["neighbors"].shape == example["neighbor_mask"].shape == (8, 3, 128)
        for u, (number, chunk) in enumerate(own):
            part = slice(u * 64, u * 64 + 64)
            length = int(database.chunks.lengths([chunk])[0])
            assert example["tokens"][part].tolist() == database.chunks[chunk].tolist()
            assert example["mask"][part].tolist() == [True] * length + [False] * (64 - length)
            segments = example["segment_ids"][part]
            assert (segments[:length] == number - own[0][0]).all()
            assert (segments[length:] == -1).all()
            stored = [int(i) for i in database.neighbors[chunk] if i >= 0]
            usable = [i for i in stored if not any(i in held for held in ranges)][:3]
            assert example["neighbor_ids"][u].tolist() == usable + [-1] * (3 - len(usable))
            for rank, neighbor in enumerate(usable):
                value = database.chunks.values([neighbor])[0]
                assert example["neighbors"][u, rank].tolist() == value.tolist()
        for u in range(len(own), 8):
            part = slice(u * 64, u * 64 + 64)
            assert not example["mask"][part].any()
            assert (example["tokens"][part] == pad).all()
            assert (example["neighbor_ids"][u] == -1).all()
        absent = example["neighbor_ids"] < 0
        assert not example["neighbor_mask"][absent].any()
        assert (example["neighbors"][~example["neighbor_mask"]] == pad).all()


def test_each_document_by_itself(small: Project) -> None:
    database = small.open()
    documents = [d for d in database.documents.to_pylist() if d["split"] == "train"]
    dataset = RetroDataset(database, seq_len=256, k=3, packing="document")
    parts = [(d, first) for d in documents for first in range(0, d["chunk_count"], 4)]
    assert len(dataset) == len(parts)
    for example, (document, first) in zip(dataset, parts, strict=True):
        own = np.arange(first, min(first + 4, document["chunk_count"])) + document["first_chunk"]
        lengths = np.concatenate([database.chunks.lengths(own), np.zeros(4 - len(own), int)])
        mask = (np.arange(64) < lengths[:, None]).reshape(-1)
        assert (example["mask"] == mask).all()
        assert (example["segment_ids"] == np.where(mask, 0, -1)).all()
        text = example["tokens"][: len(own) * 64]
        assert (text.reshape(-1, 64) == database.chunks[own]).all()
        assert (example["neighbor_ids"][: len(own)] == database.neighbors[own][:, :3]).all()
        assert (example["neighbor_ids"][len(own) :] == -1).all()


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_the_validation_split_is_read_with_its_neighbors(small: Project, packing: Any) -> None:
    database = small.open()
    dataset = RetroDataset(database, seq_len=256, k=20, packing=packing, split="validation")
    expected, found = [], []
    for document in database.documents.to_pylist():
        if document["split"] == "validation":
            ids = np.arange(document["chunk_count"]) + document["first_chunk"]
            expected += database.neighbors[ids].tolist()
    for example in dataset:
        present = example["mask"].reshape(4, 64)[:, 0]
        found += example["neighbor_ids"][present].tolist()
    assert found == expected
    assert len(dataset.runs) == 1


def test_neighbor_masks_are_the_lengths_of_chunk_and_continuation(small: Project) -> None:
    database = small.open()
    documents = database.documents.to_pylist()
    last_chunks = {d["first_chunk"] + d["chunk_count"] - 1 for d in documents}
    seen = set()
    for example in RetroDataset(database, seq_len=256, k=4):
        for neighbor, mask in zip(
            example["neighbor_ids"].reshape(-1),
            example["neighbor_mask"].reshape(-1, 128),
            strict=True,
        ):
            if neighbor < 0:
                continue
            length = int(database.chunks.lengths([neighbor])[0])
            ends = int(neighbor) in last_chunks
            after = 0 if ends else int(database.chunks.lengths([neighbor + 1])[0])
            expected = np.concatenate([np.arange(64) < length, np.arange(64) < after])
            assert (mask == expected).all()
            seen.add(ends)
    assert seen == {True, False}


def test_a_batch_is_its_examples(small: Project) -> None:
    dataset = RetroDataset(small.open(), seq_len=256, k=2)
    indices = [3, 0, len(dataset) - 1, 3, -1]
    batch = dataset[indices]
    for row, example in enumerate(dataset.__getitems__(indices)):
        for name, value in dataset[indices[row]].items():
            assert np.array_equal(value, example[name])
            assert np.array_equal(value, batch[name][row])  # type: ignore[literal-required]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_torch_reads_it_with_workers(small: Project, context: str) -> None:
    dataset = RetroDataset(small.open(), seq_len=256, k=2)
    dataset[0]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=2, multiprocessing_context=context
    )
    tokens = torch.cat([batch["tokens"] for batch in loader])
    expected = np.stack([dataset[i]["tokens"] for i in range(len(dataset))])
    assert np.array_equal(tokens.numpy(), expected)


def test_it_travels_by_pickle_without_its_files(small: Project) -> None:
    dataset = RetroDataset(small.open(), seq_len=128, k=2)
    example = dataset[1]
    data = pickle.dumps(dataset)
    assert len(data) < 20_000
    copy = pickle.loads(data)  # noqa: S301 - our own bytes
    assert all(np.array_equal(copy[1][name], value) for name, value in example.items())
    assert repr(copy) == repr(dataset)


def test_wrong_settings_are_refused(small: Project) -> None:
    database = small.open()
    with pytest.raises(InputError, match="seq_len: 100 is not a multiple"):
        RetroDataset(database, seq_len=100)
    with pytest.raises(InputError, match="k: 21"):
        RetroDataset(database, k=21)
    with pytest.raises(InputError, match="packing: tight is unknown; known: packed, document"):
        RetroDataset(database, packing="tight")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="split: test is unknown; known: train, validation"):
        RetroDataset(database, split="test")
    with pytest.raises(InputError, match="queries: a is not in the database; known: none"):
        RetroDataset(database, queries="a")
    with pytest.raises(IndexError):
        RetroDataset(database)[10_000]
