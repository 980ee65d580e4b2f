"""Drawing for the report: SVG whose colors are the page's, so that drawings follow its light and dark."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

# Colors that matplotlib draws with, each in place of a color of the page, `var(--...)`.
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
TEXT, LINE, *SERIES = _PAGE_COLORS
MARKERS = "os^DvP"
WIDTH, _HEIGHT, FONT = 360, 250, 12  # at the width of a phone nothing is scaled
POINTS = 72  # to the inch, of matplotlib
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retro-db",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": FONT,
    "text.color": TEXT,
    "axes.edgecolor": LINE,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "hatch.color": TEXT,
    "hatch.linewidth": 0.6,
}
# What a drawing's element is given by `hint`, in place of an id.
_HINT = "hint:"
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.10g}")


def new_axes(height: int = _HEIGHT) -> tuple[Canvas, Axes]:
    """Returns an empty canvas of the page's width, and its axes.

    Args:
        height: Height of the canvas in points.
    """
    canvas = Canvas((WIDTH / POINTS, height / POINTS), layout="constrained")
    axes = canvas.subplots()
    axes.grid(visible=True, axis="both")
    return canvas, axes


def hint(artist: Artist, texts: Sequence[str], chunks: Sequence[int] = ()) -> None:
    """Gives an artist texts that are shown when it is pointed at.

    Args:
        artist: A bar, or the markers of a line.
        texts: The text of the bar, or of each marker.
        chunks: Id of the chunk that each marker stands for, which a click shows.
    """
    artist.set_gid(_HINT + json.dumps([list(texts), list(chunks)]))


def hint_bins(axes: Axes, edges: np.ndarray, texts: Sequence[str]) -> None:
    """Gives the ranges between some edges texts, over the whole height of the axes."""
    low, high = axes.get_ylim()
    bars = axes.bar(edges[:-1], high - low, np.diff(edges), bottom=low, align="edge", alpha=0)
    axes.set_ylim(low, high)
    for bar, text in zip(bars, texts, strict=True):
        hint(bar, [text])


def draw_bars(
    axes: Axes, names: Sequence[str], counts: Sequence[np.ndarray], labels: Sequence[str]
) -> None:
    """Draws bars side by side, each kind in percent of its sum.

    Args:
        axes: Axes to draw on.
        names: Names of the n bars of a kind.
        counts: Heights of each kind, [n].
        labels: Name of each kind.
    """
    centers, width = np.arange(len(names)), 0.8 / max(len(counts), 1)
    for number, (heights, label) in enumerate(zip(counts, labels, strict=True)):
        left = centers - 0.4 + width * (number + 0.5)
        shares = 100 * heights / max(heights.sum(), 1)
        hatch = "////" if number else None
        bars = axes.bar(left, shares, width, color=SERIES[number], hatch=hatch, label=label)
        for bar, name, count, share in zip(bars, names, heights, shares, strict=True):
            hint(bar, [f"{name}: {count:,} {label}, {share:.1f}%"])
    axes.set_xticks(centers, names, rotation=45 if max(map(len, names)) > 4 else 0)
    axes.grid(visible=False, axis="x")


def draw_rows(
    axes: Axes, names: Sequence[str], shares: Sequence[np.ndarray], labels: Sequence[str]
) -> None:
    """Draws bars from left to right, a row for each name and in it a bar of each kind.

    Args:
        axes: Axes to draw on.
        names: Names of the n rows, from the top.
        shares: Lengths of each kind, [n].
        labels: Name of each kind.
    """
    height = 0.7 / len(shares)
    for number, (lengths, label) in enumerate(zip(shares, labels, strict=True)):
        top = np.arange(len(names)) - 0.35 + height * (number + 0.5)
        hatch = "////" if number else None
        bars = axes.barh(top, lengths, height, color=SERIES[number], hatch=hatch, label=label)
        for bar, name, length in zip(bars, names, lengths, strict=True):
            hint(bar, [f"{name}: {length:,.4g} {label}"])
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(THOUSANDS)


def legend_above(axes: Axes) -> None:
    """Puts the legend above the drawing, at its right."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=3, borderaxespad=0.1)


def to_svg(canvas: Canvas, name: str) -> str:
    """Returns a drawing as an element of the page: it scales, and takes the page's colors.

    Args:
        canvas: The drawing.
        name: Prefix of its ids, so that no two drawings of a page share one.
    """
    svg = io.BytesIO()
    with mpl.rc_context(STYLE):
        canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg.getvalue())  # noqa: S314 - matplotlib's own
    for unwanted in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(unwanted)
    for size in ("width", "height", "version"):
        del root.attrib[size]
    for element in root.iter():
        if element.get("id", "").startswith(_HINT):
            _put_hints(element)
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href":
                element.set(key, value.replace("#", f"#{name}-"))
            else:
                element.set(
                    key, _PAGE_COLOR.sub(_page_color, value).replace("url(#", f"url(#{name}-")
                )
    # A picture with one name, described in full beside it.
    root.set("aria-hidden", "true")
    return ET.tostring(root, "unicode")


def _put_hints(group: ET.Element) -> None:
    """Puts texts into a group, or into its markers, as titles: browsers show them without a script."""
    texts, chunks = json.loads(group.attrib.pop("id").removeprefix(_HINT))
    group.set("class", "hint")
    markers = group.findall(f".//{{{_SVG}}}use")
    for element, text in zip(markers or [group], texts, strict=True):
        title = ET.Element(f"{{{_SVG}}}title")
        title.text = text
        element.insert(0, title)
    for marker, chunk in zip(markers, chunks, strict=False):
        marker.set("data-chunk", str(chunk))


def _page_color(match: re.Match[str]) -> str:
    return f"var(--{_PAGE_COLORS[match[0]]})"
