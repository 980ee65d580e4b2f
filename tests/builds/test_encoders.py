"""An encoder that would embed wrongly is refused by the line `check`, before anything is embedded."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import FNetConfig, FNetModel, RobertaConfig, RobertaModel

import retro_db
from retro_db.errors import InputError
from retro_db_pipelines.commands.cli import run
from support.encoders import TINY_DIMENSION, open_encoder, random_model, texts_of, tiny_encoder
from support.hostile import manifest_of, rewrite, seal
from support.projects import Project, make_project
from support.texts import python_sources


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Six modules, and a copy of the tiny encoder to change."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder(), folder)
    return make_project(tmp_path, python_sources(6), encoder={"model": str(folder)})


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = change(weights)
    save_file(changed or weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def scale_last(weights: dict[str, torch.Tensor], factor: float) -> None:
    for name in ("weight", "bias"):
        weights[f"encoder.layer.0.output.LayerNorm.{name}"] *= factor


def enlarge_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text("utf-8"))
    pieces = tokenizer["model"]["vocab"]
    pieces["quux"] = len(pieces)
    file.write_text(json.dumps(tokenizer), "utf-8")


def make_roberta(folder: Path) -> None:
    config = RobertaConfig(
        vocab_size=400, hidden_size=TINY_DIMENSION, num_hidden_layers=1, num_attention_heads=4
    )
    save_file(RobertaModel(config).state_dict(), folder / "model.safetensors", {"format": "pt"})


REFUSED: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "another prefix": (
        lambda folder: change_weights(folder, lambda w: {f"my.{k}": v for k, v in w.items()}),
        ("the weights in", "lack embeddings.LayerNorm.bias", "and 18 more", "BertModel needs"),
    ),
    "a layer too few": (
        lambda folder: change_config(folder, num_hidden_layers=2),
        ("lack encoder.layer.1.attention.output.LayerNorm.bias",),
    ),
    "a type of model": (lambda folder: change_config(folder, model_type="distilbert"), ("lack",)),
    "weights of other sizes": (make_roberta, ("cannot be loaded",)),
    "an adapter": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        ("has an adapter", "merge_and_unload"),
    ),
    "a tokenizer too large": (enlarge_tokenizer, ("its tokenizer has ids up to", "copy")),
    "values too small": (
        lambda folder: change_weights(folder, lambda w: scale_last(w, 1e-7)),
        ("float16", "set encoder.normalize: true"),
    ),
    "values too large": (
        lambda folder: change_weights(folder, lambda w: scale_last(w, 1e6)),
        ("float16's 65504", "set encoder.normalize: true"),
    ),
    "weights of zeros": (
        lambda folder: change_weights(folder, lambda w: scale_last(w, 0)),
        ("gives zeros for a text; name a trained model",),
    ),
    "modules of its own": (
        lambda folder: (folder / "modules.json").write_text('[{"type": "my.Net", "path": ""}]'),
        ("modules.json", "my.Net", "code of its own"),
    ),
    "no pooling": (
        lambda folder: (folder / "modules.json").write_text(
            '[{"type": "sentence_transformers.models.Transformer", "path": ""}]'
        ),
        ("modules.json", "a Transformer and a Pooling"),
    ),
    "a module that leads upwards": (
        lambda folder: (folder / "modules.json").write_text(
            '[{"type": "sentence_transformers.models.Transformer", "path": "../model"}]'
        ),
        ("'../model'", "not a folder beside it"),
    ),
    "a prompt that takes all": (
        lambda folder: (folder / "config_sentence_transformers.json").write_text(
            json.dumps({"prompts": {"passage": "very " * 300}})
        ),
        ("encoder.prompt: ", "256 WordPieces"),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(project: Project, what: str, capsys: Any) -> None:
    change, words = REFUSED[what]
    change(project.folder / "model")
    assert project.build("--dry-run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in ("encoder.", *words):
        assert word in error
    if "normalize: true" in error:
        assert project.build("--dry-run", "--set", "encoder.normalize=true") == 0


@pytest.mark.parametrize("prefix", ["auto_model.", "model.", "module._orig_mod.", "module.bert."])
def test_names_of_wrapped_tensors(project: Project, prefix: str) -> None:
    folder, texts = project.folder / "model", texts_of(range(1, 20))
    expected = open_encoder(model=str(folder)).encode(texts)
    change_weights(folder, lambda w: {prefix + k: v for k, v in w.items() if "pooler" not in k})
    assert np.array_equal(open_encoder(model=str(folder)).encode(texts), expected)


def test_a_model_that_padding_changes(project: Project, capsys: Any) -> None:
    """Its batches have texts of one length, so that no batch mate changes an embedding."""
    torch.manual_seed(0)
    size = json.loads((tiny_encoder() / "config.json").read_text())["vocab_size"]
    net = FNetModel(FNetConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2))
    shutil.rmtree(project.folder / "model")
    random_model(project.folder / "model", net)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_encoder() / name, project.folder / "model")
    assert project.build() == 0
    assert "batches of equal length" in capsys.readouterr().out
    assert project.open().manifest.encoder.equal_lengths
    assert run(["verify", str(project.output), "--recompute", "1"]) == 0
    encoder = open_encoder(model=str(project.folder / "model"))
    texts = texts_of(range(1, 30))
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    changed = encoder.encode(texts) - alone
    assert np.abs(changed).max() > 0.01
    encoder.model = replace(encoder.model, equal_lengths=True)
    assert np.abs(encoder.encode(texts) - alone).max() < 1e-5


def test_minus_zero_is_no_embedding(project: Project, capsys: Any) -> None:
    """One meaning in every stage: what a build counts, what it indexes, and what `verify` finds."""
    lines = [json.dumps({"text": text}) for text in (*project.texts, " \n" * 3000)]
    (project.folder / "blank.jsonl").write_text("\n".join(lines))
    blank = {"name": "test", "paths": [str(project.folder / "blank.jsonl")]}
    project.settings["corpus"] = [blank]
    assert project.build() == 0
    keyless = project.open().manifest.counts.keyless_chunks
    assert keyless > 1

    def negate(columns: dict[str, Any]) -> None:
        columns["vector"] = np.where(columns["vector"] == 0, np.float16(-0.0), columns["vector"])

    rewrite(project.output, "embeddings", negate)
    assert np.signbit(project.open().embeddings[:][-1]).all()
    capsys.readouterr()
    assert run(["verify", str(project.output), "--recompute", "1"]) == 0
    assert f"{keyless:,} have no embedding" in show(project, capsys)


def show(project: Project, capsys: Any) -> str:
    capsys.readouterr()
    assert run(["inspect", str(project.output)]) == 0
    return str(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("PCA100,IVF4,Flat", ("PCA100 cannot give 100 dimensions of 48", "at most PCA48")),
        ("PCA16,PCA20,IVF4,Flat", ("PCA20 cannot give 20 dimensions of 16",)),
        ("OPQ7,IVF4,SQ8", ("the 7 blocks of OPQ7 do not divide 48 dimensions",)),
        ("PCA40,IVF4,PQ16", ("16 sub-quantizers do not divide 40 dimensions",)),
    ],
)
def test_dimensions_of_a_key(
    project: Project, key: str, words: tuple[str, ...], capsys: Any
) -> None:
    assert project.build("--dry-run", "--set", f"index.key='{key}'") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in (f"index.key: {key}", *words):
        assert word in error


def test_a_pooling_of_another_release(db: Path, capsys: Any) -> None:
    manifest = manifest_of(db)
    manifest["encoder"]["pooling"] = "attention"
    seal(db, manifest)
    assert run(["query", str(db), "owls"]) == 2
    error = capsys.readouterr().err
    for word in ("encoder.pooling: the database was embedded by", "attention", "it knows mean, "):
        assert word in error


def test_searches_that_mean_nothing(six: Project) -> None:
    retriever = retro_db.Retriever(six.open())
    for arguments, word in (
        ({"texts": ["a"], "k": 0}, "k: 0"),
        ({"texts": ["a"], "k": 1.5}, r"k: 1\.5"),
        ({"texts": ["a", "half \ud800"]}, "texts: number 1 has half of a surrogate pair"),
        ({"texts": ["a", None]}, "texts: number 1 is a NoneType"),
        ({"texts": ["a"], "exclude": [(5, 2)]}, "exclude: number 0 goes from 5 to 2"),
        ({"texts": ["a"], "exclude": [(-3, 2)]}, "exclude: number 0 goes from -3"),
    ):
        with pytest.raises(InputError, match=word):
            retriever.search(**arguments)
    assert len(retriever.search(["a"], np.int64(2), [(3, 3)])[0]) == 1


def search_in_child(retriever: retro_db.Retriever, url: str, line: Any) -> None:
    texts = ["whales", "a longer text about iron and bread " * 5] * 40
    answers = [
        reader.search(texts, 3)[0] for reader in (retriever, retro_db.Retriever(retro_db.open(url)))
    ]
    line.send(answers)


def test_a_retriever_after_a_fork(six: Project) -> None:
    """In a forked process, as a worker of a DataLoader is: the parent's one, and a new one."""
    retriever = retro_db.Retriever(six.open())
    texts = ["whales", "a longer text about iron and bread " * 5] * 40
    expected, _ = retriever.search(texts, 3)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=search_in_child, args=(retriever, str(six.output), theirs))
    child.start()
    try:
        assert ours.poll(60), "the child hangs"
        for ids in ours.recv():
            assert np.array_equal(ids, expected)
    finally:
        child.kill()
        child.join()
