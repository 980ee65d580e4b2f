"""Corpora and tokenizers that people met in the wild, each built by the command line."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
import zstandard
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import retro_db
from retro_db.reader.database import Database
from retro_db_pipelines.commands.cli import run
from support.formats import write_megatron
from support.projects import Project, make_project

SOURCE = random.Random(7)
WORDS = ["".join(SOURCE.choices("abcdefghijklmnop", k=SOURCE.randrange(2, 9))) for _ in range(900)]


def texts_of(count: int) -> list[str]:
    return [" ".join(SOURCE.choices(WORDS, k=SOURCE.randrange(15, 30))) for _ in range(count)]


def jsonl(texts: list[str]) -> bytes:
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)


def of_largest_window(data: bytes) -> bytes:
    """A zstd frame whose header says what `zstd --long=31` writes."""
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    frame = bytearray(compressor.compress(data) + compressor.flush())
    assert not frame[4] & 0x20, "the header has a window"
    frame[5] = (31 - 10) << 3
    return bytes(frame)


def project_of(folder: Path, tokenizer: Path | None = None, **sources: Path) -> Project:
    project = make_project(folder, ["unused"])
    project.settings["corpus"] = [
        {"name": name, "paths": [str(path)]} for name, path in sources.items()
    ]
    project.settings["tokenizer"] = (
        {"path": str(tokenizer)} if tokenizer else {"train": {"vocab_size": 400}}
    )
    return project


def test_damaged_and_odd_files_lose_nothing_unsaid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {name: tmp_path / name for name in ("cut", "long", "xz", "views", "disk")}
    for folder in folders.values():
        folder.mkdir()
    packed = gzip.compress(jsonl(texts_of(600)))
    (folders["cut"] / "big.jsonl.gz").write_bytes(packed[: -len(packed) // 100])
    (folders["cut"] / "ok.jsonl.gz").write_bytes(gzip.compress(jsonl(texts_of(50))))
    (folders["long"] / "big.jsonl.zst").write_bytes(of_largest_window(jsonl(texts_of(300))))
    first, second = (lzma.compress(jsonl(texts_of(5))) for _ in range(2))
    damaged = bytearray(second)
    damaged[7] ^= 0x40
    (folders["xz"] / "a.jsonl.xz").write_bytes(first + bytes(8) + bytes(damaged))
    values = pa.array(texts_of(6), pa.string_view())
    views = pa.DictionaryArray.from_arrays(pa.array(range(6), pa.uint32()), values)
    for name, table in (
        ("views/a.arrow", pa.table({"text": views})),
        ("disk/data-00000-of-00001.arrow", pa.table({"text": texts_of(4)})),
    ):
        with pa.ipc.new_file(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    for name in ("dataset_info.json", "state.json"):
        (folders["disk"] / name).write_text("{}")
    project = project_of(tmp_path, **folders)
    assert project.build() == 2, "more than max_bad"
    assert "600 records" not in capsys.readouterr().err
    for source in project.settings["corpus"]:
        source["max_bad"] = 0.6
    assert project.build() == 0
    lines = capsys.readouterr().out.splitlines()
    sources = {source.name: source for source in project.open().manifest.sources}
    kept, lost = sources["cut"].documents - 50, sources["cut"].rejected
    assert kept > 580
    assert 600 - 12 <= kept + lost <= 600 + 12
    assert lost > 0
    assert (sources["xz"].documents, sources["xz"].rejected) == (5, 5)
    assert [sources[name].documents for name in ("long", "views", "disk")] == [300, 6, 4]
    assert [sources[name].rejected for name in ("long", "views", "disk")] == [0, 0, 0]
    ends = lines[lines.index(next(line for line in lines if line.startswith("built"))) :]
    assert any("cut: big.jsonl.gz is damaged, about" in line for line in ends)
    assert any("xz: a.jsonl.xz is damaged, about 5 records lost" in line for line in ends)


@pytest.mark.parametrize("kind", ["array", "pretty", "columns.arrow", "columns.parquet"])
def test_files_of_another_shape_are_refused_with_the_reason(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in" / (kind if "." in kind else "a.json")
    path.parent.mkdir()
    objects = [{"text": text} for text in texts_of(3)]
    twice = pa.Table.from_arrays([pa.array(texts_of(3))] * 2, names=["text", "text"])
    if kind == "columns.arrow":
        with pa.ipc.new_file(path, twice.schema) as writer:
            writer.write_table(twice)
    elif kind == "columns.parquet":
        pq.write_table(twice, path)
    else:
        path.write_text(json.dumps(objects, indent=2 if kind == "pretty" else None))
    assert project_of(tmp_path, a=path.parent).build() == 2
    error = capsys.readouterr().err
    expected = "2 columns are named 'text'" if "." in kind else "one object a line"
    assert expected in error
    assert path.name in error
    assert error.count("\n") == 1


def tokens_of(database: Database) -> np.ndarray:
    """All tokens, without padding."""
    tokens, lengths = (database.column("chunks", name)[:] for name in ("tokens", "length"))
    return tokens[np.arange(tokens.shape[1]) < lengths[:, None]]


def unigram(folder: Path, unknown: int | None) -> Path:
    """As T5's: special tokens are pieces of the vocabulary."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(character, -4.0) for character in "abcdefghijklmnopqrstuvwxyz<>/"]
    rust = RustTokenizer(models.Unigram(pieces, unknown, False))
    rust.normalizer = normalizers.NFKC()
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.decoder = decoders.Metaspace()
    rust.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return saved(folder, rust, eos_token="</s>")  # noqa: S106


def byte_level(folder: Path, **changes: Any) -> Path:
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(texts_of(60), trainer)
    path = saved(folder, rust)
    definition = json.loads((path / "tokenizer.json").read_text())
    definition["model"] |= changes
    (path / "tokenizer.json").write_text(json.dumps(definition))
    return path


def saved(folder: Path, rust: RustTokenizer, **settings: str) -> Path:
    folder.mkdir()
    rust.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_special_tokens_in_a_text_stay_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "in.jsonl"
    corpus.write_bytes(jsonl(["words </s> and <pad> " * 20, *texts_of(5)]))
    assert project_of(tmp_path, unigram(tmp_path / "t5", 2), a=corpus).build() == 0
    database = retro_db.open(str(tmp_path / "db"))
    tokens = tokens_of(database)
    assert tokens.min() > 2
    assert (
        "kinds of text come back exactly; some characters have no token: "
        in capsys.readouterr().out
    )


def test_dropout_is_turned_off_and_the_special_tokens_map_names_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "in.jsonl"
    corpus.write_bytes(jsonl(texts_of(20)))
    tokenizer = byte_level(tmp_path / "tokenizer", dropout=0.3)
    end = RustTokenizer.from_file(str(tokenizer / "tokenizer.json")).token_to_id("<|end|>")
    (tokenizer / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    write_megatron(tmp_path / "c.bin", [np.array([40 + n, 41, 42, end]) for n in range(6)])
    files = []
    for name in ("one", "two"):
        project = project_of(tmp_path, tokenizer, a=corpus, tokens=tmp_path / "c.bin")
        project.settings["output"] = str(tmp_path / name)
        assert project.build() == 0
        assert "dropout of 0.3 turned off" in capsys.readouterr().out
        files.append(project.files())
    assert files[0] == files[1]
    assert json.loads(files[0]["tokenizer/tokenizer.json"])["model"]["dropout"] is None
    database = project.open()
    assert database.column("chunks", "length")[:].tolist()[-6:] == [3] * 6


def test_characters_without_a_token_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rust = RustTokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "c": 3}, [("a", "b")]))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    corpus = tmp_path / "in.jsonl"
    corpus.write_bytes(jsonl(["ab " * 50, "Москва"]))
    project = project_of(tmp_path, saved(tmp_path / "bpe", rust), a=corpus)
    assert project.build() == 2
    told = capsys.readouterr()
    assert "no token for 6 of 156 characters of a, more than max_bad 0.001" in told.err
    assert "some characters have no token: " in told.out
    project.settings["corpus"][0]["max_bad"] = 0.1
    assert project.build() == 0
    assert "a: 6 characters without a token were lost" in capsys.readouterr().out
    assert project.open().manifest.sources[0].characters_without_token == 6
    [reject] = map(json.loads, (project.output / "report/rejects.jsonl").read_text().splitlines())
    assert (reject["reason"], reject["detail"]) == ("no token", "6 of 6 characters")


def test_tokenizers_that_cannot_encode_are_refused_before_the_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "in.jsonl"
    corpus.write_bytes(jsonl(texts_of(5)))
    (tmp_path / "tekken").mkdir()
    (tmp_path / "tekken" / "tekken.json").write_text('{"config": {"pattern": "x"}, "vocab": []}')
    for tokenizer, reason in (
        (unigram(tmp_path / "unigram", None), "neither a token for unknown characters nor"),
        (
            tmp_path / "tekken",
            "holds no tokenizer.json and no SentencePiece .model, but tekken.json",
        ),
    ):
        assert project_of(tmp_path, tokenizer, a=corpus).build() == 2
        told = capsys.readouterr()
        assert "tokenizer.path: " in told.err
        assert reason in told.err
        assert "tokenizer  " not in told.out, "no stage began"


def test_sentencepiece_encodes_decomposed_text(tmp_path: Path) -> None:
    writer = io.BytesIO()
    sentence = "Nước ấm chảy qua những cánh đồng lúa rộng lớn ở miền bắc."
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([sentence] * 50 + texts_of(200)),
        model_writer=writer,
        model_type="bpe",
        vocab_size=200,
        minloglevel=2,
        num_threads=1,
    )
    model = tmp_path / "vi.model"
    model.write_bytes(writer.getvalue())
    text = unicodedata.normalize("NFD", sentence)
    corpus = tmp_path / "in.jsonl"
    corpus.write_bytes(jsonl([text]))
    project = project_of(tmp_path, model, a=corpus)
    assert project.build() == 0
    assert run(["verify", str(project.output), "--recompute", "1.0"]) == 0
    ids = tokens_of(project.open()).tolist()
    original = sentencepiece.SentencePieceProcessor(model_file=str(model))
    expected = original.encode(text)
    assert ids == expected
    assert original.decode(expected) == sentence
