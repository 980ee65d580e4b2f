"""Independent answers: straightforward NumPy in float64, sharing no code with the library."""

from __future__ import annotations

import numpy as np


def neighbors(
    keys: np.ndarray,
    documents: np.ndarray,
    allowed: np.ndarray,
    k: int,
    asked: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest allowed rows of other documents, and their squared distances, by brute force.

    Of all rows, or of those that are asked for.
    """
    x = keys.astype(np.float64)
    asked = np.arange(len(x)) if asked is None else asked
    ids = np.full((len(asked), k), -1)
    distances = np.full((len(asked), k), np.inf)
    for place, row in enumerate(asked):
        exact = ((x - x[row]) ** 2).sum(axis=1)
        exact[(documents == documents[row]) | ~allowed] = np.inf
        order = np.lexsort((np.arange(len(x)), exact))[:k]
        there = np.isfinite(exact[order])
        ids[place, : there.sum()] = order[there]
        distances[place, : there.sum()] = exact[order[there]]
    return ids, distances


def recall(found: np.ndarray, truth: np.ndarray, at: int) -> float:
    """Mean share of the true nearest that were found, over rows that have any."""
    shares = [
        np.isin(true[true >= 0], near).mean()
        for near, true in zip(found[:, :at], truth[:, :at], strict=True)
        if (true >= 0).any()
    ]
    return float(np.mean(shares))
