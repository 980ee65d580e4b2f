"""The report's figures of documents, chunks and lists, and all figures together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from retro_db.manifest.model import TRAIN, VALIDATION
from retro_db.printing import printable
from retro_db.report.drawing import (
    SERIES,
    STYLE,
    TEXT,
    THOUSANDS,
    draw_bars,
    hint,
    hint_bins,
    legend_above,
    new_axes,
)
from retro_db.report.facts import LEAKAGE_K, Facts, Step
from retro_db.report.figure import Figure, Grid, doubling, share
from retro_db.report.leakage import BINS
from retro_db.report.map_figure import draw_map
from retro_db.report.retrieval_figures import draw_copies, draw_hubs, draw_matrix, draw_text_sizes
from retro_db.report.speed_figures import draw_pace, draw_recall, draw_stages

_CHUNKS = {TRAIN: "training chunks", VALIDATION: "validation chunks"}
_BARS = 30


@dataclass(frozen=True)
class Drawings:
    """All figures.

    Attributes:
        flow: Data flow.
        measured: Figures of documents, of the sample of chunks, and of the inverted lists.
        retrieval: Figures of neighbors by source, hubs and copies.
        recall: Recall against speed; None if recall was not measured.
        chunk_map: Map of chunks; None if the facts have none.
        build: Figures of the stages' times, as far as these are known.
    """

    flow: Figure
    measured: list[Figure]
    retrieval: list[Figure]
    recall: Figure | None
    chunk_map: Figure | None
    build: list[Figure]


def draw(facts: Facts) -> Drawings:
    """Draws all figures of the report."""
    stages = facts.stages.stages if facts.stages else {}
    with mpl.rc_context(STYLE):
        retrieval = [draw_hubs(facts), draw_copies(facts.retrieval), draw_text_sizes(facts)]
        if len(facts.retrieval.sources) > 1:
            retrieval.insert(0, draw_matrix(facts))
        build = [draw_stages(facts.stages)] if facts.stages and stages else []
        if any(stage.pace for stage in stages.values()):
            build.append(draw_pace(stages))
        return Drawings(
            flow=_flow(facts.flow),
            measured=[
                _lengths(facts),
                _documents(facts),
                _distances(facts),
                _overlaps(facts),
                _lists(facts),
            ],
            retrieval=retrieval,
            recall=draw_recall(facts) if facts.manifest.index.recall else None,
            chunk_map=draw_map(facts.chunk_map) if facts.chunk_map else None,
            build=build,
        )


def _flow(flow: Sequence[Step]) -> Figure:
    """Draws what each step kept and dropped, as shares of the first step of the same unit."""
    first = {step.unit: step.kept for step in reversed(flow)}
    whole = [max(first[step.unit], 1) for step in flow]
    kept = [100 * step.kept / size for step, size in zip(flow, whole, strict=True)]
    left = [100 * step.left_out / size for step, size in zip(flow, whole, strict=True)]
    canvas, axes = new_axes(height=40 + 30 * len(flow))
    rows_of_bars = np.arange(len(flow))
    hatched = {"fill": False, "edgecolor": TEXT, "hatch": "////"}
    bars = axes.barh(rows_of_bars, kept, 0.6, color=SERIES[0], label="kept")
    bars_left = axes.barh(rows_of_bars, left, 0.6, kept, label="left out", **hatched)
    for step, bar, bar_left in zip(flow, bars, bars_left, strict=True):
        hint(bar, [f"{step.name}: {step.kept:,} {step.unit}"])
        why = f": {printable(step.reasons)}" if step.reasons else ""
        hint(bar_left, [f"left out: {step.left_out:,} {step.unit}{why}"])
    axes.set_yticks(rows_of_bars, [step.name for step in flow])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="% of the records, and of the chunks")
    legend_above(axes)
    rows = [
        [
            step.name,
            f"{step.kept:,}",
            f"{step.left_out:,}",
            step.unit,
            printable(step.reasons) if step.left_out else "",
        ]
        for step in flow
    ]
    return Figure(
        "flow",
        "Data flow",
        "What was kept and what was left out, from records to neighbors. The last steps are shares of the "
        "chunks that have an embedding. Documents that were removed later are counted.",
        f"Of {flow[0].kept:,} records, {_kept_documents(flow)} documents stay.",
        canvas,
        Grid(["step", "kept", "left out", "unit", "why"], rows, {3, 4}),
    )


def _kept_documents(flow: Sequence[Step]) -> str:
    return f"{[step.kept for step in flow if step.unit == 'documents'][-1]:,}"


def _lengths(facts: Facts) -> Figure:
    """Draws how many tokens chunks have."""
    m = facts.manifest.chunk.tokens
    width = max(1, m // 8)
    edges = np.append(np.arange(1, m + 1, width), m + 1)
    counts, _ = np.histogram(facts.sample.lengths, edges)
    names = [f"{a}" if a == b - 1 else f"{a} to {b - 1}" for a, b in itertools.pairwise(edges)]
    full = int((facts.sample.lengths == m).sum())
    canvas, axes = new_axes()
    draw_bars(axes, names, [counts], ["chunks"])
    axes.set(xlabel="tokens", ylabel="% of chunks, log scale", yscale="log")
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.yaxis.set_minor_locator(NullLocator())
    return Figure(
        "lengths",
        "Chunk length",
        f"Tokens before the padding. Only the last chunk of a document is shorter than {m}.",
        f"{share(full, len(facts.sample.lengths))} of the chunks have all {m} tokens.",
        canvas,
        Grid(["tokens", "chunks"], [[n, f"{c:,}"] for n, c in zip(names, counts, strict=True)]),
    )


def _documents(facts: Facts) -> Figure:
    """Draws how many tokens documents have."""
    tokens = facts.documents.tokens
    names, counts = doubling(tokens)
    canvas, axes = new_axes()
    draw_bars(axes, names, [counts], ["documents"])
    axes.set(xlabel="tokens, up to", ylabel="% of documents")
    where = (
        f"All {len(tokens):,} documents."
        if facts.documents.is_whole
        else f"The {len(tokens):,} documents of the files that the sample comes from."
    )
    middle, mean, longest = (
        (f"{np.median(tokens):,.0f}", f"{tokens.mean():,.0f}", f"{tokens.max():,}")
        if len(tokens)
        else ("-", "-", "-")
    )
    return Figure(
        "documents",
        "Document length",
        f"Tokens of a document. {where} Each bar reaches twice as far as the one before.",
        f"Half of the documents have at most {middle} tokens; the mean is {mean}, the longest has {longest}.",
        canvas,
        Grid(
            ["tokens up to", "documents"],
            [[n, f"{c:,}"] for n, c in zip(names, counts, strict=True)],
        ),
    )


def _lists(facts: Facts) -> Figure:
    """Draws how many entries inverted lists have."""
    lists = facts.lists
    longest = int(lists.max(initial=0))
    width = -(-(longest + 1) // _BARS)
    edges = np.arange(0, longest + width + 1, width)
    counts, _ = np.histogram(lists, edges)
    canvas, axes = new_axes()
    bars = axes.bar(edges[:-1], counts, width, align="edge", color=SERIES[0])
    for bar, low, count in zip(bars, edges, counts, strict=False):
        hint(bar, [f"{low:,} to {low + width - 1:,} entries: {count:,} lists"])
    axes.set(xlabel="entries of a list", ylabel="lists")
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    mean = float(lists.mean()) if len(lists) else 0.0
    uneven = float((lists**2).mean() / mean**2) if mean else 1.0
    middle = float(np.median(lists)) if len(lists) else 0.0
    rows = [
        ["lists", f"{len(lists):,}"],
        ["entries", f"{lists.sum():,}"],
        ["empty lists", f"{int((lists == 0).sum()):,}"],
        ["median", f"{middle:,.0f}"],
        ["longest", f"{longest:,}"],
        ["imbalance", f"{uneven:.2f}"],
    ]
    return Figure(
        "lists",
        "Inverted lists",
        "Entries of the index's lists. The imbalance is how much longer a search takes than in equal "
        "lists.",
        f"{len(lists):,} lists, of {middle:,.0f} entries in the middle; imbalance {uneven:.2f}.",
        canvas,
        Grid(["measure", "value"], rows),
    )


def _distances(facts: Facts) -> Figure:
    """Draws how far neighbors are from their chunks."""
    k = facts.manifest.neighbors.k
    stored = {"nearest": facts.sample.nearest}
    if k > 1:
        stored[f"number {k}"] = facts.sample.last
    distances = {name: values[np.isfinite(values)] for name, values in stored.items()}
    together = np.concatenate(list(distances.values()))
    most = float(np.percentile(together, 99.5)) if len(together) else 1.0
    edges = _edges(np.minimum(together, most))
    canvas, axes = new_axes()
    drawn = []
    for (name, values), color, line in zip(distances.items(), SERIES, ("-", "--"), strict=False):
        counts, _ = np.histogram(np.minimum(values, most), edges)
        shares = 100 * counts / max(len(values), 1)
        axes.stairs(shares, edges, color=color, linestyle=line, linewidth=2, label=name)
        drawn.append([f"{name} {portion:.1f}%" for portion in shares])
    axes.set(xlabel="squared distance", ylabel="% of chunks")
    hint_bins(
        axes,
        edges,
        [
            f"{low:.3g} to {high:.3g}: {', '.join(portions)} of the chunks"
            for low, high, *portions in zip(edges, edges[1:], *drawn, strict=False)
        ],
    )
    legend_above(axes)
    marks = (5, 25, 50, 75, 95)
    rows = [
        [
            f"{mark}%",
            *(
                f"{np.percentile(values, mark):,.3g}" if len(values) else "-"
                for values in distances.values()
            ),
        ]
        for mark in marks
    ]
    halves = zip(distances, rows[2][1:], strict=True)
    return Figure(
        "distances",
        "Distance of neighbors",
        f"Squared L2 distance between embeddings, of the first and the last of {k} neighbors. Near 0, "
        "neighbors are copies. The farthest 0.5% are drawn at the end.",
        "For half of the chunks: " + ", ".join(map(" within ".join, halves)) + "."
        if len(together)
        else "No chunk has a neighbor.",
        canvas,
        Grid(["share of chunks below", *distances], rows),
    )


def _overlaps(facts: Facts) -> Figure:
    """Draws r(C) of training and of validation chunks."""
    sample = facts.sample
    ratios, bins = sample.overlaps.ratios, sample.overlaps.bins
    groups = {split: sample.splits == split for split in (TRAIN, VALIDATION)}
    groups = {split: chosen for split, chosen in groups.items() if chosen.any()}
    counts = [np.bincount(bins[chosen], minlength=BINS + 1) for chosen in groups.values()]
    # Two bins in one, so that their names fit a phone; 0 stays by itself.
    paired = [np.append(bars[0], bars[1:].reshape(-1, 2).sum(axis=1)) for bars in counts]
    edges = [f"{200 * number / BINS:g}" for number in range(BINS // 2 + 1)]
    canvas, axes = new_axes()
    draw_bars(axes, edges, paired, [_CHUNKS[split] for split in groups])
    axes.set(xlabel="r(C) up to, in %", ylabel="% of chunks")
    if len(groups) > 1:
        legend_above(axes)
    half = ", ".join(
        f"{share(int((ratios[chosen] > 0.5).sum()), int(chosen.sum()))} of the {_CHUNKS[split]}"
        for split, chosen in groups.items()
    )
    rows = [
        [f"up to {edge}%" if number else "0", *(f"{bars[number]:,}" for bars in paired)]
        for number, edge in enumerate(edges)
    ]
    return Figure(
        "overlaps",
        "Copies in neighbors, r(C)",
        "The longest run of tokens that a chunk has in common with one of its "
        f"{min(LEAKAGE_K, facts.manifest.neighbors.k)} nearest neighbors and their continuations, over "
        "its length (RETRO, section 2.6).",
        f"More than half of their tokens stand in a neighbor for {half or 'no chunk'}.",
        canvas,
        Grid(["r(C)", *(_CHUNKS[split] for split in groups)], rows),
    )


def _edges(values: np.ndarray) -> np.ndarray:
    """Returns the edges of bins from 0 to the largest value."""
    most = float(values.max(initial=0)) or 1.0
    return np.linspace(0, most, _BARS + 1)
