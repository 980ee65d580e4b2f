"""Texts to embeddings on one device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from retro_db.encoder.batching import Tokenized
from retro_db.encoder.devices import Cpu, Cuda, Device
from retro_db.encoder.linear import use_onednn
from retro_db.encoder.models import CUDA, EncoderModel, check_cuda, model_sha256
from retro_db.errors import DeviceMemoryError, ModelError
from retro_db.meter import Meter

_TOKENIZED_AT_ONCE = 512


class Encoder:
    """A frozen encoder in inference mode; threads may share it.

    Args:
        folder: Folder of the model.
        model: The model's identity and settings, with `batch_tokens` set.
        threads: Number of CPU threads of one forward pass.
        gpu: Number of the GPU among the GPUs that this process sees; the encoder uses this GPU only.

    Raises:
        ModelError: The model cannot be loaded, is not the one that `model` describes, or its device is
            missing.
    """

    def __init__(self, folder: Path, model: EncoderModel, threads: int = 1, gpu: int = 0) -> None:
        if model.device == CUDA:
            check_cuda()
        if (sha256 := model_sha256(folder)) != model.sha256:
            raise ModelError(
                f"encoder.model: {folder} is not the model of this database (sha256 {sha256[:12]}, "
                f"not {model.sha256[:12]}); name that one, with the same files on every worker"
            )
        self.model = model
        self.device: Device = Cuda(gpu) if model.device == CUDA else Cpu(threads)
        self._tokenizer, self._pad_id, network = _load(folder, model)
        if model.device != CUDA and model.dtype == "float32":
            use_onednn(network)
        self._network = network.to(self.device.name)
        self._special_count = self._tokenizer.num_special_tokens_to_add(is_pair=False)

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Divides texts into WordPieces, cut at the model's `max_length`.

        Args:
            texts: Any strings.

        Returns:
            The texts' WordPieces, and the weight of each in its text's embedding.
        """
        ids, special, lengths = [], [], []
        # The library's own objects take a hundred times the memory of the ids.
        for first in range(0, len(texts), _TOKENIZED_AT_ONCE):
            piece = list(texts[first : first + _TOKENIZED_AT_ONCE])
            encodings = self._tokenizer.encode_batch_fast(piece, add_special_tokens=True)
            lengths.append(np.array([len(encoding) for encoding in encodings], dtype=np.int64))
            ids.append(_flat(encoding.ids for encoding in encodings))
            special.append(_flat(encoding.special_tokens_mask for encoding in encodings))
        return self._tokenized(texts, _joined(ids), _joined(special), _joined(lengths))

    def _tokenized(
        self, texts: Sequence[str], ids: np.ndarray, special: np.ndarray, lengths: np.ndarray
    ) -> Tokenized:
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(np.arange(len(texts)), lengths)
        if self.model.pooling == "cls":
            pooled = np.arange(len(ids)) == starts[rows]
        elif self.model.pooling == "mean_without_special":
            pooled = special == 0
        else:
            pooled = np.ones(len(ids), dtype=bool)
        sums = np.bincount(rows, pooled, len(texts))
        return Tokenized(
            texts=texts,
            ids=ids,
            weights=(pooled / np.maximum(sums, 1)[rows]).astype(np.float32),
            starts=starts,
            lengths=np.where(lengths > self._special_count, lengths, 0),
        )

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts, as one window.

        Args:
            texts: Any strings.

        Returns:
            float32 [n, d]; a text without any WordPiece has zeros.

        Raises:
            ModelError: The model computed a value that is not finite.
            DeviceMemoryError: A batch does not fit.
        """
        [embeddings] = self.encode_windows([self.tokenize(texts)], Meter())
        return embeddings

    def encode_windows(self, windows: Iterable[Tokenized], meter: Meter) -> Iterator[np.ndarray]:
        """Embeds windows of texts.

        Batches are a function of a window and the budget alone, since other batch mates would change
        the last bits. A GPU gets its next batches, of the next window too, before the host waits for
        one.

        Args:
            windows: Tokenized texts.
            meter: Counts texts, their `tokens` and `padding`, and the `device` seconds.

        Yields:
            For each window in turn float32 [n, d]; a text without any WordPiece has zeros.

        Raises:
            ModelError: The model computed a value that is not finite.
            DeviceMemoryError: A batch does not fit.
        """
        if self.model.batch_tokens is None:
            raise ModelError("encoder.batch_tokens: give a number, or probe the device first")
        self.device.use()
        flights: deque[_Flight] = deque()
        for window in windows:
            embeddings = np.zeros((len(window.texts), self.model.dimension), dtype=np.float32)
            meter(int((window.lengths == 0).sum()))
            batches = list(window.batches(self.model.batch_tokens))
            for rows in batches:
                flights.append(self._launch(window, rows, embeddings))
                while len(flights) > self.device.ahead:
                    yield from self._land(flights.popleft(), meter)
            flights.append(_Flight(window, embeddings))
            if self.device.ahead == 0:
                yield from self._land(flights.popleft(), meter)
        for flight in flights:
            yield from self._land(flight, meter)

    def _launch(self, window: Tokenized, rows: np.ndarray, embeddings: np.ndarray) -> _Flight:
        """Starts the forward pass of one batch, without waiting for it."""
        ids, weights = window.padded(rows, self._pad_id)
        with self.naming_the_budget(*ids.shape):
            start = self.device.mark()
            pooled = self.device.fetch(self.forward(ids, weights, window.lengths[rows]))
            batch = _Batch(rows, ids.size, pooled, start, self.device.mark())
        return _Flight(window, embeddings, batch)

    def forward(self, ids: np.ndarray, weights: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        """Runs one batch on the device.

        Args:
            ids: int64 [b, w], padded.
            weights: float32 [b, w], zero in the padding.
            lengths: int64 [b].

        Returns:
            float32 [b, d] on the device, the weighted sums of the last hidden layer.
        """
        with torch.inference_mode():
            put = self.device.put
            columns = torch.arange(ids.shape[1], device=self.device.name)
            mask = columns < put(lengths)[:, None]
            hidden = self._network(input_ids=put(ids), attention_mask=mask.long())
            # A product of [1, w] and [w, d] sums in float32, without an array of weighted states.
            return torch.bmm(put(weights)[:, None], hidden.last_hidden_state.float()).squeeze(1)

    def _land(self, flight: _Flight, meter: Meter) -> Iterator[np.ndarray]:
        """Waits for a batch; after the last batch of a window, yields the window's embeddings."""
        window, embeddings, batch = flight.window, flight.embeddings, flight.batch
        if batch is None:
            yield _finite(embeddings, window)
            return
        with self.naming_the_budget(len(batch.rows), batch.padded // len(batch.rows)):
            meter.spend("device", self.device.seconds(batch.start, batch.end))
        embeddings[batch.rows] = batch.pooled.numpy()
        tokens = int(window.lengths[batch.rows].sum())
        meter(len(batch.rows), tokens=tokens, padding=batch.padded - tokens)

    @contextmanager
    def naming_the_budget(self, rows: int, width: int) -> Iterator[None]:
        """Turns running out of memory in the block into an error that names the setting to change.

        Args:
            rows: Number of texts of the batch.
            width: Padded WordPieces of each text.

        Raises:
            DeviceMemoryError: The block ran out of memory.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:  # torch raises a bare RuntimeError on a CPU
            if not _is_out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"encoder.batch_tokens: a batch of {rows:,} texts of {width:,} WordPieces does not "
                f"fit in the memory of {self.device.name}; set less than {rows * width:,}"
            ) from error


@dataclass(frozen=True)
class _Batch:
    """One batch under way: the tensor that the device computes, and the marks around the work."""

    rows: np.ndarray
    padded: int
    pooled: torch.Tensor
    start: Any
    end: Any


@dataclass(frozen=True)
class _Flight:
    """A batch of a window, or None after the window's last batch."""

    window: Tokenized
    embeddings: np.ndarray
    batch: _Batch | None = None


def _load(folder: Path, model: EncoderModel) -> tuple[Any, int, Any]:
    """Loads the tokenizer, its padding id and the frozen network."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        fast = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        tokenizer = fast.backend_tokenizer
        network = AutoModel.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, model.dtype),
        )
    except Exception as error:  # files of the folder can make transformers raise any exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(f"encoder.model: {folder} cannot be loaded: {reason}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.max_length)
    return tokenizer, fast.pad_token_id or 0, network.eval().requires_grad_(False)


def _flat(lists: Iterable[list[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(lists), np.int64)


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _finite(embeddings: np.ndarray, window: Tokenized) -> np.ndarray:
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        text = window.texts[int(np.flatnonzero(~finite)[0])]
        raise ModelError(
            f"encoder.model: a value that is not finite for {text[:80]!r}; "
            "use encoder.dtype: float32 or another model"
        )
    return embeddings


def _is_out_of_memory(error: Exception) -> bool:
    message = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "allocate memory" in message or "out of memory" in message
    )
