"""What a trainer reads: sequences of chunks with the values of their neighbors."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from retro_db.database import Corpus, Database, pack
from retro_db.errors import InputError
from retro_db.manifest import TRAIN


class Example(TypedDict):
    """One training sequence of l = seq_len / m chunks.

    Attributes:
        tokens: int32 [seq_len].
        mask: bool [seq_len], False at padding.
        segment_ids: int32 [seq_len], 0, 1, ... by document, -1 at padding.
        neighbors: int32 [l, k, 2 m], [N, F] of each neighbor. Row u holds RET(C_u), which conditions
            chunk u + 1 (paper, section 2.2): the trainer shifts.
        neighbor_mask: bool [l, k, 2 m], False at padding and where there is no neighbor.
        neighbor_ids: int64 [l, k], -1 where there is no neighbor.
    """

    tokens: np.ndarray
    mask: np.ndarray
    segment_ids: np.ndarray
    neighbors: np.ndarray
    neighbor_mask: np.ndarray
    neighbor_ids: np.ndarray


class RetroDataset:
    """Random access to training sequences; fits `torch.utils.data.DataLoader` and Grain as it is.

    A sequence is seq_len / m whole chunk rows of the training split, in id order; documents follow
    one another and their padding stays where it is, masked. Removed documents are left out. Neighbors
    that were removed or lie in a document of the sequence are passed over before the first k are
    taken. The last sequence is padded.

    Args:
        database: Opened with `retro_db.open`.
        seq_len: Tokens, a multiple of the chunk length.
        k: Neighbors of a chunk, at most as many as are stored.
        queries: Name of a query corpus whose sequences are wanted instead, all of them.

    Raises:
        InputError: `seq_len`, `k` or `queries` does not fit the database.
    """

    def __init__(
        self, database: Database, seq_len: int = 2048, k: int = 2, queries: str | None = None
    ) -> None:
        m, stored = database.manifest.chunk.tokens, database.manifest.neighbors.k
        if seq_len < 1 or seq_len % m:
            raise InputError(f"seq_len: {seq_len} is not a multiple of the chunk length {m}")
        if not 1 <= k <= stored:
            raise InputError(f"k: {k} is not between 1 and the {stored} neighbors stored")
        if queries is not None and queries not in database.queries:
            known = ", ".join(database.queries) or "none"
            raise InputError(f"queries: {queries} is not in the database; known: {known}")
        self.database = database
        self.queries = queries
        self.seq_len = seq_len
        self.k = k
        self._chunk_tokens = m
        self._rows = seq_len // m
        documents = self._corpus.documents
        counts = documents["chunk_count"].to_numpy()
        chosen = (documents["split"].to_numpy() == TRAIN) & (counts > 0)
        chosen[self._corpus.removed] = False
        self._firsts = documents["first_chunk"].to_numpy()[chosen]
        self._counts = counts[chosen]
        self._ends = np.cumsum(self._counts)

    @property
    def _corpus(self) -> Corpus:
        """Whose chunks the sequences are."""
        return self.database if self.queries is None else self.database.queries[self.queries]

    def __len__(self) -> int:
        total = int(self._ends[-1]) if len(self._ends) else 0
        return -(-total // self._rows)

    def __repr__(self) -> str:
        return (
            f"RetroDataset({self.database!r}, seq_len={self.seq_len}, k={self.k}, "
            f"queries={self.queries!r}, manifest={self.database.manifest.sha256[:12]})"
        )

    def __getitem__(self, index: int) -> Example:
        """One sequence.

        Raises:
            IndexError: The index is out of range; negative ones count from the end.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """A whole batch, gathered at once."""
        positions = np.array([self._normalize(index) for index in indices], dtype=np.int64)
        rows = positions[:, None] * self._rows + np.arange(self._rows)
        present = rows < self._ends[-1]
        rows = np.minimum(rows, self._ends[-1] - 1)
        document = np.searchsorted(self._ends, rows, side="right")
        offset = rows - (self._ends - self._counts)[document]
        ids = self._firsts[document] + offset
        tokens, mask = self._tokens(ids, present)
        segments = document - document[:, :1]
        segment_ids = np.where(mask, np.repeat(segments, self._chunk_tokens, axis=1), -1)
        neighbor_ids = self._neighbor_ids(ids, present, document)
        values, value_mask = self._values(neighbor_ids)
        return [
            Example(
                tokens=tokens[i],
                mask=mask[i],
                segment_ids=segment_ids[i].astype(np.int32),
                neighbors=values[i],
                neighbor_mask=value_mask[i],
                neighbor_ids=neighbor_ids[i],
            )
            for i in range(len(indices))
        ]

    def _normalize(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return index % len(self)

    def _tokens(self, ids: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int32 [b, seq_len] and its mask."""
        chunks = self._corpus.chunks
        flat = ids.reshape(-1)
        tokens = chunks[flat].astype(np.int32)
        lengths = np.where(present.reshape(-1), chunks.lengths(flat), 0)
        mask = np.arange(self._chunk_tokens) < lengths[:, None]
        tokens[~mask] = self.database.manifest.chunk.pad_id
        return tokens.reshape(len(ids), -1), mask.reshape(len(ids), -1)

    def _neighbor_ids(
        self, ids: np.ndarray, present: np.ndarray, document: np.ndarray
    ) -> np.ndarray:
        """The first k stored neighbors that are in no document of the sequence: int64 [b, l, k]."""
        stored = self._corpus.neighbors[ids.reshape(-1)].reshape(*ids.shape, -1)
        if self.queries is not None:
            return np.where(present[..., None], stored[..., : self.k], -1)
        # No training document lies between two of a sequence: they cover one range of chunk ids.
        first = self._firsts[document].min(axis=1)[:, None, None]
        end = (self._firsts + self._counts)[document].max(axis=1)[:, None, None]
        usable = (stored >= 0) & ~((stored >= first) & (stored < end)) & present[..., None]
        return pack(stored, usable, -1, self.k)

    def _values(self, neighbor_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[N, F] of neighbors, int32 [b, l, k, 2 m], and its mask."""
        chunks, m = self.database.chunks, self._chunk_tokens
        flat = neighbor_ids.reshape(-1)
        there = flat >= 0
        found = flat[there]
        values = np.full((len(flat), 2 * m), self.database.manifest.chunk.pad_id, np.int32)
        values[there] = chunks.values(found)
        lengths = np.zeros((len(flat), 2), np.int64)
        lengths[there] = chunks.value_lengths(found)
        mask = (np.arange(m) < lengths[..., None]).reshape(len(flat), 2 * m)
        shape = (*neighbor_ids.shape, 2 * m)
        return values.reshape(shape), mask.reshape(shape)
