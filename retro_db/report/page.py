"""The report as one HTML file that needs no network: what was built, for people to judge."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup, escape

from retro_db.config import in_units
from retro_db.errors import InputError
from retro_db.manifest.model import Manifest
from retro_db.printing import printable
from retro_db.reader.database import Database
from retro_db.report.comparison import differing_settings, labels_of
from retro_db.report.drawing import to_svg
from retro_db.report.facts import Facts, gather_facts
from retro_db.report.figure import Figure, Grid
from retro_db.report.figures import Drawings, draw
from retro_db.report.map_figure import clusters_of
from retro_db.report.map_texts import map_texts
from retro_db.report.sizes import SIZE_HEADERS, size_rows
from retro_db.search.passages import Passage, marked
from retro_db.store.folder import Folder

REPORT, BESIDE = "report/report.html", "report/beside.html"


@dataclass(frozen=True)
class Side:
    """One of the databases of a page.

    Attributes:
        label: What the page calls it.
        mark: What the names of its elements begin with, so that no two of a page are the same.
        facts: What the page shows of it.
        drawings: Its figures.
    """

    label: str
    mark: str
    facts: Facts
    drawings: Drawings

    def svg(self, figure: Figure) -> Markup:
        """Returns the drawing of a figure."""
        return Markup(to_svg(figure.canvas, self.mark + figure.name))  # noqa: S704 - matplotlib escapes


def write_report(
    database: Database, path: str | None = None, beside: Database | None = None
) -> str:
    """Writes the report of a database.

    Args:
        database: Database opened with `retro_db.open`.
        path: Path or URL of the file; by default `report/report.html` in the database, or
            `report/beside.html` if there is another one.
        beside: A database, or a generation of one, to show beside it.

    Returns:
        Path or URL of the file.

    Raises:
        DamagedFileError: A file is missing, or disagrees with the manifest.
        InputError: `path` is a folder, or `beside` is what `database` is.
    """
    folder, name = database.folder, BESIDE if beside else REPORT
    if path is not None:
        parent, name = os.path.split(path)
        if not name or os.path.isdir(path):
            raise InputError(f"--out {path}: is a folder; name a file in it")
        folder = Folder(parent or ".")
    databases = [database, beside] if beside else [database]
    labels = labels_of(databases)
    facts = [gather_facts(shown, share=len(databases)) for shown in databases]
    folder.write(name, render(labels, facts).encode("utf-8"))
    return path or f"{folder.url.rstrip('/')}/{name}"


def render(labels: Sequence[str], facts: Sequence[Facts]) -> str:
    """Returns the page as HTML.

    Args:
        labels: What the page calls each database.
        facts: What the page shows of each.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "shown": printable,
        "mark": _mark,
        "tiles": _tiles,
        "settings": _settings,
        "sources": _sources,
        "files": _files,
        "clusters": clusters_of,
        "map_texts": map_texts,
    }
    sides = [
        Side(label, f"{'ab'[number]}-" if len(labels) > 1 else "", facts, draw(facts))
        for number, (label, facts) in enumerate(zip(labels, facts, strict=True))
    ]
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_resource("page.html")).render(
        sides=sides,
        differing=differing_settings([side.facts.manifest for side in sides], labels),
        numbers=_side_by_side(sides),
        style=Markup(_resource("page.css")),  # noqa: S704 - our own
        script=Markup(script),  # noqa: S704 - our own
        script_digest=digest,
    )


def _resource(name: str) -> str:
    return resources.files("retro_db.report").joinpath(name).read_text("utf-8")


def _side_by_side(sides: Sequence[Side]) -> Grid:
    """Returns the figures at the head of the page, a column for each database."""
    tiles = [_tiles(side.facts.manifest) for side in sides]
    rows = [[named[0][0], *(value for _, value in named)] for named in zip(*tiles, strict=True)]
    return Grid(["figure", *(side.label for side in sides)], rows)


def _files(manifest: Manifest) -> Grid:
    return Grid(list(SIZE_HEADERS), size_rows(manifest))


def _tiles(manifest: Manifest) -> list[tuple[str, str]]:
    """Returns the names and figures at the head of the page."""
    counts = manifest.counts
    recall = manifest.neighbors.recall or manifest.index.recall
    return [
        ("documents", f"{counts.documents - counts.removed_documents:,}"),
        ("chunks", f"{counts.chunks - counts.removed_chunks:,}"),
        ("tokens", f"{counts.tokens:,}"),
        ("in its files", in_units(sum(file.bytes for file in manifest.files))),
        ("neighbors of a chunk", f"{manifest.neighbors.k}"),
        ("recall@10", f"{recall[-1].recall:.3f}" if recall else "not measured"),
    ]


def _settings(manifest: Manifest) -> list[tuple[str, str]]:
    index, encoder, chunk = manifest.index, manifest.encoder, manifest.chunk
    return [
        ("chunk", f"{chunk.tokens} tokens, {chunk.token_type}, vocabulary of {chunk.vocab_size:,}"),
        (
            "encoder",
            f"{printable(encoder.model)}, {encoder.dimension} dimensions, "
            f"{encoder.dtype} on {encoder.device}: {printable(encoder.rule)}",
        ),
        (
            "index",
            f"{index.key}, {index.lists:,} lists in {index.partitions:,} "
            f"{'file' if index.partitions == 1 else 'files'}, nprobe {index.nprobe}, "
            f"{index.rerank} re-ranked",
        ),
        ("neighbors", _found_in(manifest)),
        ("generation", f"{manifest.generation}, format {manifest.version}"),
        ("manifest", f"sha256 {manifest.sha256}"),
    ]


def _found_in(manifest: Manifest) -> str:
    """Says how many lists a chunk visited to find its neighbors, and what that finds."""
    info = manifest.neighbors
    if not info.nprobe:
        return f"{info.k} of each chunk, searched for in the index"
    text = f"{info.k} of each chunk, found in {info.nprobe:,} of {manifest.index.lists:,} lists"
    if not info.recall:
        return text
    point = info.recall[-1]
    return (
        f"{text}: recall@10 {point.recall:.3f}, of distinct chunks at least {point.lower_bound:.3f}"
    )


def _sources(manifest: Manifest) -> Grid:
    counted = [*manifest.sources, *(query.source for query in manifest.queries)]
    rows = [
        [
            printable(source.name),
            f"{source.weight:g}" if number < len(manifest.sources) else "queries",
            *(
                f"{count:,}"
                for count in (
                    source.read,
                    source.rejected,
                    source.dropped,
                    source.documents,
                    source.chunks,
                    source.tokens,
                )
            ),
        ]
        for number, source in enumerate(counted)
    ]
    headers = ["source", "weight", "read", "rejected", "dropped", "documents", "chunks", "tokens"]
    return Grid(headers, rows)


def _mark(text: str, passage: Passage) -> Markup:
    """Returns a text on one line, with the words marked that it shares with the query."""
    pieces = marked(printable(" ".join(text.split())), set(passage.shared))
    return Markup("").join(
        Markup("<mark>{}</mark>").format(piece) if is_shared else escape(piece)
        for piece, is_shared in pieces
    )
