"""Encoders, and texts of as many WordPieces as are wanted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import BertConfig, BertModel, PreTrainedModel

from retro_db.config import EncoderConfig
from retro_db.encoder.encoder import Encoder
from retro_db.encoder.models import describe_model, resolve_model
from retro_db_pipelines.commands.demo import encoder_folder

WORDS = "the time of this and one day new people world where many water long".split()  # noqa: SIM905


def config(**settings: object) -> EncoderConfig:
    return EncoderConfig.model_validate({"model": str(encoder_folder())} | settings)


def open_encoder(threads: int = 1, **settings: object) -> Encoder:
    wanted = config(**settings)
    return Encoder(resolve_model(wanted.model), describe_model(wanted), threads)


def texts_of(lengths: range) -> list[str]:
    """A text of each so many words, every one a single WordPiece."""
    return [" ".join(WORDS[i % len(WORDS)] for i in range(n)) for n in lengths]


def random_model(folder: Path, model: PreTrainedModel) -> Path:
    """Random weights with the tokenizer of the test model."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (encoder_folder() / name).is_file():
            shutil.copy(encoder_folder() / name, folder)
    return folder


# Divided by 48, as the keys of MiniLM are: index keys with PQ48 fit both.
TINY_DIMENSION = 48
_TINY = "RETRO_DB_TINY_ENCODER"
_FREQUENT = 6000


def tiny_encoder() -> Path:
    """One layer of random weights, always the same ones: for tests in which any embedding will do.

    Its WordPieces are single characters and the most frequent ones of the test model's.
    """
    return Path(os.environ[_TINY])


def make_tiny(folder: Path) -> None:
    """Makes it, if no other process has, for this one and those that it starts."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _make_tiny(folder)
    os.environ[_TINY] = str(folder)


def _make_tiny(folder: Path) -> None:
    torch.manual_seed(0)
    size = _make_tiny_tokenizer(folder)
    config = BertConfig(
        vocab_size=size,
        hidden_size=TINY_DIMENSION,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=2 * TINY_DIMENSION,
    )
    BertModel(config).eval().save_pretrained(folder)


def _make_tiny_tokenizer(folder: Path) -> int:
    """The test model's tokenizer with fewer WordPieces; how many."""
    folder.mkdir(parents=True)
    shutil.copy(encoder_folder() / "tokenizer_config.json", folder)
    tokenizer: dict[str, Any] = json.loads((encoder_folder() / "tokenizer.json").read_text("utf-8"))
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    special = [added["content"] for added in tokenizer["added_tokens"]]
    pieces = [
        piece
        for piece, number in sorted(ids.items(), key=lambda item: item[1])
        if piece in special
        or (
            not piece.startswith("[unused")
            and (number < _FREQUENT or len(piece.removeprefix("##")) == 1)
        )
    ]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer["model"]["vocab"] = numbers
    for added in tokenizer["added_tokens"]:
        added["id"] = numbers[added["content"]]
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [numbers[piece] for piece in token["tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    return len(pieces)
