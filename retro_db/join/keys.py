"""The keys of a join partition by list, with what decides whose neighbors they may be."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from retro_db.hashing import hash_rows
from retro_db.join.products import KeyMatrix


@dataclass(frozen=True)
class Labels:
    """What decides whether two chunks may be neighbors: they may not if a label of theirs is equal.

    Attributes:
        documents: int64 [n], first chunk of each chunk's document; in joins with a query corpus, what its
            document and its namesakes share.
        tokens: uint64 [n], hash of each chunk's tokens; None if equal chunks may be neighbors.
    """

    documents: np.ndarray
    tokens: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray | slice) -> Labels:
        return Labels(self.documents[rows], None if self.tokens is None else self.tokens[rows])

    def differ(self, other: Labels) -> np.ndarray:
        """Says which pairs, row by row or by broadcasting, may be neighbors: bool."""
        differ = self.documents != other.documents
        if self.tokens is not None and other.tokens is not None:
            differ &= self.tokens != other.tokens
        return differ

    def column(self) -> Labels:
        """The same labels as columns [n, 1], to compare each with all of others."""
        return self[np.s_[:, None]]  # type: ignore[index]


@dataclass(frozen=True)
class Keys:
    """The keys of a partition, which consecutive lists of the spatial order hold.

    Attributes:
        offsets: int64 [lists + 1], first key of each list, and the number of keys.
        ids: int64 [n], global chunk ids, ascending within a list.
        labels: Labels of the keys.
        store: float16 [m, d], embeddings in the order in which they were read.
        places: int64 [n], the row of `store` that holds each key.
        precision: Type of the products.
        device: Device that multiplies.
    """

    offsets: np.ndarray
    ids: np.ndarray
    labels: Labels
    store: np.ndarray
    places: np.ndarray
    precision: torch.dtype
    device: torch.device

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """Embeddings of keys start to stop - 1: float16 [stop - start, d]."""
        return _read(self.store, self.places, start, stop)

    @functools.cached_property
    def matrix(self) -> KeyMatrix:
        """The keys as factors of products."""
        # A method of the keys would tie them into a cycle, which is freed late.
        read = functools.partial(_read, self.store, self.places)
        return KeyMatrix(read, len(self.ids), self.store.shape[1], self.precision, self.device)

    @property
    def lists(self) -> int:
        """Number of lists."""
        return len(self.offsets) - 1


def _read(store: np.ndarray, places: np.ndarray, start: int, stop: int) -> np.ndarray:
    return take_halves(store, places[start:stop])


def take_halves(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of float16 [m, d], copied as integers: NumPy moves halves slowly."""
    return vectors.view(np.uint16)[rows].view(np.float16)


def needed_keys(
    store: np.ndarray, places: np.ndarray, labels: Labels, lists: np.ndarray, k: int
) -> np.ndarray:
    """Says which keys can be among anyone's k nearest: without the rest, copies cost nothing.

    Of equal keys, a query that one document is excluded for takes those with the smallest ids. So a key with
    k equal ones of its document before it is never needed, nor one with 2 k of those that remain before it:
    at most k of them are excluded for a query.

    Args:
        store: float16 [m, d], embeddings.
        places: int64 [n], the row of `store` of each key; keys are sorted by list and then by id.
        labels: Labels of the keys. Keys are equal if their embeddings are, and their hashes of tokens.
        lists: int64 [n], the list of each.
        k: Number of neighbors.

    Returns:
        bool [n].
    """
    hashes = _hashes(store)[places]
    if labels.tokens is not None:
        hashes ^= labels.tokens
    hashes += lists.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    needed = np.ones(len(hashes), bool)
    order = np.argsort(hashes, kind="stable")
    starts = _run_starts(hashes[order])
    sizes = np.diff([*starts, len(order)])
    for start, size in zip(starts[sizes > k].tolist(), sizes[sizes > k].tolist(), strict=True):
        rows = order[start : start + size]
        # A hash of an embedding may be that of another.
        bits = take_halves(store, places[rows]).view(np.uint16)
        rows = rows[(bits == bits[0]).all(axis=1)]
        by_document = np.argsort(labels.documents[rows], kind="stable")
        firsts = _run_starts(labels.documents[rows][by_document])
        runs = np.diff([*firsts, len(rows)])
        ranks = np.empty(len(rows), np.int64)
        ranks[by_document] = np.arange(len(rows)) - np.repeat(firsts, runs)
        kept = ranks < k
        kept &= np.cumsum(kept) <= 2 * k
        needed[rows[~kept]] = False
    return needed


def _run_starts(values: np.ndarray) -> np.ndarray:
    """First places of runs of equal values: int64 [runs]."""
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])


def _hashes(vectors: np.ndarray) -> np.ndarray:
    """Hashes float16 [n, d] to uint64 [n] by its bits."""
    words = vectors.view(np.uint16)
    hashes = np.empty(len(words), np.uint64)
    for start in range(0, len(words), 4096):
        hashes[start : start + 4096] = hash_rows(words[start : start + 4096].astype(np.uint64))
    return hashes
