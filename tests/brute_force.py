"""Independent answers: straightforward NumPy in float64, sharing no code with the library."""

from __future__ import annotations

import numpy as np


def neighbors(
    keys: np.ndarray, documents: np.ndarray, allowed: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest allowed rows of other documents, and their squared distances, by brute force."""
    x = keys.astype(np.float64)
    ids = np.full((len(x), k), -1)
    distances = np.full((len(x), k), np.inf)
    for row in range(len(x)):
        exact = ((x - x[row]) ** 2).sum(axis=1)
        exact[(documents == documents[row]) | ~allowed] = np.inf
        order = np.lexsort((np.arange(len(x)), exact))[:k]
        there = np.isfinite(exact[order])
        ids[row, : there.sum()] = order[there]
        distances[row, : there.sum()] = exact[order[there]]
    return ids, distances


def recall(found: np.ndarray, truth: np.ndarray, at: int) -> float:
    """Mean share of the true nearest that were found, over rows that have any."""
    shares = [
        np.isin(true[true >= 0], near).mean()
        for near, true in zip(found[:, :at], truth[:, :at], strict=True)
        if (true >= 0).any()
    ]
    return float(np.mean(shares))
