"""Arithmetic on rows of ids."""

from __future__ import annotations

import numpy as np


def ids_in(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ids of ranges, one range after the other: int64 [sum of counts].

    Args:
        firsts: First id of each range, int64 [n].
        counts: Of its ids, int64 [n].
    """
    ends = np.cumsum(counts)
    return np.repeat(firsts - ends + counts, counts) + np.arange(counts.sum())


def pack(values: np.ndarray, kept: np.ndarray, fill: float, count: int | None = None) -> np.ndarray:
    """Moves what is kept of every row to its beginning, in order.

    Args:
        values: [..., k].
        kept: bool [..., k].
        fill: What the rest of a row becomes.
        count: Items of a row that are wanted; all k where left out.

    Returns:
        A new array [..., count] of the values' type.
    """
    order = np.argsort(~kept, axis=-1, kind="stable")[..., :count]
    there = np.take_along_axis(kept, order, axis=-1)
    return np.where(there, np.take_along_axis(values, order, axis=-1), values.dtype.type(fill))
