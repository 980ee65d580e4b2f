"""Figures of retrieval: sources by sources, hubs, copies, and the text of a token."""

from __future__ import annotations

import numpy as np
from matplotlib.patches import Rectangle

from retro_db.printing import printable
from retro_db.report.drawing import (
    SERIES,
    draw_bars,
    draw_rows,
    hint,
    new_axes,
)
from retro_db.report.facts import Facts
from retro_db.report.figure import Figure, Grid, doubling, share, short
from retro_db.report.retrieval import EXACT, Retrieval

# Sources that a drawing shows; of more, the largest, and the others together.
_SOURCES = 8
# Of the color behind the text of a cell that has all neighbors, so that the text can be read.
DEEPEST = 0.45
_OTHERS = "all others"


def draw_matrix(facts: Facts) -> Figure:
    """Draws from which sources the neighbors of each source's chunks come."""
    retrieval = facts.retrieval
    names, groups = _grouped(retrieval)
    matrix = groups @ retrieval.matrix @ groups.T
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    of_all = groups @ np.array([source.chunks for source in facts.manifest.sources])
    size = len(names)
    canvas, axes = new_axes(height=110 + 26 * size)
    for row, column in np.ndindex(size, size):
        value = float(shares[row, column])
        cell = Rectangle((column, row), 1, 1, color=SERIES[0], alpha=DEEPEST * value, linewidth=0)
        hint(
            axes.add_patch(cell),
            [f"{names[row]}: {value:.2%} of the neighbors come from {names[column]}"],
        )
        text = axes.text(column + 0.5, row + 0.5, f"{value:.0%}", ha="center", va="center")
        text.set(fontsize=11 if size < 6 else 9, gid=f"value-{row}-{column}")
    axes.set(xlim=(0, size), ylim=(size, 0), xlabel="neighbors from", ylabel="chunks of")
    axes.set_xticks(np.arange(size) + 0.5, list(map(short, names)), rotation=40, ha="right")
    axes.set_yticks(np.arange(size) + 0.5, list(map(short, names)))
    axes.grid(visible=False)
    rows = [
        [name, *(f"{value:.2%}" for value in line), f"{line_sum:,}"]
        for name, line, line_sum in zip(names, shares, matrix.sum(axis=1), strict=True)
    ]
    rows.append(
        ["share of all chunks", *(share(int(count), int(of_all.sum())) for count in of_all), ""]
    )
    own = int(np.trace(matrix))
    return Figure(
        "matrix",
        "Sources by sources",
        "The share of the neighbors of one source's chunks that come from another. "
        f"{_measured(retrieval)} If sources did not matter, each row would be like the last of the table.",
        f"{share(own, int(matrix.sum()))} of all neighbors come from the source of their chunk.",
        canvas,
        Grid(["chunks of", *names, "neighbors"], rows),
    )


def draw_hubs(facts: Facts) -> Figure:
    """Draws how often chunks are neighbors."""
    retrieval, k = facts.retrieval, facts.manifest.neighbors.k
    sizes = retrieval.hubs.sizes
    names, counts = doubling(sizes)
    canvas, axes = new_axes()
    draw_bars(axes, names or ["0"], [counts if len(counts) else np.zeros(1)], ["chunks"])
    axes.set(xlabel="lists of neighbors that a chunk is in, up to", ylabel="% of chunks")
    ordered = np.sort(sizes)[::-1]
    top = max(1, len(ordered) // 100)
    top_share = share(int(ordered[:top].sum()), int(ordered.sum()))
    rows = [[name, f"{count:,}"] for name, count in zip(names, counts, strict=True)]
    rows += [["1% of the chunks hold", top_share], ["most", f"{int(sizes.max(initial=0)):,}"]]
    most = f"the 1% that are it most often fill {top_share} of all lists"
    if not retrieval.is_whole:
        return Figure(
            "hubs",
            "Hubs",
            f"How often a chunk is one of the {k} neighbors of another, N_k. {_measured(retrieval)} Chunks "
            "that are in none of these lists are not counted, and so there is no skewness.",
            f"Of {len(sizes):,} chunks that are a neighbor in the sample, {most}.",
            canvas,
            Grid(["lists, up to", "chunks"], rows),
        )
    never = int((sizes == 0).sum())
    skewness = f"{retrieval.hubs.skewness:.2f}"
    rows += [["mean", f"{sizes.mean() if len(sizes) else 0:,.2f}"], ["skewness", skewness]]
    return Figure(
        "hubs",
        "Hubs",
        f"How often a chunk of the index is one of the {k} neighbors of another, N_k. {_measured(retrieval)} "
        "A large skewness means that few chunks, hubs, are neighbors of very many.",
        f"{share(never, len(sizes))} of the chunks are nobody's neighbor; {most}; skewness {skewness}.",
        canvas,
        Grid(["lists, up to", "chunks"], rows),
    )


def draw_copies(retrieval: Retrieval) -> Figure:
    """Draws how many chunks of each source are copies."""
    names, groups = _grouped(retrieval)
    chunks, at_zero = groups @ retrieval.chunks, groups @ retrieval.at_zero
    kinds = {"% with a neighbor at distance 0": at_zero}
    if retrieval.copies is not None:
        kinds = {"% copies": groups @ retrieval.copies, **kinds}
    canvas, axes = new_axes(height=70 + 34 * len(names))
    shares = [100 * counts / np.maximum(chunks, 1) for counts in kinds.values()]
    draw_rows(axes, list(map(short, names)), shares, list(kinds))
    axes.set(xlabel="% of the source's chunks")
    axes.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.1)
    rows = [
        [name, f"{chunks[row]:,}"]
        + [
            cell
            for counts in kinds.values()
            for cell in (f"{counts[row]:,}", share(int(counts[row]), int(chunks[row])))
        ]
        for row, name in enumerate(names)
    ]
    headers = ["at distance 0", "% at 0"]
    summary = f"{at_zero.sum():,} chunks have their nearest neighbor at distance 0."
    if retrieval.copies is not None:
        headers = ["copies", "% copies", *headers]
        summary = (
            f"{retrieval.copies.sum():,} of {chunks.sum():,} chunks are exact copies of an earlier one; "
            f"{summary}"
        )
    return Figure(
        "copies",
        "Copies by source",
        "A copy has the very tokens of a chunk before it, in any source; a nearest neighbor at distance 0 "
        f"has the same embedding in another document. {_measured(retrieval)}"
        + ("" if retrieval.is_whole else f" Copies are counted up to {EXACT:,} chunks."),
        summary,
        canvas,
        Grid(["source", "chunks", *headers], rows),
    )


def draw_text_sizes(facts: Facts) -> Figure:
    """Draws how many bytes of text a token stands for in each source."""
    sizes = facts.text_sizes
    ratios = [size.bytes / size.tokens for size in sizes]
    shown = sorted(range(len(sizes)), key=lambda row: -sizes[row].chunks)[:_SOURCES]
    canvas, axes = new_axes(height=60 + 26 * max(len(shown), 1))
    names = [short(sizes[row].source) for row in shown]
    draw_rows(axes, names, [np.array([ratios[row] for row in shown])], ["bytes a token"])
    axes.set(xlabel="bytes of text a token")
    rows = [
        [
            printable(size.source),
            f"{size.chunks:,}",
            f"{size.tokens:,}",
            f"{size.bytes:,}",
            f"{ratio:.2f}",
        ]
        for size, ratio in zip(sizes, ratios, strict=True)
    ]
    whole = sum(size.bytes for size in sizes) / max(sum(size.tokens for size in sizes), 1)
    return Figure(
        "text",
        "Bytes a token",
        "Bytes of text in UTF-8 for each token: few mean a source that the tokenizer does not fit. Sampled: "
        "up to 200 chunks of each source, drawn evenly; a character that is cut at a chunk's end counts as "
        "three bytes.",
        f"{whole:.2f} bytes a token in {sum(size.chunks for size in sizes):,} chunks.",
        canvas,
        Grid(["source", "chunks", "tokens", "bytes", "bytes a token"], rows),
    )


def _measured(retrieval: Retrieval) -> str:
    count = f"{int(retrieval.chunks.sum()):,}"
    return (
        f"Counted over all {count} chunks." if retrieval.is_whole else f"Sampled: {count} chunks."
    )


def _grouped(retrieval: Retrieval) -> tuple[list[str], np.ndarray]:
    """Names of the sources to draw, and which sources each stands for: int64 [names, S]."""
    count = len(retrieval.sources)
    names = list(map(printable, retrieval.sources))
    if count <= _SOURCES:
        return names, np.eye(count, dtype=np.int64)
    largest = np.sort(np.argsort(-retrieval.chunks, kind="stable")[: _SOURCES - 1])
    groups = np.zeros((_SOURCES, count), np.int64)
    groups[np.arange(_SOURCES - 1), largest] = 1
    groups[-1] = 1 - groups.sum(axis=0)
    return [*(names[number] for number in largest), _OTHERS], groups
