"""What commands print of a database: built, changed, or asked for."""

from __future__ import annotations

from collections.abc import Sequence

import retro_db
from retro_db.config import in_units
from retro_db.manifest.model import Manifest, SourceCounts
from retro_db.report.sizes import SIZE_HEADERS, size_row, size_rows
from retro_db.store.serialize import to_json
from retro_db.updates.removal import Removal

from ..engine.console import Console


def show_built(output: str, manifest: Manifest, console: Console) -> None:
    """Prints the summary of a build."""
    counts = manifest.counts
    size = sum(file.bytes for file in manifest.files)
    console.say(
        f"built      {output}: {counts.documents:,} documents, {counts.chunks:,} chunks, "
        f"{counts.tokens:,} tokens, {in_units(size)}"
    )
    _say_reasons(manifest.sources, console)
    for count, words in (
        (counts.keyless_chunks, "without an embedding, not indexed"),
        (counts.validation_chunks, "of the validation split, nobody's neighbors"),
        (counts.short_rows, f"with fewer than {manifest.neighbors.k} neighbors"),
    ):
        if count:
            console.say(f"           {count:,} chunks {words}")


def _say_reasons(sources: Sequence[SourceCounts], console: Console) -> None:
    """Why documents of each source are not in the database."""
    for source in sources:
        for word, counted in (("dropped", source.dropped_by), ("rejected", source.rejected_by)):
            if counted:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in counted.items())
                console.say(f"           {source.name}: {word} {reasons}")
        if lacking := source.characters_without_token:
            console.say(
                f"           {source.name}: {lacking:,} characters without a token were lost"
            )


def show_removed(url: str, removal: Removal, console: Console) -> None:
    """Prints what a removal did."""
    before = f"{removal.already:,} had been removed before" if removal.already else ""
    if not removal.documents:
        console.say(f"removed    nothing: {before or 'no document is listed'}")
        return
    console.say(
        f"removed    {removal.documents:,} documents, {removal.chunks:,} chunks: {url} is generation "
        f"{removal.generation}; their ids stay, and compact drops them for good"
    )
    if before:
        console.say(f"           {before}")


def show_database(url: str, console: Console, *, as_json: bool) -> None:
    """Prints counts, sizes, settings and health."""
    database = retro_db.open(url)
    manifest = database.manifest
    missing = sorted(database.folder.missing(manifest.files))
    if as_json:
        described = to_json(manifest) | {"missing_or_resized": missing}
        console.show_json(described)
        return
    counts, index, encoder = manifest.counts, manifest.index, manifest.encoder
    console.say(f"{url}  format {manifest.version}, generation {manifest.generation}")
    _show_sources(manifest.sources, console)
    _say_reasons(manifest.sources, console)
    _show_tables(manifest, console)
    recall = f"recall@10 {index.recall[-1].recall:.3f}" if index.recall else "recall not measured"
    console.say(f"chunks     {manifest.chunk.tokens} tokens, {manifest.chunk.token_type}")
    console.say(
        f"encoder    {encoder.model}, {encoder.dimension} dimensions, {encoder.dtype} on {encoder.device}: "
        f"{encoder.rule}"
    )
    graph = f", efSearch {index.ef_search}" if index.ef_search else ""
    spread = "1 partition" if index.partitions == 1 else f"{index.partitions:,} partitions"
    console.say(
        f"index      {index.key}, {counts.indexed_chunks:,} entries in {spread}, "
        f"nprobe {index.nprobe} of {index.lists:,} lists{graph}, {index.rerank} re-ranked, {recall}"
    )
    console.say(
        f"neighbors  {manifest.neighbors.k} of each chunk{_found_in(manifest)}; {counts.short_rows:,} "
        f"chunks have fewer, {counts.keyless_chunks:,} have no embedding"
    )
    if counts.removed_documents:
        console.say(
            f"removed    {counts.removed_documents:,} documents, {counts.removed_chunks:,} chunks: "
            "neither neighbors nor training text; compact drops them for good"
        )
    for query in manifest.queries:
        source = query.source
        console.say(
            f"queries    {source.name}: {source.documents:,} documents, {source.chunks:,} chunks; "
            f"{query.short_rows:,} have fewer neighbors, {query.keyless_chunks:,} have no embedding"
        )
        _say_reasons([source], console)
    state = (
        f"{len(missing)} files missing or resized: {missing[0]}" if missing else "all files there"
    )
    console.say(f"health     {state}; retro-db verify checks their contents")


def _show_sources(sources: Sequence[SourceCounts], console: Console) -> None:
    headers = ("source", "weight", "documents", "chunks", "tokens", "dropped", "rejected")
    rows = [
        (
            source.name,
            f"{source.weight:g}",
            f"{source.documents:,}",
            f"{source.chunks:,}",
            f"{source.tokens:,}",
            f"{source.dropped:,}",
            f"{source.rejected:,}",
        )
        for source in sources
    ]
    console.show_table(headers, rows)


def _show_tables(manifest: Manifest, console: Console) -> None:
    rows = [*size_rows(manifest), size_row(manifest, "total", manifest.files)]
    console.show_table(SIZE_HEADERS, rows)


def _found_in(manifest: Manifest) -> str:
    """How many lists a chunk visited to find its neighbors, and what that finds; empty if not known."""
    info = manifest.neighbors
    if not info.nprobe:
        return ""
    text = f", found in {info.nprobe:,} of {manifest.index.lists:,} lists"
    return f"{text}, recall@10 {info.recall[-1].recall:.3f}" if info.recall else text
