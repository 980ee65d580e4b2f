"""The model that embeds: found, checked, and identified by all files that decide its embeddings."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro_db.errors import ModelError

if TYPE_CHECKING:  # pydantic is not needed to encode
    from retro_db.config import EncoderConfig

CPU, CUDA = "cpu", "cuda"
# Larger batches leave a core's cache: 16,384 WordPieces at once were a quarter slower.
CPU_BATCH_TOKENS = 2048
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_IDENTITY_FILES = (
    *_VOCABULARIES,
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class EncoderModel:
    """A model's identity: part of the fingerprint of everything downstream.

    Attributes:
        sha256: Hash of weights, configuration and tokenizer.
        dimension: d, the size of an embedding.
        pooling: mean, mean_without_special or cls.
        max_length: Number of WordPieces after which a text is cut, the special ones included.
        batch_tokens: Padded WordPieces of one batch; None until the device is probed.
        device: cpu or cuda.
        dtype: float32, bfloat16 or float16.
    """

    sha256: str
    dimension: int
    pooling: str
    max_length: int
    batch_tokens: int | None
    device: str
    dtype: str


def resolve_model(name: str) -> Path:
    """Finds the local folder of a model, or downloads its safetensors and tokenizer from the hub.

    Args:
        name: A local folder, or the model's name on the hub.

    Returns:
        The local folder, or the folder of the hub's snapshot.

    Raises:
        ModelError: The model does not exist, or lacks a configuration, a tokenizer or safetensors weights.
    """
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        folder = _download(name)
    if not (folder / "config.json").is_file():
        raise ModelError(f"encoder.model: {folder} has no config.json; name a transformers model")
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise ModelError(
            f"encoder.model: {folder} has no tokenizer ({' or '.join(_VOCABULARIES)}); copy the one "
            "that the model was trained with"
        )
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"encoder.model: {folder} has no safetensors weights; convert them with "
            "save_pretrained(safe_serialization=True)"
        )
    return folder


def _download(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=["*.safetensors", "*.safetensors.index.json", *_IDENTITY_FILES]
            )
        )
    except HFValidationError as error:
        raise ModelError(f"encoder.model: {name} does not exist; correct the path") from error
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"encoder.model: {name} is not a folder, and the hub did not deliver it ({reason})"
        ) from error


def model_dimension(folder: Path, max_length: int) -> int:
    """Reads the size of a model's embeddings from its configuration, and checks its weights' headers.

    Args:
        folder: Folder of the model.
        max_length: Most WordPieces of a text, the special ones included.

    Returns:
        d, the size of the last hidden layer.

    Raises:
        ModelError: The configuration or the weights cannot be read, the model has a decoder, or it does
            not take texts of `max_length`.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoModel

    try:
        for weights in folder.glob("*.safetensors"):
            with safe_open(weights, framework="np"):
                pass
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        dimension = int(settings.hidden_size)
        with torch.device("meta"):  # shapes without weights
            shape = AutoModel.from_config(settings, trust_remote_code=False)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ModelError(f"encoder.model: {folder} cannot be loaded: {_reason(error)}") from error
    if settings.is_encoder_decoder:
        raise ModelError(f"encoder.model: {folder} has a decoder; name an encoder such as BERT")
    positions = _positions(settings, shape)
    if positions is not None and max_length > positions:
        raise ModelError(
            f"encoder.max_length: {max_length} is more than the {positions} positions of {folder}"
        )
    return dimension


def _positions(settings: Any, model: Any) -> int | None:
    """Most WordPieces that a model takes; RoBERTa's kin number positions from behind the padding id."""
    positions = getattr(settings, "max_position_embeddings", None)
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(module.num_embeddings) - padding - 1
    return positions


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def model_sha256(folder: Path) -> str:
    """Hashes all files that decide a model's output: weights, configuration, tokenizer."""
    hasher = hashlib.sha256()
    patterns = ("*.safetensors", *_IDENTITY_FILES)
    for file in [file for pattern in patterns for file in sorted(folder.glob(pattern))]:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        hasher.update(f"{file.name}:{content}\n".encode())
    return hasher.hexdigest()


def describe_model(config: EncoderConfig) -> EncoderModel:
    """Describes what decides the embeddings besides the chunks.

    Args:
        config: Configuration of the encoder.

    Returns:
        The identity, with `auto` resolved; `batch_tokens` is None if a probe of the device must decide.

    Raises:
        ModelError: The model cannot be found or read.
    """
    folder = resolve_model(config.model)
    device: str = config.device
    if device == "auto":
        device = CUDA if gpu_count() else CPU
    dtype: str = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == CUDA else "float32"
    budget = None if config.batch_tokens == "auto" else config.batch_tokens
    if device == CPU:
        budget = min(budget or CPU_BATCH_TOKENS, CPU_BATCH_TOKENS)
    return EncoderModel(
        sha256=model_sha256(folder),
        dimension=model_dimension(folder, config.max_length),
        pooling=config.pooling,
        max_length=config.max_length,
        batch_tokens=budget,
        device=device,
        dtype=dtype,
    )


def gpu_count() -> int:
    """Counts the CUDA devices that this process sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_cuda() -> None:
    """Refuses to continue without CUDA: a model never moves to the CPU silently.

    Raises:
        ModelError: This process sees no CUDA device.
    """
    if not gpu_count():
        raise ModelError("encoder.device: cuda is asked for and not available; use cpu or auto")
