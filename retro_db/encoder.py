"""Chunks to keys: a frozen BERT averaged over time (paper, section 2.3)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_db.config import EncoderConfig
from retro_db.errors import ModelError
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.store.tables import IpcFile, TableWriter
from retro_db.threads import use_torch_threads
from retro_db.tokenizer import Tokenizer

# Rows between which batches are formed: enough to sort by length, little to hold.
WINDOW_ROWS = 8192
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
_IDENTITY_FILES = (
    *_VOCABULARIES,
    "config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class EncoderModel:
    """A model's identity: part of the fingerprint of everything downstream."""

    sha256: str
    dimension: int
    pooling: str
    max_length: int
    batch_tokens: int
    device: str
    dtype: str


def resolve_model(name: str) -> Path:
    """The local folder of a model: itself, or a hub snapshot of its safetensors and tokenizer.

    Raises:
        ModelError: There is no such model, or it has no safetensors weights.
    """
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        folder = _download(name)
    if not (folder / "config.json").is_file():
        raise ModelError(f"encoder.model: {folder} has no config.json; name a transformers model")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
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
            f"encoder.model: {name} is no folder, and could not be had from the hub ({reason})"
        ) from error


def model_dimension(folder: Path, max_length: int) -> int:
    """The size of a model's keys, from its configuration; its weights' headers are read as well.

    Args:
        folder: Of the model.
        max_length: WordPieces that a text may have, the special ones included.

    Returns:
        d, the size of the last hidden layer.

    Raises:
        ModelError: The configuration or the weights cannot be read, or the model does not take
            texts of `max_length`.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig

    try:
        for weights in folder.glob("*.safetensors"):
            with safe_open(weights, framework="np"):
                pass
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        dimension, positions = int(settings.hidden_size), settings.max_position_embeddings
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"encoder.model: {folder} cannot be loaded: {reason}") from error
    if max_length > positions:
        raise ModelError(
            f"encoder.max_length: {max_length} is more than the {positions} positions of {folder}"
        )
    return dimension


def model_sha256(folder: Path) -> str:
    """A hash of everything that decides a model's output: weights, configuration, tokenizer."""
    hasher = hashlib.sha256()
    files = [*sorted(folder.glob("*.safetensors")), *(folder / name for name in _IDENTITY_FILES)]
    for file in files:
        if file.is_file():
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            hasher.update(f"{file.name}:{content}\n".encode())
    return hasher.hexdigest()


def resolve_device(config: EncoderConfig) -> tuple[str, str]:
    """The device and dtype that `auto` stands for on this machine.

    Raises:
        ModelError: CUDA is asked for and missing.
    """
    import torch

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("encoder.device: cuda is asked for and not available; use cpu or auto")
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return device, dtype


class Encoder:
    """A frozen encoder in inference mode.

    Args:
        config: Model, pooling, length, dtype, device and batch budget.
        threads: CPU threads of one forward pass.

    Attributes:
        dimension: d, the size of a key.

    Raises:
        ModelError: The model cannot be loaded, or its device is missing.
    """

    def __init__(self, config: EncoderConfig, threads: int = 1) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        folder = resolve_model(config.model)
        self._config = config
        self._threads = threads
        self._torch = torch
        self.device, self.dtype = resolve_device(config)
        try:
            fast = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
            self._tokenizer = fast.backend_tokenizer
            model = AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=getattr(torch, self.dtype),
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ModelError(f"encoder.model: {folder} cannot be loaded: {reason}") from error
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._pad_id = fast.pad_token_id or 0
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(config.max_length)
        self._special_count = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self.dimension = int(model.config.hidden_size)

    def encode(
        self, texts: Sequence[str], report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Keys of texts.

        Batches are a function of the texts and the configuration alone: sorted by (length, row),
        cut by `batch_tokens`. Other batch mates would change the last bits.

        Args:
            texts: Any strings.
            report: Told after each batch how many texts it held.

        Returns:
            float32 [n, d]; a text without any WordPiece has zeros.

        Raises:
            ModelError: The model gave a value that is not finite.
        """
        use_torch_threads(self._threads)
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=True)
        ids = [encoding.ids for encoding in encodings]
        special = [encoding.special_tokens_mask for encoding in encodings]
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        keys = np.zeros((len(texts), self.dimension), dtype=np.float32)
        rows = np.flatnonzero(lengths > self._special_count)
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        for batch in batches_of(rows, lengths, self._config.batch_tokens):
            keys[batch] = self._forward(
                [ids[row] for row in batch], [special[row] for row in batch]
            )
            if report:
                report(len(batch))
        if not np.isfinite(keys).all():
            row = int(np.flatnonzero(~np.isfinite(keys).all(axis=1))[0])
            raise ModelError(
                f"encoder.model: a value that is not finite for {texts[row][:80]!r}; "
                "use encoder.dtype: float32 or another model"
            )
        return keys

    def _forward(self, ids: list[list[int]], special: list[list[int]]) -> np.ndarray:
        torch = self._torch
        width = max(len(row) for row in ids)
        tokens = np.full((len(ids), width), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(ids), width), dtype=np.int64)
        weight = np.zeros((len(ids), width), dtype=np.float32)
        for row, (values, marks) in enumerate(zip(ids, special, strict=True)):
            tokens[row, : len(values)] = values
            mask[row, : len(values)] = 1
            weight[row, : len(values)] = self._weights(np.array(marks, dtype=np.float32))
        with torch.inference_mode():
            hidden = self._model(
                input_ids=torch.from_numpy(tokens).to(self.device),
                attention_mask=torch.from_numpy(mask).to(self.device),
            ).last_hidden_state
            weights = torch.from_numpy(weight).to(self.device)
            # A product of [1, t] and [t, d]: the mean in float32 without a copy of `hidden`'s shape.
            pooled = torch.bmm(weights[:, None, :], hidden.float()).squeeze(1)
            return pooled.cpu().numpy()

    def _weights(self, special: np.ndarray) -> np.ndarray:
        """Share of each token in the mean."""
        if self._config.pooling == "cls":
            return np.eye(1, len(special), dtype=np.float32)[0]
        if self._config.pooling == "mean_without_special":
            return (1 - special) / (1 - special).sum()
        return np.full(len(special), 1 / len(special), dtype=np.float32)


def batches_of(rows: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cuts rows, sorted by length, into batches of at most `budget` padded tokens.

    Args:
        rows: int64 [n], ordered by their length.
        lengths: int64 [m], by row.
        budget: Tokens of a batch; a single longer row is a batch of its own.

    Yields:
        Consecutive pieces of `rows`.
    """
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - start) * lengths[rows[end]] > budget:
            yield rows[start:end]
            start = end


def embed_part(
    chunks: IpcFile,
    path: str,
    encoder: Encoder,
    tokenizer: Tokenizer,
    folder: Folder,
    report: Callable[[int], None],
) -> tuple[FileEntry, int]:
    """Embeds every chunk of one file from its own text, ids decoded, and writes the keys as float16.

    Args:
        chunks: The part's chunks.
        path: Of the embeddings file, relative to the folder.
        encoder: What embeds.
        tokenizer: What made the tokens.
        folder: The database.
        report: Told, now and again, how many more chunks are done.

    Returns:
        The file, and how many of its chunks have no key.

    Raises:
        ModelError: A value is not finite, in float16 either.
    """
    table = contract("embeddings")
    schema = table.schema(dimension=encoder.dimension)
    keyless = 0
    with folder.writing(path) as temporary:
        with TableWriter(temporary, schema, table.batch_rows) as writer:
            for start in range(0, chunks.rows, WINDOW_ROWS):
                stop = min(start + WINDOW_ROWS, chunks.rows)
                texts = chunk_texts(chunks, tokenizer, start, stop)
                keys = _stored(encoder.encode(texts, report))
                keyless += int((~keys.any(axis=1)).sum())
                writer.append({"vector": keys})
        return describe(temporary, path, writer.rows), keyless


def chunk_texts(chunks: IpcFile, tokenizer: Tokenizer, start: int, stop: int) -> list[str]:
    """Text of rows start to stop, characters cut at a chunk's edge being U+FFFD.

    Args:
        chunks: One part's chunks.
        tokenizer: What made the tokens.
        start: First row.
        stop: One after the last row.

    Returns:
        One text for each row, without padding.
    """
    tokens, lengths = chunks.read("tokens", start, stop), chunks.read("length", start, stop)
    return tokenizer.decode(row[:length] for row, length in zip(tokens, lengths, strict=True))


def _stored(keys: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = keys.astype(np.float16)
    if not np.isfinite(stored).all():
        raise ModelError(
            "encoder.model: a key exceeds float16's 65504, so that it cannot be stored; "
            "use a model with a final normalization"
        )
    return stored


def describe_model(config: EncoderConfig) -> EncoderModel:
    """What decides the keys besides the chunks.

    Raises:
        ModelError: The model cannot be had or read, or its device is missing.
    """
    folder = resolve_model(config.model)
    device, dtype = resolve_device(config)
    return EncoderModel(
        sha256=model_sha256(folder),
        dimension=model_dimension(folder, config.max_length),
        pooling=config.pooling,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        device=device,
        dtype=dtype,
    )
