"""Exports, read as Megatron's trainer reads them, against the database."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from retro_db.export.corpora import Documents, balanced
from retro_db.export.samples import CorpusSamples
from retro_db.reader.database import Database
from retro_db_pipelines.commands.cli import run
from support.disks import failing_disk_at
from support.exports import OPTIONS, SAMPLES, SEQ_LEN, K, M, export
from support.plain_megatron import PlainProject, Sample, ordered, parted
from support.projects import Project, make_project
from support.texts import python_sources


class Expected:
    """What the database says of a sample."""

    def __init__(self, database: Database, end: int) -> None:
        self.database, self.end = database, end
        self.table = database.documents.to_pylist()
        self.removed = set(database.removed.tolist())
        names = [source.name for source in database.manifest.sources]
        self.numbers: dict[tuple[str, int], list[int]] = {
            (split, number): [
                row
                for row, document in enumerate(self.table)
                if (document["split"], document["source"]) == (split, name)
                and document["chunk_count"]
                and row not in self.removed
            ]
            for split in ("train", "validation")
            for number, name in enumerate(names)
        }

    def chunk(self, ids: int, width: int) -> list[int]:
        """A chunk's tokens, or N and F, in place of padding the end."""
        chunks = self.database.chunks
        values = chunks.values([ids])[0][:width].tolist()
        lengths = chunks.value_lengths([ids])[0].tolist()
        inside = [i % M < lengths[i // M] for i in range(width)]
        return [t if there else self.end for t, there in zip(values, inside, strict=True)]

    def check(self, sample: Sample, split: str, first: int) -> int:
        """Compares one sample; how many neighbors it has."""
        rows = [self.numbers[split, sample.corpus][d - first] for d, _ in sample.places]
        banned = set(rows)
        assert (sample.rows >= 0).all()
        there = 0
        for number in range(SEQ_LEN // M):
            offsets = [offset for _, offset in sample.places[number * M : (number + 1) * M]]
            own = set(rows[number * M : (number + 1) * M])
            assert len(own) == 1
            assert offsets[0] % M == 0
            assert offsets == list(range(offsets[0], offsets[0] + M))
            document = self.table[own.pop()]
            place = offsets[0] // M
            tokens, near = [self.end] * M, []
            if place < document["chunk_count"]:
                chunk = document["first_chunk"] + place
                tokens = self.chunk(chunk, M)
                stored = [i for i in self.database.neighbors[chunk].tolist() if i >= 0]
                homes = self.database.chunks.documents(stored).tolist()
                near = [i for i, home in zip(stored, homes, strict=True) if home not in banned][:K]
                assert not self.removed & set(homes)
                assert all(self.table[home]["split"] == "train" for home in homes)
            assert sample.tokens[number * M : (number + 1) * M] == tokens
            expected = [self.chunk(i, 2 * M) for i in near]
            expected += [[self.end] * 2 * M] * (K - len(near))
            assert sample.neighbors[number].tolist() == expected
            there += len(near)
        return there


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
def test_samples_are_in_megatrons_order(
    rows: list[int], count: int, chunks: int, seed: int
) -> None:
    """One epoch or several, the last shuffled with the others or apart, empty documents among them."""
    counts = np.array(rows)
    firsts = 100 * np.arange(len(rows))
    documents = Documents(firsts, np.maximum(counts * M - 5, 0), counts)
    order = CorpusSamples(documents, count, chunks, M, seed)
    expected = ordered(counts * M, range(len(rows)), count, chunks * M, seed)
    assert len(expected) >= count
    for number, places in enumerate(expected):
        found = order.of(np.array([number]))
        begins = places[::M]
        assert found.firsts[0].tolist() == [100 * document for document, _ in begins]
        assert found.ids[0].tolist() == [100 * d + offset // M for d, offset in begins]


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=9))
def test_one_share_parts_every_corpus(counts: list[tuple[int, int]]) -> None:
    split = ",".join(str(sum(column)) for column in zip(*counts, strict=True)) + ",0"
    for (train, valid), room in zip(counts, balanced([list(c) for c in counts]), strict=True):
        assert room[0] >= train
        assert room[1] >= valid
        assert [len(part) for part in parted(split, sum(room))] == room
    if len(counts) == 1:
        assert balanced([list(counts[0])]) == [list(counts[0])]


@pytest.mark.parametrize("samples", SAMPLES)
def test_every_sample_is_the_databases(two: Project, tmp_path: Path, samples: str) -> None:
    out = tmp_path / "project"
    options = [*OPTIONS, "--eval-iters", "3", *SAMPLES[samples]]
    assert export(two, out, *options) == 0
    end = AutoTokenizer.from_pretrained(out / "tokenizer").eos_token_id
    project, database = PlainProject(out, end), two.open()
    expected = Expected(database, end)
    missing, corpora = 0, set()
    for name, split in (("train", "train"), ("valid", "validation")):
        firsts = [0, 0]
        if split == "validation":
            infos = json.loads((out / "db" / "indexed_dataset_infos.json").read_text())
            firsts = [info["n_docs_train"] for info in infos]
        for sample in project.samples(name, K):
            there = expected.check(sample, split, firsts[sample.corpus])
            missing += K * SEQ_LEN // M - there
            corpora.add((sample.corpus, name))
    assert missing, "rows that are short are what goes wrong elsewhere"
    assert len(corpora) == 4


def test_no_row_of_the_table_leads_into_another_document(two: Project, tmp_path: Path) -> None:
    out = tmp_path / "project"
    assert export(two, out, *OPTIONS, "--eval-iters", "1") == 0
    end = AutoTokenizer.from_pretrained(out / "tokenizer").eos_token_id
    project, database = PlainProject(out, end), two.open()
    expected = Expected(database, end)
    nothing = [end] * M
    # What is left is what a reader makes of -1.
    assert [project.chunk(row) for row in (-1, 0, 1)] == [nothing] * 3
    row = 2
    kept = sorted(
        r for (split, _), rows in expected.numbers.items() if split == "train" for r in rows
    )
    whole = 0
    for document in (expected.table[r] for r in kept):
        first, count = document["first_chunk"], document["chunk_count"]
        for chunk in range(first, first + count):
            assert project.chunk(row) + project.chunk(row + 1) == expected.chunk(chunk, 2 * M)
            row += 1
        assert project.chunk(row) == nothing
        whole += database.chunks.lengths([first + count - 1])[0] == M
        row += 1
    assert row == len(project.chunks)
    assert whole, "a document of whole chunks has its end in a chunk of its own"
    with h5py.File(out / "db" / "merged" / "train.hdf5") as file:
        assert {name: (file[name].dtype, file[name].shape) for name in file} == {
            "chunks": (np.uint32, (row, 5)),
            "doc_offsets": (np.uint64, (len(kept), 3)),
            "n_written": (np.uint64, (1,)),
        }
        assert file["n_written"][0] == file["doc_offsets"][-1, 2] == row
        assert (np.diff(file["doc_offsets"][:, 2].astype(int)) > 0).all()


def test_a_project_has_what_its_trainer_reads(two: Project, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "project"
    assert export(two, out, *OPTIONS, "--eval-iters", "3", "--samples", "100", "--seed", "7") == 0
    shown = capsys.readouterr().out
    assert "100 to train, 15 to evaluate, of 128 tokens" in shown
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    # 800 rows: one file, its numbers as wide as Megatron writes them.
    assert files == {
        "config.json",
        "data/corpus-000.bin",
        "data/corpus-000.idx",
        "data/corpus-001.bin",
        "data/corpus-001.idx",
        "db/indexed_dataset_infos.json",
        "db/merged/train.hdf5",
        "db/merged/valid.hdf5",
        "query/train/0000-0800.hdf5",
        "query/valid/0000-0120.hdf5",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }
    config = json.loads((out / "config.json").read_text())
    expected = Expected(two.open(), 0)
    train, valid = (
        sum(len(rows) for (split, _), rows in expected.numbers.items() if split == name)
        for name in ("train", "validation")
    )
    assert f"--split {train},{valid},0" in shown
    # All that load_retro_args in megatron/training/arguments.py asks for.
    assert config == {
        "retro_bert_tokenizer_type": None,
        "retro_bert_vocab_file": None,
        "retro_block_size": 100_000,
        "retro_gpt_chunk_length": M,
        "retro_gpt_data_cache_path": None,
        "retro_gpt_data_path": ["0.3", "corpus-000", "0.9", "corpus-001"],
        "retro_gpt_eval_interval": 40,
        "retro_gpt_eval_iters": 3,
        "retro_gpt_global_batch_size": 5,
        "retro_gpt_merge_file": None,
        "retro_gpt_seed": 7,
        "retro_gpt_seq_length": SEQ_LEN,
        "retro_gpt_split": f"{train},{valid},0",
        "retro_gpt_tokenizer_model": "tokenizer",
        "retro_gpt_tokenizer_type": "HuggingFaceTokenizer",
        "retro_gpt_train_samples": 100,
        "retro_gpt_vocab_file": None,
        "retro_neighbor_dirs": {"train": "train", "valid": "valid", "test": None},
    }


def test_without_validation_text(two: Project, tmp_path: Path) -> None:
    out = tmp_path / "project"
    assert export(two, out, *OPTIONS, "--eval-iters", "0") == 0
    config = json.loads((out / "config.json").read_text())
    assert config["retro_neighbor_dirs"]["valid"] is None
    assert config["retro_gpt_split"].endswith(",0,0")
    assert not (out / "query" / "valid").exists()
    assert not (out / "db" / "merged" / "valid.hdf5").exists()


def test_neighbors_lie_in_files_of_whole_samples(
    two: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retro_db.export.project._BLOCK", 100)
    assert export(two, tmp_path / "parts", *OPTIONS, "--eval-iters", "3") == 0
    monkeypatch.undo()
    assert export(two, tmp_path / "whole", *OPTIONS, "--eval-iters", "3") == 0
    parts, whole = (PlainProject(tmp_path / name, 0) for name in ("parts", "whole"))
    assert parts.config["retro_block_size"] == 96
    assert len(list((tmp_path / "parts" / "query" / "train").iterdir())) > 3
    for split in ("train", "valid"):
        assert (parts._neighbor_rows(split) == whole._neighbor_rows(split)).all()


def test_mistakes_are_named(
    two: Project, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "project"
    out.mkdir()
    assert export(two, out) == 2
    assert "exists already; name a new folder" in capsys.readouterr().err
    out.rmdir()
    assert export(two, out, "--seq-len", "100") == 2
    assert "seq_len: 100 is not a multiple of the chunk length 16" in capsys.readouterr().err
    assert export(two, out, "-k", "21") == 2
    assert "k: 21 is not between 1 and the 20 neighbors stored" in capsys.readouterr().err
    assert export(two, out, "--samples", "255") == 2
    assert "samples: 255 do not make a batch of 256; give more" in capsys.readouterr().err
    assert export(two, out, "--end-token", "</s>") == 2
    assert "has no token </s>; name the token that ends documents" in capsys.readouterr().err
    assert run(["export", str(two.output), "--to", "megatron", "memory://project"]) == 2
    assert "is not a local folder; export to one and copy it" in capsys.readouterr().err
    assert run(["export", str(two.output), "--to", "another", str(out)]) == 2
    assert "'another' is not 'megatron'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert export(two, out) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "h5py is missing; install it with the extra megatron" in message
    assert "pip install -e '.[megatron]' in a clone of the repository" in message
    assert not list(tmp_path.iterdir())


def test_a_source_without_validation_text_is_named(tmp_path: Path, capsys: Any) -> None:
    project = make_project(tmp_path, python_sources(30), split={"validation": 0.2})
    (tmp_path / "one.txt").write_text("A single document of a source.")
    project.settings["corpus"].append({"name": "one", "paths": [str(tmp_path / "one.txt")]})
    assert project.build() == 0
    splits = {d["source"]: d["split"] for d in project.open().documents.to_pylist()}
    out = tmp_path / "project"
    capsys.readouterr()
    options = ["--seq-len", "64", "--batch-size", "1"]
    assert export(project, out, *options) == 2
    lacking = {"train": "validation", "validation": "train"}[splits["one"]]
    assert f"the source one has no {lacking} document" in capsys.readouterr().err
    assert export(project, out, *options, "--eval-iters", "0") == 0


def test_another_token_may_end_documents(two: Project, tmp_path: Path) -> None:
    out = tmp_path / "project"
    assert export(two, out, *OPTIONS, "--eval-iters", "0", "--end-token", "!") == 0
    end = AutoTokenizer.from_pretrained(out / "tokenizer").eos_token_id
    assert end == AutoTokenizer.from_pretrained(two.output / "tokenizer").encode("!")[0]
    assert PlainProject(out, end).chunk(0) == [end] * M


def test_a_failure_leaves_nothing(
    two: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "project"
    with failing_disk_at("train.hdf5", monkeypatch):
        assert export(two, out, *OPTIONS) == 3
    assert not list(tmp_path.iterdir())
    assert export(two, out, *OPTIONS, "--eval-iters", "1") == 0
    shutil.rmtree(out)
