"""A real trainer, RETRO-pytorch's model, reads a database: the example of docs/training.md."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import retro_db
from retro_db_pipelines.commands.cli import run
from support.encoders import tiny_encoder
from support.places import ROOT

EXAMPLES = ROOT / "examples"
SCRIPT = EXAMPLES / "train_retro_pytorch.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The training script as a module."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's database, of fewer documents."""
    folder = tmp_path_factory.mktemp("planted")
    command = [sys.executable, EXAMPLES / "planted.py", folder, "--documents", "24"]
    subprocess.run(command, check=True)
    arguments = ["--set", f"encoder.model={tiny_encoder()}"]
    assert run(["build", str(folder / "config.yaml"), *arguments]) == 0
    return folder / "db"


def tensors(dataset: retro_db.RetroDataset, *numbers: int) -> dict[str, torch.Tensor]:
    batch: dict[str, Any] = dict(dataset[list(numbers)])
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def held_out(database: retro_db.Database, example: ModuleType) -> retro_db.RetroDataset:
    return retro_db.RetroDataset(database, example.SEQ_LEN, example.NEIGHBORS, split="validation")


def test_neighbors_reach_no_token_before_their_continuation(
    example: ModuleType, planted: Path
) -> None:
    """Those of chunk u change what is predicted of chunk u + 1, and nothing before."""
    database = retro_db.open(str(planted))
    given = tensors(held_out(database, example), 0)
    assert (given["neighbor_ids"] >= 0).all()
    model = example.new_model(database, seed=0).eval()
    m, rows = database.manifest.chunk.tokens, given["neighbors"].shape[1]
    chance = np.random.default_rng(0)

    def logits(neighbors: torch.Tensor) -> torch.Tensor:
        batch = example.Batch.of({**given, "neighbors": neighbors}, model.pad_id)
        with torch.no_grad():
            return model(batch.tokens, batch.retrieved)[0]

    before = logits(given["neighbors"])
    for u in range(rows):
        others = given["neighbors"].clone()
        shape = others[:, u].shape
        others[:, u] = torch.from_numpy(chance.integers(0, model.pad_id, shape, dtype=np.int32))
        moved = (logits(others) - before).abs().amax(dim=1) > 1e-6
        # Position p predicts token p + 1.
        assert int(moved.nonzero()[0]) + 1 == (u + 1) * m
        assert moved[(u + 1) * m - 1 : (u + 2) * m - 1].all()


def test_the_model_is_fed_what_the_database_holds(example: ModuleType, planted: Path) -> None:
    """Tokens, targets and neighbors against rows that are looked up one by one."""
    database = retro_db.open(str(planted))
    documents = database.documents.to_pydict()
    m, pad_id = database.manifest.chunk.tokens, database.manifest.chunk.vocab_size
    ids = [
        first + i
        for first, count, split in zip(
            documents["first_chunk"], documents["chunk_count"], documents["split"], strict=True
        )
        if split == "validation"
        for i in range(count)
    ]
    dataset = held_out(database, example)
    rows = example.SEQ_LEN // m
    padded = 0
    for number in range(len(ids) // rows):
        batch = example.Batch.of(tensors(dataset, number), pad_id)
        targets = batch.targets[0].tolist()
        for u, chunk in enumerate(ids[number * rows : (number + 1) * rows]):
            length = int(database.chunks.lengths(np.array([chunk]))[0])
            tokens = database.chunks[np.array([chunk])][0].tolist()
            assert batch.tokens[0, u * m : u * m + length].tolist() == tokens[:length]
            wanted = tokens[:length] + [example.IGNORED] * (m - length)
            assert targets[max(u * m - 1, 0) : (u + 1) * m - 1] == wanted[int(u == 0) :]
            padded += m - length
            for rank, neighbor in enumerate(database.neighbors[np.array([chunk])][0, :2].tolist()):
                assert batch.retrieved[0, u, rank].tolist() == value(database, neighbor, pad_id)
    assert padded


def value(database: retro_db.Database, chunk: int, pad_id: int) -> list[int]:
    """[N, F] of one chunk, without `values`."""
    m = database.manifest.chunk.tokens
    if chunk < 0:
        return [pad_id] * 2 * m
    found: list[int] = []
    for part in (chunk, chunk + 1):
        tokens: list[int] = []
        same = (
            part < len(database)
            and len(set(database.chunks.documents(np.array([chunk, part])).tolist())) == 1
        )
        if same:
            length = int(database.chunks.lengths(np.array([part]))[0])
            tokens = database.chunks[np.array([part])][0, :length].tolist()
        found += tokens + [pad_id] * (m - len(tokens))
    return found


def test_it_trains_and_compares(example: ModuleType, planted: Path) -> None:
    steps = 8
    done = subprocess.run(
        [sys.executable, SCRIPT, planted, "--steps", str(steps)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"^first ([\d.]+), last ([\d.]+) bits a token$", done.stdout, re.MULTILINE)
    assert len(losses) == 2
    for first, last in losses:
        assert float(last) < float(first)
    table = {
        name: (float(every), float(alone))
        for name, every, alone in re.findall(
            r"^(\w+(?: \w+)*) +([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE
        )
    }
    assert list(table) == ["true neighbors", "exchanged neighbors", "trained without neighbors"]
    # Better than knowing nothing of the 1,001 tokens.
    assert all(0 < needed < np.log2(1001) for row in table.values() for needed in row)
