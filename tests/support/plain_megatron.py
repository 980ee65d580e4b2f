"""What Megatron-LM's Retro trainer reads from a project, by its rules token by token: slow and plain.

Nothing of retro_db is used. The rules are those of megatron-core 0.15, whose own reader is asked in
tests/runners/test_megatron.py.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np


class IndexedDataset:
    """A .bin and its .idx, byte by byte."""

    def __init__(self, prefix: Path) -> None:
        raw = prefix.with_name(f"{prefix.name}.idx").read_bytes()
        magic, version, code, sequences, documents = struct.unpack_from("<9sQBQQ", raw)
        assert (magic, version) == (b"MMIDIDX\x00\x00", 1)
        self.type = {8: np.dtype("<u2"), 4: np.dtype("<i4")}[code]
        at = 34
        self.lengths = np.frombuffer(raw, "<i4", sequences, at)
        self.pointers = np.frombuffer(raw, "<i8", sequences, at + 4 * sequences)
        bounds = np.frombuffer(raw, "<i8", documents, at + 12 * sequences)
        assert bounds.tolist() == list(range(sequences + 1))
        assert len(raw) == at + 12 * sequences + 8 * documents
        self.bytes = prefix.with_name(f"{prefix.name}.bin").read_bytes()
        assert len(self.bytes) == self.lengths.sum(dtype=np.int64) * self.type.itemsize

    def get(self, document: int, start: int, end: int) -> list[int]:
        assert 0 <= start <= end <= self.lengths[document]
        begin = int(self.pointers[document]) + start * self.type.itemsize
        return np.frombuffer(self.bytes, self.type, end - start, begin).tolist()


@dataclass
class Sample:
    """One sample: the corpus, the document and the offset that each token is from, and neighbors' rows."""

    corpus: int
    places: list[tuple[int, int]]
    tokens: list[int]
    rows: np.ndarray
    neighbors: np.ndarray


class PlainProject:
    """A project, read as the trainer reads it."""

    def __init__(self, project: Path, end: int) -> None:
        self.project, self.end = project, end
        self.config: dict[str, Any] = json.loads((project / "config.json").read_text())
        infos = json.loads((project / "db" / "indexed_dataset_infos.json").read_text())
        self.corpora = [IndexedDataset(project / "data" / info["prefix"]) for info in infos]
        paths = self.config["retro_gpt_data_path"]
        assert paths[1::2] == [info["prefix"] for info in infos]
        self.weights = [float(weight) for weight in paths[::2]]
        with h5py.File(project / "db" / "merged" / "train.hdf5") as file:
            self.chunks = file["chunks"][:]

    def size(self, split: str) -> int:
        config = self.config
        train, batch = config["retro_gpt_train_samples"], config["retro_gpt_global_batch_size"]
        evaluations = train // batch // config["retro_gpt_eval_interval"] + 1
        return train if split == "train" else evaluations * config["retro_gpt_eval_iters"] * batch

    def chunk(self, row: int) -> list[int]:
        """A row of the table of chunks, as `DBDataset` reads it."""
        row = row % len(self.chunks)
        corpus, document, start, end, _ = self.chunks[row].tolist()
        tokens = self.corpora[corpus].get(document, start, end)
        length = self.config["retro_gpt_chunk_length"]
        assert 0 < len(tokens) <= length
        return tokens + [self.end] * (length - len(tokens))

    def samples(self, split: str, k: int) -> Iterator[Sample]:
        """All of a split, as `RetroDataset` gives them."""
        length, count = self.config["retro_gpt_seq_length"], self.size(split)
        rows = self._neighbor_rows(split)
        chunks = length // self.config["retro_gpt_chunk_length"]
        assert rows.shape[0] == count * chunks
        shares = np.array(self.weights) / sum(self.weights)
        orders = [
            self._ordered(number, split, math.ceil(math.ceil(count * share) * 1.005))
            for number, share in enumerate(shares.tolist())
        ]
        taken = np.zeros(len(shares), np.int64)
        for number in range(count):
            # As build_blending_indices.
            corpus = int(np.argmax(shares / shares.sum() * max(number, 1) - taken))
            places = orders[corpus][taken[corpus]]
            taken[corpus] += 1
            own = rows[number * chunks : (number + 1) * chunks, :k]
            found = [[self.chunk(r) + self.chunk(r + 1) for r in row] for row in own.tolist()]
            tokens = [self.corpora[corpus].get(d, o, o + 1)[0] for d, o in places]
            yield Sample(corpus, places, tokens, own, np.array(found))

    def _neighbor_rows(self, split: str) -> np.ndarray:
        folder = self.project / "query" / self.config["retro_neighbor_dirs"][split]
        block, found = self.config["retro_block_size"], []
        for path in sorted(folder.iterdir()):
            start, end = map(int, path.stem.split("-"))
            assert start == len(found) * block
            with h5py.File(path) as file:
                found.append(file["neighbors"][:])
            assert found[-1].dtype == np.int64
            assert len(found[-1]) == end - start <= block
        return np.concatenate(found)

    def _ordered(self, corpus: int, split: str, count: int) -> list[list[tuple[int, int]]]:
        sizes, config = self.corpora[corpus].lengths, self.config
        train, valid = parted(config["retro_gpt_split"], len(sizes))
        documents = train if split == "train" else valid
        return ordered(
            sizes, documents, count, config["retro_gpt_seq_length"], config["retro_gpt_seed"]
        )


def parted(split: str, documents: int) -> tuple[range, range]:
    """Documents for training and for validation, as BlendedMegatronDatasetBuilder parts them."""
    parts = np.array([float(part) for part in split.split(",")])
    shares = (parts / parts.sum()).tolist()
    ends = [round(shares[0] * float(documents)), round((shares[0] + shares[1]) * float(documents))]
    return range(ends[0]), range(*ends)


def ordered(
    sizes: np.ndarray, documents: range, count: int, length: int, seed: int
) -> list[list[tuple[int, int]]]:
    """Samples of some documents, as `GPTDataset` orders them: document and offset of each token."""
    epoch, epochs = int(sizes[list(documents)].sum()), 1
    while epochs * epoch < count * length + 1:
        epochs += 1
    chance = np.random.RandomState(seed)
    before = ((epochs - 1) * epoch - 1) // length
    apart = epochs > 1 and count - before < int(0.8 * ((epoch - 1) // length))
    order: list[int] = []
    for group in [epochs - 1, 1] if apart else [epochs]:
        several = np.tile(np.array(documents, np.int32), group)
        chance.shuffle(several)
        order += several.tolist()
    stream = [(document, offset) for document in order for offset in range(sizes[document])]
    total = (len(stream) - 1) // length
    cut = [stream[n * length : (n + 1) * length + 1] for n in range(total)]
    numbers: list[int] = []
    for bounds in [(0, before), (before, total)] if apart else [(0, total)]:
        group_numbers = np.arange(*bounds, dtype=np.uint32)
        chance.shuffle(group_numbers)
        numbers += group_numbers.tolist()
    return [cut[number] for number in numbers]
