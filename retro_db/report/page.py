"""The report as one HTML file that needs no network: what was built, for people to judge."""

from __future__ import annotations

import os
from importlib import resources

import jinja2
from markupsafe import Markup, escape

from retro_db.config import in_units
from retro_db.errors import InputError
from retro_db.manifest.model import Manifest
from retro_db.printing import printable, redacted
from retro_db.reader.database import Database
from retro_db.report.facts import Facts, gather_facts
from retro_db.report.figures import Grid, draw
from retro_db.report.sizes import SIZE_HEADERS, size_rows
from retro_db.search.passages import Passage, marked
from retro_db.store.folder import Folder

REPORT = "report/report.html"


def write_report(database: Database, path: str | None = None) -> str:
    """Writes the report of a database.

    Args:
        database: Database opened with `retro_db.open`.
        path: Path or URL of the file; `report/report.html` in the database by default.

    Returns:
        Path or URL of the file.

    Raises:
        DamagedFileError: A file is missing, or disagrees with the manifest.
        InputError: `path` is a folder.
    """
    folder, name = database.folder, REPORT
    if path is not None:
        parent, name = os.path.split(path)
        if not name or os.path.isdir(path):
            raise InputError(f"--out {path}: is a folder; name a file in it")
        folder = Folder(parent or ".")
    folder.write(name, render(database.folder.url, gather_facts(database)).encode("utf-8"))
    return path or f"{folder.url.rstrip('/')}/{name}"


def render(url: str, facts: Facts) -> str:
    """Returns the page as HTML.

    Args:
        url: Folder or URL of the database, which the title names.
        facts: What the page shows.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"shown": printable, "mark": _mark}
    template = environment.from_string(
        resources.files("retro_db.report").joinpath("page.html").read_text("utf-8")
    )
    manifest = facts.manifest
    return template.render(
        name=os.path.basename(redacted(url).rstrip("/")) or redacted(url),
        facts=facts,
        manifest=manifest,
        tiles=_tiles(manifest),
        settings=_settings(manifest),
        sources=_sources(manifest),
        tables=Grid(list(SIZE_HEADERS), size_rows(manifest)),
        drawings=draw(facts),
    )


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
            f"{printable(encoder.model)}, {encoder.dimension} dimensions, {encoder.pooling}, "
            f"{encoder.dtype} on {encoder.device}",
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
