"""The figure of the map: chunks by source on a plane, with the words of their clusters."""

from __future__ import annotations

from collections import Counter

import numpy as np

from retro_db.printing import printable
from retro_db.report.chunk_map import ChunkMap
from retro_db.report.drawing import MARKERS, SERIES, WIDTH, hint, new_axes
from retro_db.report.figure import Figure, Grid, short
from retro_db.report.labels import label_points

_SHOWN = 60  # characters of a chunk that pointing at it shows
_LABEL_SIZE, _LABEL_WORDS = 9, 2


def draw_map(chunk_map: ChunkMap) -> Figure:
    """Draws embeddings on a plane, by source."""
    sources = [chunk.source for chunk in chunk_map.chunks]
    names, most = np.array(sources, object), len(SERIES)
    ranked = [name for name, _ in Counter(sources).most_common()]
    alone = ranked if len(ranked) <= most else ranked[: most - 1]
    groups = [(name, np.flatnonzero(names == name)) for name in alone]
    if len(ranked) > most:
        groups.append(("all others", np.flatnonzero(~np.isin(names, alone))))
    canvas, axes = new_axes(height=WIDTH)
    for (name, chosen), color, marker in zip(groups, SERIES, MARKERS, strict=False):
        points = chunk_map.points[chosen]
        style = {
            "ls": "",
            "color": color,
            "marker": marker,
            "markersize": 3.5,
            "markeredgewidth": 0,
        }
        [markers] = axes.plot(*points.T, label=short(name), **style)
        chunks = [chunk_map.chunks[row] for row in chosen]
        hint(markers, [_shown(chunk.text) for chunk in chunks], [chunk.id for chunk in chunks])
    axes.set(xticks=[], yticks=[], xlabel="first direction", ylabel="second direction")
    axes.grid(visible=False)
    canvas.legend(loc="outside upper center", ncols=2, markerscale=2)
    middles = [
        np.median(chunk_map.points[chunk_map.clusters == number], axis=0)
        for number in range(len(chunk_map.words))
    ]
    label_points(
        axes,
        np.array(middles),
        [", ".join(words[:_LABEL_WORDS]) for words in chunk_map.words],
        size=_LABEL_SIZE,
        centered=True,
    )
    rows = [[printable(name), f"{len(chosen):,}"] for name, chosen in groups]
    return Figure(
        "map",
        "Map of chunks",
        f"Embeddings of {len(sources):,} chunks of the sample on their two main directions, which hold "
        f"{chunk_map.explained:.0%} of the variance. Near on the map need not be near in the database. The "
        "words are those that set the chunks of a cluster apart, written in its middle where they fit.",
        "Chunks drawn, by source: " + ", ".join(f"{row[0]} {row[1]}" for row in rows) + ".",
        canvas,
        Grid(["source", "chunks drawn"], rows),
    )


def clusters_of(chunk_map: ChunkMap) -> Grid:
    """Returns the clusters of the map as a table."""
    sizes = np.bincount(chunk_map.clusters, minlength=len(chunk_map.words))
    rows = [
        [f"{number}", f"{size:,}", ", ".join(words) or "-"]
        for number, (size, words) in enumerate(zip(sizes, chunk_map.words, strict=True), start=1)
    ]
    return Grid(["cluster", "chunks", "words"], rows, {2})


def _shown(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
