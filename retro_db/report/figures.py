"""The report's figures: each a drawing, with its numbers as a table and its message in words."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from retro_db.manifest.model import TRAIN, VALIDATION, RecallPoint
from retro_db.printing import printable
from retro_db.report.drawing import (
    MARKERS,
    SERIES,
    STYLE,
    TEXT,
    THOUSANDS,
    WIDTH,
    draw_bars,
    legend_above,
    new_axes,
    to_svg,
)
from retro_db.report.facts import LEAKAGE_K, ChunkMap, Facts, Step
from retro_db.report.leakage import BINS
from retro_db.report.stage_report import StageReport
from retro_db.search.tuning import Speed

_CHUNKS = {TRAIN: "training chunks", VALIDATION: "validation chunks"}
_BARS = 30


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
        svg: The drawing.
        grid: The drawing's numbers; None if they are too many.
    """

    name: str
    title: str
    caption: str
    summary: str
    svg: str
    grid: Grid | None


@dataclass(frozen=True)
class Drawings:
    """All figures.

    Attributes:
        flow: Data flow.
        measured: Figures of the sample of chunks, and of the inverted lists.
        recall: Recall against speed; None if recall was not measured.
        chunk_map: Map of chunks; None if the facts have none.
        stages: Time of every stage; None if it is not known.
    """

    flow: Figure
    measured: list[Figure]
    recall: Figure | None
    chunk_map: Figure | None
    stages: Figure | None


def draw(facts: Facts) -> Drawings:
    """Draws all figures of the report."""
    stages = facts.stages
    with mpl.rc_context(STYLE):
        return Drawings(
            flow=_flow(facts.flow),
            measured=[_lengths(facts), _distances(facts), _overlaps(facts), _lists(facts)],
            recall=_recall(facts) if facts.manifest.index.recall else None,
            chunk_map=_map(facts.chunk_map) if facts.chunk_map else None,
            stages=_stages(stages) if stages and stages.stages else None,
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
    axes.barh(rows_of_bars, kept, 0.6, color=SERIES[0], label="kept")
    axes.barh(rows_of_bars, left, 0.6, kept, label="left out", **hatched)
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
        f"Of {flow[0].kept:,} records, {_documents(flow)} documents stay.",
        to_svg(canvas, "flow"),
        Grid(["step", "kept", "left out", "unit", "why"], rows, {3, 4}),
    )


def _documents(flow: Sequence[Step]) -> str:
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
        f"{_share(full, len(facts.sample.lengths))} of the chunks have all {m} tokens.",
        to_svg(canvas, "lengths"),
        Grid(["tokens", "chunks"], [[n, f"{c:,}"] for n, c in zip(names, counts, strict=True)]),
    )


def _lists(facts: Facts) -> Figure:
    """Draws how many entries inverted lists have."""
    lists = facts.lists
    longest = int(lists.max(initial=0))
    width = -(-(longest + 1) // _BARS)
    edges = np.arange(0, longest + width + 1, width)
    counts, _ = np.histogram(lists, edges)
    canvas, axes = new_axes()
    axes.stairs(counts, edges, fill=True, color=SERIES[0])
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
        to_svg(canvas, "lists"),
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
    for (name, values), color, line in zip(distances.items(), SERIES, ("-", "--"), strict=False):
        counts, _ = np.histogram(np.minimum(values, most), edges)
        shares = 100 * counts / max(len(values), 1)
        axes.stairs(shares, edges, color=color, linestyle=line, linewidth=2, label=name)
    axes.set(xlabel="squared distance", ylabel="% of chunks")
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
        to_svg(canvas, "distances"),
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
        f"{_share(int((ratios[chosen] > 0.5).sum()), int(chosen.sum()))} of the {_CHUNKS[split]}"
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
        to_svg(canvas, "overlaps"),
        Grid(["r(C)", *(_CHUNKS[split] for split in groups)], rows),
    )


def _recall(facts: Facts) -> Figure:
    """Draws recall against speed, or against the lists visited if speed is not known."""
    index = facts.manifest.index
    chosen = index.recall[-1]
    speeds = _speeds(facts)
    rates = [speed.queries_per_second for speed in speeds]
    tried: Sequence[RecallPoint | Speed] = speeds or index.recall
    along = rates or [point.nprobe for point in tried]
    canvas, axes = new_axes()
    recalls = [point.recall for point in tried]
    axes.plot(along[:-1], recalls[:-1], color=SERIES[0], marker="o", ls="", label="tried")
    axes.plot(along[-1:], recalls[-1:], color=SERIES[1], marker="D", ls="", label="chosen")
    target = facts.manifest.config.get("index", {}).get("recall_target")
    if target is not None:
        axes.axhline(target, color=TEXT, linewidth=1, linestyle=":", label="target")
    axes.set(xscale="log", xlabel="queries a second" if speeds else "lists visited")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_ylabel("recall@10")
    legend_above(axes)
    rows = [
        [
            f"{point.nprobe:,}",
            f"{point.rerank:,}",
            f"{point.ef_search:,}" if point.ef_search else "-",
            f"{point.recall:.4f}",
            f"{rate:,.0f}" if rate else "-",
        ]
        for point, rate in itertools.zip_longest(tried, rates)
    ]
    side_by_side = f", {speeds[0].threads} of them side by side" if speeds else ""
    return Figure(
        "recall",
        "Recall against speed",
        f"{index.recall_queries:,} chunks searched for while the search was tuned{side_by_side}, and "
        "compared with exact search among other documents. The last row is the chosen way.",
        f"Chosen: {chosen.nprobe} of {index.lists:,} lists, recall@10 {chosen.recall:.3f}, at least "
        f"{chosen.lower_bound:.3f}" + (f", {rates[-1]:,.0f} queries a second." if rates else "."),
        to_svg(canvas, "recall"),
        Grid(["lists visited", "re-ranked", "breadth", "recall@10", "queries a second"], rows),
    )


def _speeds(facts: Facts) -> list[Speed]:
    """Returns the speeds of the search that the manifest describes, if they are known."""
    speeds = facts.stages.speeds if facts.stages else []
    chosen = facts.manifest.index.recall[-1]
    if not speeds:
        return []
    last = speeds[-1]
    same = (last.nprobe, last.rerank, last.ef_search, last.recall) == (
        chosen.nprobe,
        chosen.rerank,
        chosen.ef_search,
        chosen.recall,
    )
    return speeds if same else []


def _stages(report: StageReport) -> Figure:
    """Draws the seconds of every stage."""
    stages = report.stages
    seconds = [stage.seconds for stage in stages.values()]
    canvas, axes = new_axes(height=50 + 24 * len(stages))
    rows_of_bars = np.arange(len(stages))
    axes.barh(rows_of_bars, seconds, 0.6, color=SERIES[0])
    axes.set_yticks(rows_of_bars, [printable(name) for name in stages])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set(xlabel="seconds")
    rows = [
        [
            printable(name),
            f"{stage.seconds:,.1f}",
            f"{stage.work.done:,}",
            stage.unit,
            f"{stage.work.done / stage.seconds:,.0f}" if stage.seconds else "-",
            _details(stage.work.seconds),
        ]
        for name, stage in stages.items()
    ]
    slowest = max(stages, key=lambda name: stages[name].seconds)
    return Figure(
        "stages",
        "Time of every stage",
        f"Of generation {report.generation}. Seconds of all tasks, added up: workers side by side take "
        "less.",
        f"{sum(seconds):,.1f} seconds in all, most of them in {printable(slowest)}: "
        f"{stages[slowest].seconds:,.1f}.",
        to_svg(canvas, "stages"),
        Grid(["stage", "seconds", "done", "unit", "a second", "where"], rows, {3, 5}),
    )


def _details(seconds: dict[str, float]) -> str:
    whole = sum(seconds.values())
    return ", ".join(f"{name} {value / whole:.0%}" for name, value in sorted(seconds.items()))


def _map(chunk_map: ChunkMap) -> Figure:
    """Draws embeddings on a plane, by source."""
    names, most = np.array(chunk_map.sources, object), len(SERIES)
    ranked = [name for name, _ in Counter(chunk_map.sources).most_common()]
    alone = ranked if len(ranked) <= most else ranked[: most - 1]
    groups = [(name, names == name) for name in alone]
    if len(ranked) > most:
        groups.append(("all others", ~np.isin(names, alone)))
    canvas, axes = new_axes(height=WIDTH)
    for (name, chosen), color, marker in zip(groups, SERIES, MARKERS, strict=False):
        points = chunk_map.points[chosen]
        axes.scatter(*points.T, s=9, c=color, marker=marker, linewidths=0, label=_short(name))
    axes.set(xticks=[], yticks=[], xlabel="first direction", ylabel="second direction")
    axes.grid(visible=False)
    canvas.legend(loc="outside upper center", ncols=2, markerscale=1.6)
    rows = [[printable(name), f"{chosen.sum():,}"] for name, chosen in groups]
    return Figure(
        "map",
        "Map of chunks",
        f"Embeddings of {len(chunk_map.sources):,} chunks on their two main directions, which hold "
        f"{chunk_map.explained:.0%} of the variance. Near on the map need not be near in the database.",
        "Chunks drawn, by source: " + ", ".join(f"{row[0]} {row[1]}" for row in rows) + ".",
        to_svg(canvas, "map"),
        Grid(["source", "chunks drawn"], rows),
    )


def _edges(values: np.ndarray) -> np.ndarray:
    """Returns the edges of bins from 0 to the largest value."""
    most = float(values.max(initial=0)) or 1.0
    return np.linspace(0, most, _BARS + 1)


def _share(count: int, whole: int) -> str:
    return f"{count / max(whole, 1):.1%}"


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 20 else f"{name[:19]}…"
