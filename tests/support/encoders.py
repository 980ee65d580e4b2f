"""Encoders, and texts of as many WordPieces as are wanted."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel

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
