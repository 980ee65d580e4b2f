"""Arithmetic on rows of ids."""

from __future__ import annotations

import numpy as np


def ids_in(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ids of ranges, one range after the other: int64 [sum of counts].

    Args:
        firsts: First id of each range, int64 [n].
        counts: Number of ids in each range, int64 [n].
    """
    ends = np.cumsum(counts)
    return np.repeat(firsts - ends + counts, counts) + np.arange(counts.sum())


def pack(values: np.ndarray, kept: np.ndarray, fill: float, count: int | None = None) -> np.ndarray:
    """Moves the kept items of every row to its beginning, in order.

    Args:
        values: Rows of items, [..., k].
        kept: Whether an item is kept, bool [..., k].
        fill: Value for the rest of a row.
        count: Number of items wanted of a row; by default all k.

    Returns:
        A new array [..., count] of the values' type.
    """
    order = np.argsort(~kept, axis=-1, kind="stable")[..., :count]
    is_kept = np.take_along_axis(kept, order, axis=-1)
    return np.where(is_kept, np.take_along_axis(values, order, axis=-1), values.dtype.type(fill))
