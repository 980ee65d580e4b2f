"""A figure of the report: a drawing, its numbers as a table, and its message in words."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure as Canvas

from retro_db.printing import printable


@dataclass(frozen=True)
class Grid:
    """A table: its first column names the rows, the others are numbers but for those in `texts`."""

    headers: list[str]
    rows: list[list[str]]
    texts: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Figure:
    """A drawing, with its content in words and numbers for those who do not see it.

    Attributes:
        name: Name in links.
        title: Title above the drawing.
        caption: What the drawing shows, and how it was measured.
        summary: The drawing's message in a sentence, which replaces it.
        canvas: The drawing.
        grid: The drawing's numbers; None if they are too many.
    """

    name: str
    title: str
    caption: str
    summary: str
    canvas: Canvas
    grid: Grid | None


def share(count: int, whole: int) -> str:
    """A part of a whole in percent, as text."""
    return f"{count / max(whole, 1):.1%}"


def short(name: str) -> str:
    """A name from anywhere, cut to fit beside a drawing."""
    name = printable(name)
    return name if len(name) <= 20 else f"{name[:19]}…"


def doubling(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Counts whole numbers in ranges of which each reaches twice as far as the one before.

    Args:
        values: int64 [n], none below 0.

    Returns:
        The last number of every range, such as 0, 1, 2, 4, 8, and the numbers in it, int64 [ranges]; without
        empty ranges at either end.
    """
    # 0, 1, 2, 3 to 4, 5 to 8: the smallest power of two that is not below the number.
    places = np.where(values > 0, np.ceil(np.log2(np.maximum(values, 1))) + 1, 0).astype(np.int64)
    counts = np.bincount(places)
    first = int(places.min()) if len(places) else 0
    names = [f"{1 << place - 1:,}" if place else "0" for place in range(first, len(counts))]
    return names, counts[first:]
