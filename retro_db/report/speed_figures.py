"""Figures of speed: of the search, and of the stages of the build."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from retro_db.manifest.model import RecallPoint
from retro_db.printing import printable
from retro_db.report.drawing import (
    SERIES,
    TEXT,
    THOUSANDS,
    draw_rows,
    hint,
    legend_above,
    new_axes,
)
from retro_db.report.facts import Facts
from retro_db.report.figure import Figure, Grid
from retro_db.report.labels import label_points
from retro_db.report.stage_report import StageReport, StageWork
from retro_db.search.tuning import Speed

_LABEL_SIZE = 9


def draw_recall(facts: Facts) -> Figure:
    """Draws recall against speed, or against the lists visited if speed is not known."""
    index = facts.manifest.index
    chosen = index.recall[-1]
    speeds = _speeds(facts)
    rates = [speed.queries_per_second for speed in speeds]
    tried: Sequence[RecallPoint | Speed] = speeds or index.recall
    along = rates or [point.nprobe for point in tried]
    canvas, axes = new_axes()
    recalls = [point.recall for point in tried]
    ways = [_way(point, rate) for point, rate in itertools.zip_longest(tried, rates)]
    [others] = axes.plot(
        along[:-1], recalls[:-1], color=SERIES[0], marker="o", ls="", label="tried"
    )
    [last] = axes.plot(along[-1:], recalls[-1:], color=SERIES[1], marker="D", ls="", label="chosen")
    hint(others, ways[:-1])
    hint(last, ways[-1:])
    target = facts.manifest.config.get("index", {}).get("recall_target")
    if target is not None:
        axes.axhline(target, color=TEXT, linewidth=1, linestyle=":", label="target")
    axes.set(xscale="log", xlabel="queries a second" if speeds else "lists visited")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_ylabel("recall@10")
    axes.margins(0.08)
    legend_above(axes)
    # The chosen way first, and one label where several ways lie on one point.
    places = dict(reversed(list(zip(zip(along, recalls, strict=True), tried, strict=True))))
    label_points(
        axes,
        np.array(list(places)),
        [f"{point.nprobe:,}" for point in places.values()],
        size=_LABEL_SIZE,
        centered=False,
    )
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
        "compared with exact search among other documents. The number beside a point is nprobe, the lists "
        "visited; the last row of the table is the chosen way.",
        f"Chosen: {chosen.nprobe} of {index.lists:,} lists, recall@10 {chosen.recall:.3f}, at least "
        f"{chosen.lower_bound:.3f}" + (f", {rates[-1]:,.0f} queries a second." if rates else "."),
        canvas,
        Grid(["lists visited", "re-ranked", "breadth", "recall@10", "queries a second"], rows),
    )


def _way(point: RecallPoint | Speed, rate: float | None) -> str:
    breadth = f", breadth {point.ef_search:,}" if point.ef_search else ""
    speed = f", {rate:,.0f} queries a second" if rate else ""
    way = f"nprobe {point.nprobe:,}, {point.rerank:,} re-ranked{breadth}"
    return f"{way}: recall@10 {point.recall:.4f}{speed}"


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


def draw_stages(report: StageReport) -> Figure:
    """Draws the seconds of every stage."""
    stages = report.stages
    seconds = [stage.seconds for stage in stages.values()]
    canvas, axes = new_axes(height=50 + 24 * len(stages))
    draw_rows(axes, list(map(printable, stages)), [np.array(seconds)], ["seconds"])
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
        canvas,
        Grid(["stage", "seconds", "done", "unit", "a second", "where"], rows, {3, 5}),
    )


def draw_pace(stages: dict[str, StageWork]) -> Figure:
    """Draws the pace of every stage over the time of the build."""
    known = {printable(name): stage for name, stage in stages.items()}
    paces = {name: (stage.pace, stage.unit) for name, stage in known.items() if stage.pace}
    origin = min(pace.started for pace, _ in paces.values())
    canvas, axes = new_axes(height=60 + 26 * len(paces))
    rows = []
    for number, (name, (pace, unit)) in enumerate(paces.items()):
        begun, width = pace.started - origin, pace.seconds / len(pace.done)
        rates = np.array(pace.done) / width
        edges = begun + width * np.arange(len(pace.done) + 1)
        heights = number + 0.4 - 0.8 * rates / max(rates.max(), 1e-9)
        axes.stairs(heights, edges, baseline=number + 0.4, fill=True, color=SERIES[0])
        mean = sum(pace.done) / pace.seconds
        best = f"{rates.max():,.0f}"
        [bar] = axes.barh([number], [pace.seconds], 0.8, [begun], alpha=0)
        hint(
            bar,
            [f"{name}: {begun:,.1f} to {begun + pace.seconds:,.1f} s, {mean:,.0f} {unit} a second"],
        )
        rows.append([name, f"{begun:,.1f}", f"{pace.seconds:,.1f}", f"{mean:,.0f}", best, unit])
    axes.set_yticks(range(len(paces)), list(paces))
    axes.set(ylim=(len(paces) - 0.4, -0.6), xlabel="seconds since the first task began")
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.grid(visible=False, axis="y")
    whole = max(pace.started + pace.seconds for pace, _ in paces.values()) - origin
    return Figure(
        "pace",
        "Throughput over time",
        "When the tasks of each stage ran, and how much they did: the height is the pace, as a share of the "
        "stage's best. The work of a task counts as spread evenly over its time.",
        f"The tasks ran over {whole:,.1f} seconds.",
        canvas,
        Grid(["stage", "began at", "seconds", "mean pace", "best pace", "a second"], rows, {5}),
    )


def _details(seconds: dict[str, float]) -> str:
    whole = sum(seconds.values())
    return ", ".join(f"{name} {value / whole:.0%}" for name, value in sorted(seconds.items()))
