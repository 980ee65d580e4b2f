"""The dataset that a trainer reads: sequences of chunks with the values of their neighbors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypedDict, cast, get_args

import numpy as np

from retro_db.errors import InputError
from retro_db.manifest.model import TRAIN, VALIDATION
from retro_db.reader.database import Corpus, Database
from retro_db.reader.rows import pack
from retro_db.reader.sequences import Located, Packing, Run, Sequences


class Example(TypedDict):
    """One training sequence of l = seq_len / m chunks; in a batch, every array has a first axis [b].

    Attributes:
        tokens: int32 [seq_len].
        mask: bool [seq_len], False at padding.
        segment_ids: int32 [seq_len], 0, 1, ... by document, -1 at padding.
        neighbors: int32 [l, k, 2 m], [N, F] of each neighbor. Row u holds RET(C_u), which conditions
            chunk u + 1 (paper, section 2.2): the trainer shifts.
        neighbor_mask: bool [l, k, 2 m], False at padding and for a missing neighbor.
        neighbor_ids: int64 [l, k], -1 for a missing neighbor.
    """

    tokens: np.ndarray
    mask: np.ndarray
    segment_ids: np.ndarray
    neighbors: np.ndarray
    neighbor_mask: np.ndarray
    neighbor_ids: np.ndarray


class RetroDataset:
    """Random access to training sequences; works with `torch.utils.data.DataLoader` and Grain.

    A sequence is seq_len / m whole chunk rows, in id order. The padding of a document's last chunk keeps its
    place and is masked, and so are rows without a chunk at the end of a sequence. Removed documents are
    skipped. Neighbors that were removed or lie in a document of the sequence are skipped before the
    first k are taken.

    Args:
        database: Opened with `retro_db.open`.
        seq_len: Tokens, a multiple of the chunk length.
        k: Number of neighbors of a chunk, at most the number that is stored.
        packing: `packed`: documents follow one another, and each source begins a new sequence. `document`:
            each document does.
        split: `train`, or the `validation` documents that the build set apart.
        queries: Name of a query corpus, all of whose sequences are read instead.

    Raises:
        InputError: A setting does not fit the database.
    """

    def __init__(
        self,
        database: Database,
        seq_len: int = 2048,
        k: int = 2,
        packing: Packing = "packed",
        split: str = TRAIN,
        queries: str | None = None,
    ) -> None:
        m = database.manifest.chunk.tokens
        if seq_len < 1 or seq_len % m:
            raise InputError(f"seq_len: {seq_len} is not a multiple of the chunk length {m}")
        database.check_k(k)
        _one_of("packing", packing, get_args(Packing))
        _one_of("split", split, (TRAIN, VALIDATION))
        self.database = database
        self.seq_len = seq_len
        self.k = k
        self.packing = packing
        self.split = split
        self.queries = queries
        self._chunk_tokens = m
        # Here, rather than in each forked worker, and so that an unknown query corpus is an error.
        _ = self._sequences

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_sequences"}

    @functools.cached_property
    def _sequences(self) -> Sequences:
        split = self.split if self.queries is None else None
        return Sequences(self._corpus, self.seq_len // self._chunk_tokens, split, self.packing)

    @property
    def _corpus(self) -> Corpus:
        """The corpus whose chunks the sequences are."""
        return self.database.corpus(self.queries)

    @property
    def runs(self) -> list[Run]:
        """Runs of sequences, each of one source."""
        return self._sequences.runs

    @property
    def identity(self) -> str:
        """The settings and data that decide each sequence, as a text that is equal in every process."""
        return (
            f"seq_len={self.seq_len}, packing={self.packing}, split={self.split}, "
            f"queries={self.queries}, manifest={self.database.manifest.sha256[:12]}"
        )

    @property
    def weights(self) -> dict[str, float]:
        """The sampling weight of each source, as the build's configuration gives it."""
        manifest = self.database.manifest
        sources = manifest.sources
        if self.queries is not None:
            sources = [query.source for query in manifest.queries]
        return {source.name: source.weight for source in sources}

    def __len__(self) -> int:
        return len(self._sequences)

    def __repr__(self) -> str:
        return f"RetroDataset({self.database!r}, k={self.k}, {self.identity})"

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> Example:
        """One sequence, or a batch of them.

        Raises:
            IndexError: An index is out of range; negative ones count from the end.
        """
        numbers = np.asarray(index, dtype=np.int64)
        if numbers.ndim:
            return self._batch(numbers)
        return _example(self._batch(numbers[None]), 0)

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """A list of examples, gathered as one batch."""
        batch = self[indices]
        return [_example(batch, row) for row in range(len(indices))]

    def _batch(self, numbers: np.ndarray) -> Example:
        beyond = (numbers < -len(self)) | (numbers >= len(self))
        if beyond.any():
            raise IndexError(f"sequence {numbers[beyond][0]} of {len(self)}")
        located = self._sequences.locate(numbers % len(self))
        tokens, mask = self._tokens(located)
        segments = located.documents - located.documents[:, :1]
        neighbor_ids = self._neighbor_ids(located)
        values, value_mask = self._values(neighbor_ids)
        return Example(
            tokens=tokens,
            mask=mask,
            segment_ids=np.where(
                mask, np.repeat(segments.astype(np.int32), self._chunk_tokens, axis=1), np.int32(-1)
            ),
            neighbors=values,
            neighbor_mask=value_mask,
            neighbor_ids=neighbor_ids,
        )

    def _tokens(self, located: Located) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the sequences, int32 [b, seq_len], and their mask."""
        chunks = self._corpus.chunks
        tokens = chunks[located.ids].astype(np.int32)
        lengths = np.where(located.present, chunks.lengths(located.ids), 0)
        mask = np.arange(self._chunk_tokens) < lengths[..., None]
        tokens[~mask] = self.database.manifest.chunk.pad_id
        shape = (len(located.ids), self.seq_len)
        return tokens.reshape(shape), mask.reshape(shape)

    def _neighbor_ids(self, located: Located) -> np.ndarray:
        """The first k stored neighbors that lie outside the sequence's documents: int64 [b, l, k]."""
        stored = self._corpus.neighbors[located.ids]
        usable = (stored >= 0) & located.present[..., None]
        if self.queries is None and self.split == TRAIN:
            # No other document between the first and the last of a sequence can be a neighbor: one range
            # of ids excludes them all.
            first = located.firsts[:, :1, None]
            end = located.ends[:, -1:, None]
            usable &= (stored < first) | (stored >= end)
        return pack(stored, usable, -1, self.k)

    def _values(self, neighbor_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[N, F] of neighbors, int32 [b, l, k, 2 m], and its mask."""
        chunks, m = self.database.chunks, self._chunk_tokens
        present = neighbor_ids >= 0
        values = np.full((*present.shape, 2 * m), self.database.manifest.chunk.pad_id, np.int32)
        lengths = np.zeros((*present.shape, 2), np.int64)
        values[present], lengths[present] = chunks.values_and_lengths(neighbor_ids[present])
        mask = (np.arange(m) < lengths[..., None]).reshape(values.shape)
        return values, mask


def _one_of(name: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise InputError(f"{name}: {given} is unknown; known: {', '.join(known)}")


def _example(batch: Example, row: int) -> Example:
    """One sequence of a batch."""
    arrays = cast("dict[str, np.ndarray]", batch)
    return cast("Example", {name: values[row] for name, values in arrays.items()})
