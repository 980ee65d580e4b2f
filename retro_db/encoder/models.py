"""The model that embeds: found, checked, and identified by all files that decide its embeddings."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro_db.encoder.declared import (
    MODULES,
    PROMPTS,
    WORDPIECES,
    Declared,
    read_declared,
    read_dense,
    read_settings,
)
from retro_db.errors import ModelError
from retro_db.manifest.model import POOLINGS, EncoderInfo

if TYPE_CHECKING:  # pydantic is not needed to encode
    from retro_db.config import EncoderConfig

CPU, CUDA = "cpu", "cuda"
# Larger batches leave a core's cache: 16,384 WordPieces at once were a quarter slower.
CPU_BATCH_TOKENS = 2048
# WordPieces of a text where neither the settings nor the folder say a number.
_MAX_LENGTH = 256
# A tokenizer that knows no limit writes a number such as 1e30.
_NO_LIMIT = 1_000_000
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_IDENTITY_FILES = (
    *_VOCABULARIES,
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_DECLARING_FILES = (MODULES, PROMPTS, WORDPIECES)
_ADAPTER = "adapter_config.json"
# What `EncoderModel.sha256` covers: up to format 1.4 the files of the transformer alone.
TRANSFORMER_ALONE, WHOLE_FOLDER = 1, 2


@dataclass(frozen=True)
class EncoderModel:
    """A model's identity: part of the fingerprint of everything downstream.

    Attributes:
        sha256: Hash of weights, configuration and tokenizer, and of what else its folder says.
        dimension: d, the size of an embedding.
        pooling: How token vectors become an embedding, as `encoder.pooling` names it.
        max_length: Number of WordPieces after which a text is cut, the special ones included.
        batch_tokens: Padded WordPieces of one batch; None until the device is probed.
        device: cpu or cuda.
        dtype: float32, bfloat16 or float16.
        prompt: Text put before every chunk.
        pools_prompt: Whether the prompt's own tokens are pooled with the others.
        dense: Folders of the dense layers behind the pooling, in order.
        normalize: Whether an embedding is scaled to length 1.
        equal_lengths: Whether a batch must have texts of one length, as padding would change them.
        identity: Which files `sha256` covers: `TRANSFORMER_ALONE` or `WHOLE_FOLDER`.
    """

    sha256: str
    dimension: int
    pooling: str
    max_length: int
    batch_tokens: int | None
    device: str
    dtype: str
    prompt: str = ""
    pools_prompt: bool = True
    dense: tuple[str, ...] = ()
    normalize: bool = False
    equal_lengths: bool = False
    identity: int = WHOLE_FOLDER

    @property
    def decides(self) -> dict[str, Any]:
        """What decides embeddings, for fingerprints, without what is as in a plain model.

        So records of releases that knew plain models alone still hold.
        """
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "identity"
            and (field.default is dataclasses.MISSING or getattr(self, field.name) != field.default)
        }


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
    declared = read_declared(folder)
    transformer = folder / declared.transformer
    if not (transformer / "config.json").is_file():
        raise ModelError(
            f"encoder.model: {transformer} has no config.json; name a transformers model"
        )
    if not any(any(transformer.glob(pattern)) for pattern in _VOCABULARIES):
        raise ModelError(
            f"encoder.model: {transformer} has no tokenizer ({' or '.join(_VOCABULARIES)}); copy the one "
            "that the model was trained with"
        )
    for weights in (transformer, *(folder / path for path in declared.dense)):
        if not list(weights.glob("*.safetensors")):
            raise ModelError(
                f"encoder.model: {weights} has no safetensors weights; convert them with "
                "save_pretrained(safe_serialization=True)"
            )
    if (transformer / _ADAPTER).is_file():
        raise ModelError(
            f"encoder.model: {transformer} has an adapter, {_ADAPTER}, which some installations apply and "
            "some do not; merge it into the weights with peft's merge_and_unload"
        )
    return folder


def _download(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        names = (*_IDENTITY_FILES, *_DECLARING_FILES, _ADAPTER)
        patterns = ["*.safetensors", "*.safetensors.index.json", *names]
        # Modules of sentence-transformers lie in folders such as 1_Pooling.
        patterns += [f"[0-9]*/{name}" for name in names]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(f"encoder.model: {name} does not exist; correct the path") from error
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"encoder.model: {name} is not a folder, and the hub did not deliver it ({reason})"
        ) from error


def transformer_class(settings: Any) -> Any:
    """The class of transformers that loads a model: T5 and its kin may be saved as an encoder alone."""
    import transformers

    for name in settings.architectures or []:
        if name.endswith("EncoderModel") and hasattr(transformers, name):
            return getattr(transformers, name)
    return transformers.AutoModel


@dataclass(frozen=True)
class _Shape:
    """What a transformer's configuration says: the size of its last layer, and its most WordPieces."""

    dimension: int
    positions: int | None


def _read_shape(folder: Path) -> _Shape:
    """Reads the configuration of a transformer, and checks its weights' headers.

    Raises:
        ModelError: The configuration or the weights cannot be read, or the model has a decoder.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel

    try:
        for weights in folder.glob("*.safetensors"):
            with safe_open(weights, framework="np"):
                pass
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        dimension, has_decoder = int(settings.hidden_size), settings.is_encoder_decoder
        loads = transformer_class(settings)
        with torch.device("meta"):  # shapes without weights
            shape = loads.from_config(settings) if loads is AutoModel else loads(settings)
    except Exception as error:  # files of the folder can make transformers raise any exception
        raise ModelError(f"encoder.model: {folder} cannot be loaded: {reason_of(error)}") from error
    if has_decoder and loads is AutoModel:
        raise ModelError(f"encoder.model: {folder} has a decoder; name an encoder such as BERT")
    return _Shape(dimension, _positions(settings, shape))


def _positions(settings: Any, model: Any) -> int | None:
    """Most WordPieces that a model takes; RoBERTa's kin number positions from behind the padding id."""
    positions = getattr(settings, "max_position_embeddings", None)
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(module.weight.shape[0]) - padding - 1
    return positions if positions and positions > 0 else None


def reason_of(error: Exception) -> str:
    """The first line of an exception's message, or what it is."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def _tokenizer_length(folder: Path) -> int | None:
    """Most WordPieces that a tokenizer says; None if it says none."""
    file = folder / "tokenizer_config.json"
    settings = read_settings(file) if file.is_file() else {}
    length = settings.get("model_max_length")
    return int(length) if isinstance(length, (int, float)) and 0 < length < _NO_LIMIT else None


def _max_length(config: EncoderConfig, folder: Path, declared: Declared, shape: _Shape) -> int:
    """Number of WordPieces after which texts are cut: as configured, as declared, or at most 256.

    Raises:
        ModelError: The model does not take texts of the configured length.
    """
    if config.max_length != "auto":
        if shape.positions is not None and config.max_length > shape.positions:
            raise ModelError(
                f"encoder.max_length: {config.max_length} is more than the {shape.positions} positions of "
                f"{folder}"
            )
        return config.max_length
    length = declared.max_length or _tokenizer_length(folder) or _MAX_LENGTH
    if not declared.modules:
        length = min(length, _MAX_LENGTH)
    return min(length, shape.positions or length)


def model_sha256(folder: Path, identity: int = WHOLE_FOLDER) -> str:
    """Hashes all files that decide a model's output: weights, configuration, tokenizer, and other modules.

    Args:
        folder: Folder of the model.
        identity: `WHOLE_FOLDER`, or `TRANSFORMER_ALONE` as databases up to format 1.4 have it. Both give the
            same hash of a folder that has a transformer and nothing else.
    """
    folders, patterns = [folder], ["*.safetensors", *_IDENTITY_FILES]
    if identity != TRANSFORMER_ALONE:
        patterns += _DECLARING_FILES
        folders += [folder / path for path in sorted(read_declared(folder).modules)]
    hasher = hashlib.sha256()
    for place in folders:
        for file in [file for pattern in patterns for file in sorted(place.glob(pattern))]:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            hasher.update(f"{file.relative_to(folder).as_posix()}:{content}\n".encode())
    return hasher.hexdigest()


def describe_model(config: EncoderConfig) -> EncoderModel:
    """Describes what decides the embeddings besides the chunks.

    Args:
        config: Configuration of the encoder.

    Returns:
        The identity, with `auto` resolved; `batch_tokens` is None if a probe of the device must decide.

    Raises:
        ModelError: The model cannot be found or read, or its folder contradicts itself.
    """
    folder = resolve_model(config.model)
    declared = read_declared(folder)
    transformer = folder / declared.transformer
    shape = _read_shape(transformer)
    device, dtype = device_and_dtype(config)
    budget = None if config.batch_tokens == "auto" else config.batch_tokens
    if device == CPU:
        budget = min(budget or CPU_BATCH_TOKENS, CPU_BATCH_TOKENS)
    return EncoderModel(
        sha256=model_sha256(folder),
        dimension=_dimension(folder, declared, shape),
        pooling=declared.pooling if config.pooling == "auto" else config.pooling,
        max_length=_max_length(config, transformer, declared, shape),
        batch_tokens=budget,
        device=device,
        dtype=dtype,
        prompt=declared.prompt if config.prompt == "auto" else config.prompt,
        pools_prompt=declared.pools_prompt,
        dense=declared.dense,
        normalize=declared.normalize if config.normalize == "auto" else config.normalize,
    )


def _dimension(folder: Path, declared: Declared, shape: _Shape) -> int:
    """Size of an embedding behind all dense layers."""
    dimension = shape.dimension
    for path in declared.dense:
        layer = read_dense(folder / path)
        if layer.in_features != dimension:
            raise ModelError(
                f"encoder.model: {folder / path} takes {layer.in_features} dimensions, and gets {dimension}"
            )
        dimension = layer.out_features
    return dimension


def device_and_dtype(config: EncoderConfig) -> tuple[str, str]:
    """The device and the type of numbers that a configuration means on this machine."""
    device: str = config.device
    if device == "auto":
        device = CUDA if gpu_count() else CPU
    dtype: str = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == CUDA else "float32"
    return device, dtype


def recorded_model(info: EncoderInfo, device: str, batch_tokens: int | None) -> EncoderModel:
    """The model of a database, with the rule that its manifest tells, whatever its folder says by now.

    Args:
        info: The encoder in the manifest.
        device: Device to run on.
        batch_tokens: Padded WordPieces of one batch.

    Raises:
        ModelError: This release does not know the database's pooling.
    """
    if info.pooling not in POOLINGS:
        raise ModelError(
            f"encoder.pooling: the database was embedded by {info.pooling[:100]!r}, which this release does "
            f"not know; it knows {', '.join(POOLINGS)}"
        )
    return EncoderModel(
        sha256=info.sha256,
        dimension=info.dimension,
        pooling=info.pooling,
        max_length=info.max_length,
        batch_tokens=batch_tokens,
        device=device,
        dtype=info.dtype,
        prompt=info.prompt,
        pools_prompt=info.pools_prompt,
        dense=tuple(info.dense),
        normalize=info.normalize,
        equal_lengths=info.equal_lengths,
        identity=info.identity,
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
