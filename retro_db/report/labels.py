"""Texts beside the points of a drawing, placed so that none covers another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes

from retro_db.report.drawing import FONT, LINE, POINTS

# Width of a character and height of a line, in sizes of the font; distances from the point in points.
_CHARACTER, _LINE_HEIGHT = 0.62, 1.1
_DISTANCES = (0, 7, 14, 24, 36)
_DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7))
_POINT_SIZE = 4  # half of it


def label_points(
    axes: Axes, points: np.ndarray, texts: Sequence[str], *, size: float = FONT, centered: bool
) -> None:
    """Writes a text at or beside each point, in the order of the points.

    Call it when nothing moves the axes any more. A text that would cover another or leave the axes at
    every place is left out if it is centered, and else drawn at the best place.

    Args:
        axes: Axes that have the points.
        points: float [n, 2], in the axes' data.
        texts: The n texts.
        size: Size of the font.
        centered: Whether a text may cover the points, its own first of all.
    """
    canvas = axes.figure
    canvas.draw_without_rendering()
    scale = POINTS / canvas.dpi
    places = axes.transData.transform(points) * scale
    window = axes.get_window_extent().extents * scale
    taken = [] if centered else [_box(place, (_POINT_SIZE, _POINT_SIZE)) for place in places]
    for place, point, text in zip(places, points, texts, strict=True):
        half = np.array([len(text) * _CHARACTER, _LINE_HEIGHT]) * size / 2
        tried = [(_overlap(box, taken, window), box, off) for box, off in _boxes(place, half)]
        tried = [choice for choice in tried if centered or choice[2].any()]
        covered, box, offset = min(tried, key=lambda choice: choice[0])
        if centered and covered:
            continue
        taken.append(box)
        written = axes.annotate(
            text,
            point,
            offset,
            textcoords="offset points",
            fontsize=size,
            ha="center",
            va="center",
            arrowprops=_leader()
            if not centered and np.hypot(*(offset / (half + 8))) > 1.6
            else None,
        )
        written.set_in_layout(False)
        written.set_gid(f"label-{len(taken)}")


def _boxes(place: np.ndarray, half: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Boxes around a place from near to far, each with its offset."""
    for distance, direction in itertools.product(_DISTANCES, _DIRECTIONS):
        offset = np.sign(direction) * half * bool(distance) + np.array(direction) * distance
        yield _box(place + offset, half), offset


def _box(center: np.ndarray, half: np.ndarray | tuple[float, float]) -> np.ndarray:
    return np.concatenate([center - half, center + half])


def _overlap(box: np.ndarray, taken: Sequence[np.ndarray], window: np.ndarray) -> float:
    """Area of a box that is taken or outside the window."""
    inside = _common(box, window)
    outside = float(np.prod(box[2:] - box[:2])) - inside
    return round(outside + sum(_common(box, other) for other in taken), 3)


def _common(box: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    return float(np.prod(np.maximum(sides, 0)))


def _leader() -> dict[str, object]:
    return {"arrowstyle": "-", "color": LINE, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
