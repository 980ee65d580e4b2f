"""The report's drawings: SVG whose colors are the page's own, so that they follow its light and dark."""

from __future__ import annotations

import io
import itertools
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from retro_db.manifest.model import TRAIN, VALIDATION, RecallPoint
from retro_db.printing import printable
from retro_db.report.facts import LEAKAGE_K, ChunkMap, Facts, Step
from retro_db.report.leakage import BINS
from retro_db.report.stage_report import StageReport
from retro_db.search.tuning import Speed

_CHUNKS = {TRAIN: "training chunks", VALIDATION: "validation chunks"}
# What stands in a drawing for a color of the page, `var(--...)`.
_PAGE_COLORS = {
    "#010101": "text",
    "#010102": "line",
    "#0101f1": "c1",
    "#0101f2": "c2",
    "#0101f3": "c3",
    "#0101f4": "c4",
    "#0101f5": "c5",
    "#0101f6": "c6",
}
_PAGE_COLOR = re.compile("|".join(_PAGE_COLORS))
_TEXT, _LINE, *_SERIES = _PAGE_COLORS
_MARKERS = "os^DvP"
_WIDTH, _HEIGHT, _FONT = 360, 250, 12  # at the width of a phone nothing is scaled
_BARS = 30
_POINTS = 72  # to the inch, of matplotlib
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retro-db",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": _FONT,
    "text.color": _TEXT,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "hatch.color": _TEXT,
    "hatch.linewidth": 0.6,
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Grid:
    """A table: its first column names the rows, the others are numbers but for those in `texts`."""

    headers: list[str]
    rows: list[list[str]]
    texts: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Figure:
    """A drawing with what is needed by those who do not see it.

    Attributes:
        name: For links.
        title: Above it.
        caption: What it shows, how it was measured.
        summary: What it tells, in a sentence, in place of the drawing.
        svg: The drawing.
        grid: Its figures; None where they are too many.
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
        measured: What was measured on a sample.
        recall: None where it was not measured.
        chunk_map: None where there is none.
        stages: None where nothing is known of them.
    """

    flow: Figure
    measured: list[Figure]
    recall: Figure | None
    chunk_map: Figure | None
    stages: Figure | None


def draw(facts: Facts) -> Drawings:
    """Draws everything."""
    stages = facts.stages
    with mpl.rc_context(_STYLE):
        return Drawings(
            flow=_flow(facts.flow),
            measured=[_lengths(facts), _distances(facts), _overlaps(facts), _lists(facts)],
            recall=_recall(facts) if facts.manifest.index.recall else None,
            chunk_map=_map(facts.chunk_map) if facts.chunk_map else None,
            stages=_stages(stages) if stages and stages.stages else None,
        )


def _flow(flow: Sequence[Step]) -> Figure:
    """Kept and left out at each step, as shares of the first step of the same unit."""
    first = {step.unit: step.kept for step in reversed(flow)}
    whole = [max(first[step.unit], 1) for step in flow]
    kept = [100 * step.kept / size for step, size in zip(flow, whole, strict=True)]
    left = [100 * step.left_out / size for step, size in zip(flow, whole, strict=True)]
    canvas, axes = _axes(height=40 + 30 * len(flow))
    places = np.arange(len(flow))
    axes.barh(places, kept, 0.6, color=_SERIES[0], label="kept")
    axes.barh(places, left, 0.6, kept, fill=False, edgecolor=_TEXT, hatch="////", label="left out")
    axes.set_yticks(places, [step.name for step in flow])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="% of the records, and of the chunks")
    _legend_above(axes)
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
        "What was kept and what was left out, from records to neighbors. Keys are the encoder's vectors; the "
        "last steps are shares of the chunks that have one. Documents that were removed later are counted.",
        f"Of {flow[0].kept:,} records, {_documents(flow)} documents stay.",
        _svg(canvas, "flow"),
        Grid(["step", "kept", "left out", "unit", "why"], rows, {3, 4}),
    )


def _documents(flow: Sequence[Step]) -> str:
    return f"{[step.kept for step in flow if step.unit == 'documents'][-1]:,}"


def _lengths(facts: Facts) -> Figure:
    """How long chunks are."""
    m = facts.manifest.chunk.tokens
    width = max(1, m // 8)
    edges = np.append(np.arange(1, m + 1, width), m + 1)
    counts, _ = np.histogram(facts.sample.lengths, edges)
    names = [f"{a}" if a == b - 1 else f"{a} to {b - 1}" for a, b in itertools.pairwise(edges)]
    full = int((facts.sample.lengths == m).sum())
    canvas, axes = _axes()
    _bars(axes, names, [counts], ["chunks"])
    axes.set(xlabel="tokens", ylabel="% of chunks, log scale", yscale="log")
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.yaxis.set_minor_locator(NullLocator())
    return Figure(
        "lengths",
        "Chunk length",
        f"Tokens before the padding. Only the last chunk of a document is shorter than {m}.",
        f"{_share(full, len(facts.sample.lengths))} of the chunks have all {m} tokens.",
        _svg(canvas, "lengths"),
        Grid(["tokens", "chunks"], [[n, f"{c:,}"] for n, c in zip(names, counts, strict=True)]),
    )


def _lists(facts: Facts) -> Figure:
    """How long inverted lists are."""
    lists = facts.lists
    longest = int(lists.max(initial=0))
    width = -(-(longest + 1) // _BARS)
    edges = np.arange(0, longest + width + 1, width)
    counts, _ = np.histogram(lists, edges)
    canvas, axes = _axes()
    axes.stairs(counts, edges, fill=True, color=_SERIES[0])
    axes.set(xlabel="entries of a list", ylabel="lists")
    axes.xaxis.set_major_formatter(_THOUSANDS)
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
        _svg(canvas, "lists"),
        Grid(["measure", "value"], rows),
    )


def _distances(facts: Facts) -> Figure:
    """How far neighbors are."""
    k = facts.manifest.neighbors.k
    found = {"nearest": facts.sample.nearest}
    if k > 1:
        found[f"number {k}"] = facts.sample.last
    found = {name: values[np.isfinite(values)] for name, values in found.items()}
    every = np.concatenate(list(found.values()))
    most = float(np.percentile(every, 99.5)) if len(every) else 1.0
    edges = _edges(np.minimum(every, most))
    canvas, axes = _axes()
    for (name, values), color, line in zip(found.items(), _SERIES, ("-", "--"), strict=False):
        counts, _ = np.histogram(np.minimum(values, most), edges)
        shares = 100 * counts / max(len(values), 1)
        axes.stairs(shares, edges, color=color, linestyle=line, linewidth=2, label=name)
    axes.set(xlabel="squared distance", ylabel="% of chunks")
    _legend_above(axes)
    marks = (5, 25, 50, 75, 95)
    rows = [
        [f"{mark}%", *(f"{np.percentile(v, mark):,.3g}" if len(v) else "-" for v in found.values())]
        for mark in marks
    ]
    halves = zip(found, rows[2][1:], strict=True)
    return Figure(
        "distances",
        "Distance of neighbors",
        f"Squared L2 distance between keys, of the first and the last of {k} neighbors. Near 0, neighbors "
        "are copies. The farthest 0.5% are drawn at the end.",
        "For half of the chunks: " + ", ".join(map(" within ".join, halves)) + "."
        if len(every)
        else "No chunk has a neighbor.",
        _svg(canvas, "distances"),
        Grid(["share of chunks below", *found], rows),
    )


def _overlaps(facts: Facts) -> Figure:
    """r(C) of training and of validation chunks."""
    sample = facts.sample
    ratios, bins = sample.overlaps.ratios, sample.overlaps.bins
    groups = {split: sample.splits == split for split in (TRAIN, VALIDATION)}
    groups = {split: chosen for split, chosen in groups.items() if chosen.any()}
    counts = [np.bincount(bins[chosen], minlength=BINS + 1) for chosen in groups.values()]
    # Two bins in one, so that their names fit a phone; 0 stays by itself.
    paired = [np.append(one[0], one[1:].reshape(-1, 2).sum(axis=1)) for one in counts]
    edges = [f"{200 * number / BINS:g}" for number in range(BINS // 2 + 1)]
    canvas, axes = _axes()
    _bars(axes, edges, paired, [_CHUNKS[split] for split in groups])
    axes.set(xlabel="r(C) up to, in %", ylabel="% of chunks")
    if len(groups) > 1:
        _legend_above(axes)
    half = ", ".join(
        f"{_share(int((ratios[chosen] > 0.5).sum()), int(chosen.sum()))} of the {_CHUNKS[split]}"
        for split, chosen in groups.items()
    )
    rows = [
        [f"up to {edge}%" if number else "0", *(f"{one[number]:,}" for one in paired)]
        for number, edge in enumerate(edges)
    ]
    return Figure(
        "overlaps",
        "Copies in neighbors, r(C)",
        "The longest run of tokens that a chunk has in common with one of its "
        f"{min(LEAKAGE_K, facts.manifest.neighbors.k)} nearest neighbors and their continuations, over "
        "its length (RETRO, section 2.6).",
        f"More than half of their tokens stand in a neighbor for {half or 'no chunk'}.",
        _svg(canvas, "overlaps"),
        Grid(["r(C)", *(_CHUNKS[split] for split in groups)], rows),
    )


def _recall(facts: Facts) -> Figure:
    """Recall against speed; against the lists visited where speed is not known."""
    index = facts.manifest.index
    chosen = index.recall[-1]
    speeds = _own_speeds(facts)
    rates = [speed.queries_per_second for speed in speeds]
    tried: Sequence[RecallPoint | Speed] = speeds or index.recall
    along = rates or [point.nprobe for point in tried]
    canvas, axes = _axes()
    recalls = [point.recall for point in tried]
    axes.plot(along[:-1], recalls[:-1], color=_SERIES[0], marker="o", ls="", label="tried")
    axes.plot(along[-1:], recalls[-1:], color=_SERIES[1], marker="D", ls="", label="chosen")
    target = facts.manifest.config.get("index", {}).get("recall_target")
    if target is not None:
        axes.axhline(target, color=_TEXT, linewidth=1, linestyle=":", label="target")
    axes.set(xscale="log", xlabel="queries a second" if speeds else "lists visited")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.set_ylabel("recall@10")
    _legend_above(axes)
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
        _svg(canvas, "recall"),
        Grid(["lists visited", "re-ranked", "breadth", "recall@10", "queries a second"], rows),
    )


def _own_speeds(facts: Facts) -> list[Speed]:
    """Those of the search that the manifest describes, if they are known."""
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
    """Seconds of every stage."""
    stages = report.stages
    seconds = [stage.seconds for stage in stages.values()]
    canvas, axes = _axes(height=50 + 24 * len(stages))
    places = np.arange(len(stages))
    axes.barh(places, seconds, 0.6, color=_SERIES[0])
    axes.set_yticks(places, [printable(name) for name in stages])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_THOUSANDS)
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
        _svg(canvas, "stages"),
        Grid(["stage", "seconds", "done", "unit", "a second", "where"], rows, {3, 5}),
    )


def _details(seconds: dict[str, float]) -> str:
    whole = sum(seconds.values())
    return ", ".join(f"{name} {value / whole:.0%}" for name, value in sorted(seconds.items()))


def _map(chunk_map: ChunkMap) -> Figure:
    """Keys on a plane, by source."""
    names, most = np.array(chunk_map.sources, object), len(_SERIES)
    ranked = [name for name, _ in Counter(chunk_map.sources).most_common()]
    alone = ranked if len(ranked) <= most else ranked[: most - 1]
    groups = [(name, names == name) for name in alone]
    if len(ranked) > most:
        groups.append(("all others", ~np.isin(names, alone)))
    canvas, axes = _axes(height=_WIDTH)
    for (name, chosen), color, marker in zip(groups, _SERIES, _MARKERS, strict=False):
        points = chunk_map.points[chosen]
        axes.scatter(*points.T, s=9, c=color, marker=marker, linewidths=0, label=_short(name))
    axes.set(xticks=[], yticks=[], xlabel="first direction", ylabel="second direction")
    axes.grid(visible=False)
    canvas.legend(loc="outside upper center", ncols=2, markerscale=1.6)
    rows = [[printable(name), f"{chosen.sum():,}"] for name, chosen in groups]
    return Figure(
        "map",
        "Map of chunks",
        f"Keys of {len(chunk_map.sources):,} chunks on their two main directions, which hold "
        f"{chunk_map.explained:.0%} of the variance. Near on the map need not be near in the database.",
        "Chunks drawn, by source: " + ", ".join(f"{row[0]} {row[1]}" for row in rows) + ".",
        _svg(canvas, "map"),
        Grid(["source", "chunks drawn"], rows),
    )


_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.10g}")


def _axes(height: int = _HEIGHT) -> tuple[Canvas, Axes]:
    canvas = Canvas((_WIDTH / _POINTS, height / _POINTS), layout="constrained")
    axes = canvas.subplots()
    axes.grid(visible=True, axis="both")
    return canvas, axes


def _bars(
    axes: Axes, names: Sequence[str], counts: Sequence[np.ndarray], labels: Sequence[str]
) -> None:
    """Bars side by side, each kind as shares of its own."""
    places, width = np.arange(len(names)), 0.8 / max(len(counts), 1)
    for number, (one, label) in enumerate(zip(counts, labels, strict=True)):
        left = places - 0.4 + width * (number + 0.5)
        shares = 100 * one / max(one.sum(), 1)
        hatch = "////" if number else None
        axes.bar(left, shares, width, color=_SERIES[number], hatch=hatch, label=label)
    axes.set_xticks(places, names, rotation=45 if max(map(len, names)) > 4 else 0)
    axes.grid(visible=False, axis="x")


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=3, borderaxespad=0.1)


def _edges(values: np.ndarray) -> np.ndarray:
    """Of bins from 0."""
    most = float(values.max(initial=0)) or 1.0
    return np.linspace(0, most, _BARS + 1)


def _share(count: int, whole: int) -> str:
    return f"{count / max(whole, 1):.1%}"


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 20 else f"{name[:19]}…"


def _page_color(found: re.Match[str]) -> str:
    return f"var(--{_PAGE_COLORS[found[0]]})"


def _svg(canvas: Canvas, name: str) -> str:
    """The drawing as an element for a page: it scales, its ids are its own, its colors the page's."""
    drawn = io.BytesIO()
    canvas.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(drawn.getvalue())  # noqa: S314 - matplotlib's own
    for unwanted in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(unwanted)
    for size in ("width", "height", "version"):
        del root.attrib[size]
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href":
                element.set(key, value.replace("#", f"#{name}-"))
            else:
                element.set(
                    key, _PAGE_COLOR.sub(_page_color, value).replace("url(#", f"url(#{name}-")
                )
    # A picture with one name, told in full beside it.
    root.set("aria-hidden", "true")
    return ET.tostring(root, "unicode")
