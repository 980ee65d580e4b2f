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

from retro_db.encoder.batching import Tokenized
from retro_db.encoder.devices import Cpu, Cuda, Device
from retro_db.encoder.linear import use_onednn
from retro_db.encoder.loading import load_head, load_transformer
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
        if (sha256 := model_sha256(folder, model.identity)) != model.sha256:
            raise ModelError(
                f"encoder.model: {folder} is not the model of this database (sha256 {sha256[:12]}, "
                f"not {model.sha256[:12]}); name that one, with the same files on every worker"
            )
        self.model = model
        self.device: Device = Cuda(gpu) if model.device == CUDA else Cpu(threads)
        loaded = load_transformer(folder, model)
        self._tokenizer, self.pad_id = loaded.tokenizer, loaded.pad_id
        self._has_types = loaded.has_types
        if model.device != CUDA and model.dtype == "float32":
            use_onednn(loaded.network)
        self._network = loaded.network.to(self.device.name)
        self._head = load_head(folder, model).to(self.device.name)
        prompt = self._tokenizer.encode(model.prompt)
        self._prompt_ids = np.array(prompt.ids, np.int64)
        # Special WordPieces at the end follow the text, and are not the prompt's.
        own = np.flatnonzero(np.array(prompt.special_tokens_mask) == 0)
        self._prompt_length = int(own.max(initial=-1)) + 1

    def check_tokens(self) -> None:
        """Checks that every WordPiece has an embedding, and that the model needs nothing beside them.

        Raises:
            ModelError: The tokenizer does not fit the network.
        """
        embeddings = self._network.get_input_embeddings()
        entries = getattr(embeddings, "num_embeddings", None)
        largest = max(self._tokenizer.get_vocab().values(), default=0)
        if entries is not None and largest >= entries:
            raise ModelError(
                f"encoder.model: its tokenizer has ids up to {largest:,}, and its network has {entries:,} "
                "embeddings of them; copy the tokenizer that the model was trained with"
            )
        if self._has_types and any(self._tokenizer.encode("A text.").type_ids):
            raise ModelError(
                "encoder.model: its tokenizer gives types of WordPieces (token_type_ids) other than 0, which "
                "are not passed on; name an encoder such as BERT"
            )

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Divides texts into WordPieces, cut at the model's `max_length`.

        Args:
            texts: Any strings.

        Returns:
            The texts' WordPieces, and the weight of each in its text's embedding.
        """
        ids, special, lengths = [], [], []
        prompt = self.model.prompt
        # The library's own objects take a hundred times the memory of the ids.
        for first in range(0, len(texts), _TOKENIZED_AT_ONCE):
            piece = [prompt + text for text in texts[first : first + _TOKENIZED_AT_ONCE]]
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
        weights = self._weights(np.arange(len(ids)) - starts[rows], lengths[rows], special)
        sums = np.bincount(rows, weights, len(texts))[rows]
        if self.model.pooling == "mean_sqrt_len":
            sums = np.sqrt(sums)
        return Tokenized(
            texts=texts,
            ids=ids,
            weights=(weights / np.where(sums > 0, sums, 1)).astype(np.float32),
            starts=starts,
            lengths=np.where(self._is_prompt_alone(ids, starts, lengths), 0, lengths),
        )

    def _weights(
        self, positions: np.ndarray, lengths: np.ndarray, special: np.ndarray
    ) -> np.ndarray:
        """The weight of each WordPiece among its text's, [t], by its position and its text's length."""
        pooling = self.model.pooling
        first = 0 if self.model.pools_prompt else self._prompt_length
        if pooling == "cls":
            return positions == np.minimum(first, lengths - 1)
        if pooling == "last_token":
            return positions == lengths - 1
        is_pooled = positions >= first
        if pooling == "mean_without_special":
            is_pooled &= special == 0
        return is_pooled * (positions + 1) if pooling == "weighted_mean" else is_pooled

    def _is_prompt_alone(
        self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> np.ndarray:
        """Which texts have the prompt's WordPieces and no others: bool [n]."""
        is_alone = lengths == len(self._prompt_ids)
        rows = np.flatnonzero(is_alone)
        positions = starts[rows][:, None] + np.arange(len(self._prompt_ids))
        is_alone[rows] = (ids[positions] == self._prompt_ids).all(axis=1)
        return is_alone

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
            batches = list(
                window.batches(self.model.batch_tokens, equal_lengths=self.model.equal_lengths)
            )
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
        ids, weights = window.padded(rows, self.pad_id)
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
            float32 [b, d] on the device.
        """
        with torch.inference_mode():
            put = self.device.put
            columns = torch.arange(ids.shape[1], device=self.device.name)
            mask = columns < put(lengths)[:, None]
            hidden = self._network(input_ids=put(ids), attention_mask=mask.long())
            states, shares = hidden.last_hidden_state.float(), put(weights)
            if self.model.pooling == "max":
                pooled = states.masked_fill(shares[:, :, None] == 0, -torch.inf).amax(dim=1)
            else:
                # A product of [1, w] and [w, d] sums in float32, without an array of weighted states.
                pooled = torch.bmm(shares[:, None], states).squeeze(1)
            return self._head(pooled)

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
