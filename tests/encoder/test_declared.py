"""What a model's folder says is what is embedded, as sentence-transformers itself embeds by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

import retro_db
from retro_db.encoder.models import TRANSFORMER_ALONE, model_sha256
from retro_db.tokens.tokenizer import Tokenizer
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.commands.demo import encoder_folder
from support.encoders import open_encoder, texts_of, tiny_encoder
from support.hostile import manifest_of, seal
from support.projects import Project, make_project
from support.texts import python_sources

LONG = "a longer text of many words, " * 20
TEXTS = [*texts_of(range(1, 60, 3)), LONG, "Numbers 1 2 3.", "UPPER and lower Case"]
HEADS: dict[str, list[Any]] = {
    "normalized": [Normalize()],
    "dense": [Dense(48, 24, activation_function=torch.nn.Tanh())],
    "dense twice, normalized": [
        Dense(48, 32, bias=False, activation_function=torch.nn.Identity()),
        Dense(32, 16, activation_function=torch.nn.ReLU()),
        Normalize(),
    ],
}


def save(folder: Path, *head: Any, pooling: str = "mean", **settings: Any) -> SentenceTransformer:
    """Saves the tiny encoder as sentence-transformers does; the model as that library loads it again."""
    torch.manual_seed(0)
    includes = settings.pop("include_prompt", True)
    length = settings.pop("max_seq_length", None)
    modules = [Transformer(str(tiny_encoder())), Pooling(48, pooling, includes), *head]
    model = SentenceTransformer(modules=modules, device="cpu", **settings)
    if length:
        model.max_seq_length = length
    model.save_pretrained(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def near(embeddings: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding, and so the ten nearest of every text are the same."""
    assert embeddings.shape == expected.shape
    differences = np.linalg.norm(embeddings - expected, axis=1)
    assert (differences <= 1e-5 * np.linalg.norm(expected, axis=1)).all()
    squares = [
        ((vectors[:, None].astype(np.float64) - vectors[None]) ** 2).sum(axis=2)
        for vectors in (embeddings, expected)
    ]
    nearest = [np.argsort(distances, axis=1, kind="stable")[:, :10] for distances in squares]
    # Those that rounding may exchange are equally near.
    swapped = np.take_along_axis(squares[1], nearest[0], 1) - np.sort(squares[1], axis=1)[:, :10]
    assert (np.abs(swapped) <= 1e-4 * squares[1].max()).all()


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]
)
def test_every_pooling(tmp_path: Path, pooling: str) -> None:
    model = save(tmp_path / "model", pooling=pooling)
    near(open_encoder(model=str(tmp_path / "model")).encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize("head", HEADS)
def test_what_follows_the_pooling(tmp_path: Path, head: str) -> None:
    model = save(tmp_path / "model", *HEADS[head], pooling="cls")
    near(open_encoder(model=str(tmp_path / "model")).encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize("length", [7, 40, 300])
def test_the_length_of_a_text(tmp_path: Path, length: int) -> None:
    model = save(tmp_path / "model", max_seq_length=length)
    texts = [*TEXTS, LONG * 5]
    encoder = open_encoder(model=str(tmp_path / "model"))
    assert encoder.model.max_length == length
    near(encoder.encode(texts), model.encode(texts))


@pytest.mark.parametrize("pooling", ["mean", "cls", "weightedmean"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts(tmp_path: Path, pooling: str, include_prompt: bool) -> None:
    prompts = {"query": "one query: ", "passage": "one passage: "}
    model = save(
        tmp_path / "model", pooling=pooling, prompts=prompts, include_prompt=include_prompt
    )
    folder = str(tmp_path / "model")
    encoder = open_encoder(model=folder)
    near(encoder.encode(TEXTS), model.encode(TEXTS, prompt_name="passage"))
    assert not encoder.encode(["", " \n"]).any()
    asked = open_encoder(model=folder, prompt="one query: ")
    near(asked.encode(TEXTS), model.encode(TEXTS, prompt_name="query"))
    near(open_encoder(model=folder, prompt="").encode(TEXTS), model.encode(TEXTS))


def test_a_default_prompt(tmp_path: Path) -> None:
    model = save(tmp_path / "model", prompts={"any": "any text: "}, default_prompt_name="any")
    near(open_encoder(model=str(tmp_path / "model")).encode(TEXTS), model.encode(TEXTS))


def test_minilm_as_it_is_published() -> None:
    texts = [text[:300] for text in python_sources(60)]
    model = SentenceTransformer(str(encoder_folder()), device="cpu")
    near(open_encoder().encode(texts), model.encode(texts))


def test_the_side_that_is_cut_and_lower_case(tmp_path: Path) -> None:
    model = save(tmp_path / "model", max_seq_length=12)
    folder = tmp_path / "model"
    before = open_encoder(model=str(folder)).encode(TEXTS)
    for file, setting in (
        ("tokenizer_config.json", {"truncation_side": "left"}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
    ):
        settings = json.loads((folder / file).read_text()) | setting
        (folder / file).write_text(json.dumps(settings))
    model = SentenceTransformer(str(folder), device="cpu")
    encoder = open_encoder(model=str(folder))
    near(encoder.encode(TEXTS), model.encode(TEXTS))
    assert not np.allclose(before[TEXTS.index(LONG)], encoder.encode([LONG])[0])


def chunk_texts(project: Project) -> list[str]:
    """The texts of all chunks, as a reader of the database has them."""
    database = project.open()
    tokenizer = Tokenizer.load(str(project.output / "tokenizer"))
    ids = np.arange(len(database))
    rows = zip(database.chunks[ids], database.chunks.lengths(ids), strict=True)
    return list(tokenizer.decode(tokens[:length] for tokens, length in rows))


def test_a_build_follows_the_folder(tmp_path: Path, capsys: Any) -> None:
    """The whole rule by the command line: in the line `check`, the manifest, the tables and a query."""
    folder = tmp_path / "model"
    model = save(
        folder,
        *HEADS["dense twice, normalized"],
        pooling="max",
        max_seq_length=20,
        prompts={"document": "a text: "},
    )
    project = make_project(tmp_path, python_sources(6), encoder={"model": str(folder)})
    assert project.build() == 0
    rule = (
        "max of at most 20 WordPieces, dense layer 2_Dense, dense layer 3_Dense, normalized, "
        "prompt 'a text: '"
    )
    assert f"16 dimensions, on cpu: {rule}" in capsys.readouterr().out
    info = project.open().manifest.encoder
    assert info.rule == rule
    assert (info.dimension, info.normalize, info.identity) == (16, True, 2)
    texts = chunk_texts(project)
    stored = project.open().embeddings[:].astype(np.float32)
    expected = model.encode_document(texts)
    # Of a chunk of white space, the prompt's WordPieces alone would be left.
    expected[[not text.strip() for text in texts]] = 0
    assert np.abs(stored - expected).max() < 1e-3
    ids, distances = retro_db.Retriever(project.open()).search(texts[:3], 1)
    assert ids[:, 0].tolist() == [0, 1, 2]
    assert not distances.any()
    assert run(["verify", str(project.output), "--recompute", "1"]) == 0
    # What was asked for in words is the rule, and another rule is another database.
    project.settings["encoder"] |= {"normalize": False}
    assert project.build() == 2
    assert "encoder.normalize was True, and is False" in capsys.readouterr().err


def make_old(db: Path) -> None:
    """Makes a manifest what format 1.4 would have had of a plain mean."""
    manifest = manifest_of(db)
    for name in ("prompt", "pools_prompt", "dense", "normalize", "equal_lengths", "identity"):
        del manifest["encoder"][name]
    settings = manifest["config"]["encoder"] | {"pooling": "mean", "max_length": 256}
    del settings["normalize"], settings["prompt"]
    manifest["config"]["encoder"] = settings
    seal(db, manifest | {"version": "1.4"})


def test_databases_of_format_1_4_keep_their_rule(tmp_path: Path, capsys: Any) -> None:
    """A plain mean and the hash of the transformer alone, whatever else the folder says."""
    folder, output = tmp_path / "model", str(tmp_path / "db")
    shutil.copytree(tiny_encoder(), folder)
    project = make_project(tmp_path, python_sources(6), encoder={"model": str(folder)})
    assert project.build() == 0
    make_old(project.output)
    # The folder says now that it is normalized.
    save(tmp_path / "other", Normalize())
    shutil.copy(tmp_path / "other" / "modules.json", folder)
    shutil.copytree(tmp_path / "other" / "1_Pooling", folder / "1_Pooling")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    assert open_encoder(model=str(folder)).model.normalize
    texts = chunk_texts(project)[:2]
    ids, distances = retro_db.Retriever(project.open()).search(texts, 1)
    assert (ids[:, 0].tolist(), distances.any()) == ([0, 1], False)
    assert run(["verify", output, "--recompute", "1"]) == 0
    # A new build follows the folder, and says first what would be lost.
    assert project.build() == 2
    assert "encoder.normalize was False, and is True" in capsys.readouterr().err
    added = tmp_path / "added.jsonl"
    lines = [json.dumps({"id": f"n-{i}", "text": t}) for i, t in enumerate(python_sources(9)[6:])]
    added.write_text("\n".join(lines))
    source = {"name": "test", "paths": [str(added)], "id": "id"}
    project.settings["corpus"] = [source]
    assert project.build("--append") == 0
    info = project.open().manifest.encoder
    assert (info.pooling, info.normalize, info.max_length, info.identity) == ("mean", False, 256, 1)
    lengths = np.linalg.norm(project.open().embeddings[:].astype(np.float32), axis=1)
    assert (np.abs(lengths - 1) > 0.1).all()
    assert run(["verify", output, "--recompute", "1"]) == 0
    project.settings["encoder"]["normalize"] = True
    capsys.readouterr()
    assert project.build("--append") == 2
    assert "encoder.normalize: True, but the database has False" in capsys.readouterr().err


def test_the_hash_covers_all_that_a_folder_says(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, Dense(48, 24))
    hashes = {model_sha256(folder)}
    alone = model_sha256(folder, TRANSFORMER_ALONE)
    changed = (
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    )
    for name in changed:
        with (folder / name).open("ab") as file:
            file.write(b" ")
        hashes.add(model_sha256(folder))
    assert len(hashes) == len(changed) + 1
    assert model_sha256(folder, TRANSFORMER_ALONE) == alone
    # Records and databases of earlier releases know folders with a transformer alone by the same hash.
    assert model_sha256(tiny_encoder()) == model_sha256(tiny_encoder(), TRANSFORMER_ALONE)
