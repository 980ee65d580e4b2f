"""A model tried on a few texts, before anything is embedded: what it would do wrong is known then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from retro_db.config import EncoderConfig
from retro_db.encoder.batching import Tokenized
from retro_db.encoder.encoder import Encoder
from retro_db.encoder.models import CPU, CPU_BATCH_TOKENS, EncoderModel, reason_of, resolve_model
from retro_db.errors import DeviceMemoryError, ModelError

_SHORT = "A short text."
_WORDS = (
    "The quick brown fox jumps over the lazy dog, and many more words of a longer text follow. "
)
# WordPieces of the long text at most: models that take thousands are not tried on so many.
_LONGEST = 512
# Largest change of an embedding, as a share of its length, that is rounding alone.
_TOLERANCES = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 5e-3}
# Only beyond this multiple of it is a model refused.
_DOUBT = 3
# Halves keep 11 binary digits, but fewer below 6e-5.
_MOST_LOST = 1e-2


def try_model(config: EncoderConfig, model: EncoderModel) -> EncoderModel:
    """Embeds a short text alone and beside a long one, on this machine's CPU.

    Args:
        config: Configuration of the encoder.
        model: The model as described.

    Returns:
        The model, with `equal_lengths` if padding would change its embeddings.

    Raises:
        ModelError: The model cannot be loaded or cannot embed, batch mates of the same length change its
            embeddings, or float16 cannot hold them.
    """
    folder = resolve_model(config.model)
    encoder = Encoder(folder, replace(model, device=CPU, batch_tokens=CPU_BATCH_TOKENS))
    encoder.device.use()
    window = encoder.tokenize([_SHORT, _WORDS * (_LONGEST // 16)])
    where = f"encoder.model: {folder}"
    if not window.lengths.all():
        raise ModelError(
            f"encoder.prompt: it takes all of the {model.max_length} WordPieces of a text; give a shorter "
            "one, or a larger encoder.max_length"
        )
    try:
        encoder.check_tokens()
        alone = np.concatenate([_embed(encoder, window, [row]) for row in (0, 1)])
        both = _embed(encoder, window, [0, 1])
        twins = _embed(encoder, _twins(window), [0, 1])[:1]
    except (DeviceMemoryError, ModelError):
        raise
    except Exception as error:  # a model of another kind can raise any exception
        raise ModelError(
            f"{where} cannot embed a text ({type(error).__name__}: {reason_of(error)}); name an encoder "
            "such as BERT"
        ) from error
    _check_values(where, alone, model)
    tolerance = _TOLERANCES[model.dtype]
    if _change(alone, both) <= tolerance:
        return model
    if _change(alone[:1], twins) <= _DOUBT * tolerance:
        return replace(model, equal_lengths=True)
    raise ModelError(
        f"{where} embeds a text otherwise beside another of the same length, or in every pass; name an "
        "encoder such as BERT"
    )


def _embed(encoder: Encoder, window: Tokenized, rows: list[int]) -> np.ndarray:
    """Embeds rows in one forward pass: float32 [n, d]."""
    ids, weights = window.padded(np.array(rows), encoder.pad_id)
    embedded: torch.Tensor = encoder.forward(ids, weights, window.lengths[rows])
    return embedded.numpy()


def _twins(window: Tokenized) -> Tokenized:
    """The short text, and its WordPieces in another order."""
    count = int(window.lengths[0])
    ids = window.ids[:count]
    return Tokenized(
        texts=[window.texts[0]] * 2,
        ids=np.concatenate([ids, ids[:1], ids[-2:0:-1], ids[-1:]]) if count > 2 else ids.repeat(2),
        weights=np.tile(window.weights[:count], 2),
        starts=np.array([0, count]),
        lengths=np.array([count, count]),
    )


def _check_values(where: str, embeddings: np.ndarray, model: EncoderModel) -> None:
    """Checks the size of embeddings, and that float16 holds their values."""
    if embeddings.shape[1] != model.dimension:
        raise ModelError(
            f"{where} gives {embeddings.shape[1]} dimensions, and its config.json says {model.dimension}"
        )
    if not np.isfinite(embeddings).all():
        raise ModelError(
            f"{where} gives a value that is not finite; use encoder.dtype: float32 or another model"
        )
    if not embeddings.any(axis=1).all():
        raise ModelError(f"{where} gives zeros for a text; name a trained model")
    with np.errstate(over="ignore"):
        stored = embeddings.astype(np.float16).astype(np.float32)
    if not np.isfinite(stored).all():
        raise ModelError(
            f"{where} gives values beyond float16's 65504, in which embeddings are stored; set "
            "encoder.normalize: true"
        )
    if (lost := _change(embeddings, stored)) > _MOST_LOST:
        raise ModelError(
            f"{where} gives values so small that float16, in which embeddings are stored, changes them by "
            f"{lost:.0%}; set encoder.normalize: true"
        )


def _change(before: np.ndarray, after: np.ndarray) -> float:
    """The largest change of a row, as a share of its length."""
    lengths = np.linalg.norm(before.astype(np.float64), axis=1)
    return float((np.linalg.norm((after - before).astype(np.float64), axis=1) / lengths).max())
