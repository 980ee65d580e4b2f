"""What the commands that read a database print."""

from __future__ import annotations

from collections.abc import Sequence

import retro_db
from retro_db.config import in_units
from retro_db.manifest.model import Manifest, SourceCounts
from retro_db.plan import IndexPlan, Plan
from retro_db.report.leakage import BINS, SHARES, measure_leakage
from retro_db.report.sizes import SIZE_HEADERS, size_row, size_rows
from retro_db.store.serialize import to_json
from retro_db.updates.removal import Removal
from retro_db.verify import silent, verify_database

from ..engine.console import Console

_BAR = 30  # characters of the longest


def show_built(output: str, manifest: Manifest, console: Console) -> None:
    """The last words of a build."""
    counts = manifest.counts
    size = sum(file.bytes for file in manifest.files)
    console.say(
        f"built      {output}: {counts.documents:,} documents, {counts.chunks:,} chunks, "
        f"{counts.tokens:,} tokens, {size / 1e6:,.1f} MB"
    )
    _say_reasons(manifest.sources, console)
    for count, words in (
        (counts.keyless_chunks, "without a WordPiece, not indexed"),
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


def show_removed(url: str, removal: Removal, console: Console) -> None:
    """What a removal did."""
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
    """Counts, sizes and settings."""
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
        f"encoder    {encoder.model}, {encoder.dimension} dimensions, {encoder.pooling}, "
        f"{encoder.dtype} on {encoder.device}"
    )
    graph = f", efSearch {index.ef_search}" if index.ef_search else ""
    spread = "1 partition" if index.partitions == 1 else f"{index.partitions:,} partitions"
    console.say(
        f"index      {index.key}, {counts.indexed_chunks:,} entries in {spread}, "
        f"nprobe {index.nprobe} of {index.lists:,} lists{graph}, {index.rerank} re-ranked, {recall}"
    )
    console.say(
        f"neighbors  {manifest.neighbors.k} of each chunk; {counts.short_rows:,} chunks have fewer, "
        f"{counts.keyless_chunks:,} have no key"
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
            f"{query.short_rows:,} have fewer neighbors, {query.keyless_chunks:,} have no key"
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


def show_problems(
    url: str, recompute: float, encoder: str | None, console: Console, *, as_json: bool
) -> int:
    """What verify found.

    Returns:
        The exit code: 0 where nothing is wrong.
    """
    stage = silent if as_json else console.stage
    checked = verify_database(url, recompute, encoder, stage)
    if as_json:
        console.show_json(to_json(checked))
    else:
        for problem in checked.problems:
            console.say(f"wrong: {problem}")
        for note in checked.notes:
            console.say(f"note: {note}")
        console.say(
            f"{url}: {checked.files:,} files, {checked.chunks:,} chunks: "
            + (f"{len(checked.problems):,} problems" if checked.problems else "sound")
        )
    return 1 if checked.problems else 0


def show_leakage(
    url: str, queries: str | None, k: int, save: str | None, console: Console, *, as_json: bool
) -> None:
    """How r(C) is distributed over an evaluation set."""
    measured = measure_leakage(retro_db.open(url), queries, k, save)
    if as_json:
        console.show_json(to_json(measured))
        return
    of = f"the query corpus {queries}" if queries else "the validation split"
    alone = f"; {measured.without_neighbors:,} have none" if measured.without_neighbors else ""
    console.say(f"leakage    {measured.chunks:,} chunks of {of}, {k} neighbors of each{alone}")
    console.say(f"           r(C) is {measured.mean:.3f} on average")
    shares = [
        (f"at most {share:.1%}", f"{count:,}", f"{count / measured.chunks:.1%}")
        for share, count in zip(SHARES, measured.at_most, strict=True)
    ]
    console.show_table(("r(C)", "chunks", "share"), shares)
    most = max(measured.histogram)
    bins = [
        (
            f"over {(number - 1) / BINS:.2%} up to {number / BINS:.2%}" if number else "0%",
            f"{count:,}",
            "#" * -(-_BAR * count // most),
        )
        for number, count in enumerate(measured.histogram)
    ]
    console.show_table(("r(C)", "chunks", ""), bins, texts={2})


def show_plan(plan: Plan, console: Console, *, as_json: bool) -> None:
    """What a build would take."""
    if as_json:
        console.show_json(to_json(plan))
        return
    console.say(f"corpus     {plan.tokens:,} tokens in {plan.documents:,} documents, {plan.source}")
    queried = f", and {plan.queried_chunks:,} of query corpora" if plan.queried_chunks else ""
    console.say(
        f"chunks     {plan.chunks:,} of {plan.chunk_tokens} tokens, {plan.token_type}{queried}"
    )
    console.say(
        f"shards     {plan.shards:,} over {in_units(plan.input_bytes)} of input; {plan.parts:,} parts of "
        f"at most {plan.largest_part:,} chunks"
    )
    _show_planned_tables(plan, console)
    temporary = ", ".join(f"{table.table} {in_units(table.bytes)}" for table in plan.temporary)
    console.say(
        f"disk       {in_units(plan.totals.peak_bytes)} until the build ends: the total, and below state/ or "
        f"removed at the end {temporary}"
    )
    _say_planned_index(plan.index, console)
    _show_planned_stages(plan, console)
    bands = plan.totals.shuffled_bytes
    payload = f"{in_units(bands)} of band keys, to find duplicates" if bands else "no payload"
    console.say(
        f"shuffle    {in_units(plan.totals.descriptor_bytes)} of descriptors over all stages, {payload}"
    )
    for hours in plan.hours:
        console.say(
            f"hours      {hours.stage}: {hours.hours:,.2f} {hours.device} hours at "
            f"{hours.chunks_per_second:,g} chunks/s ({hours.source})"
        )
    console.say(
        "           Rates come from the sources named, not from your machines: measure with "
        "benchmarks/embedding.py, give --chunks-per-second"
    )


def _show_planned_tables(plan: Plan, console: Console) -> None:
    rows = [
        (
            table.table,
            f"{table.files:,}",
            f"{table.rows:,}" if table.rows else "-",
            in_units(table.bytes),
            f"{table.bytes_per_chunk:,.3f}",
        )
        for table in plan.tables
    ]
    totals = plan.totals
    each = f"{totals.bytes_per_chunk:,.3f}"
    rows.append(("total", f"{totals.files:,}", "-", in_units(totals.bytes), each))
    console.show_table(("table", "files", "rows", "size", "bytes a chunk"), rows)


def _say_planned_index(index: IndexPlan, console: Console) -> None:
    """The key, and the memory of training and of search."""
    console.say(
        f"index      {index.key}: {index.lists:,} lists, {index.entries:,} entries of "
        f"{index.entry_bytes} bytes, {index.partitions:,} partitions"
    )
    console.say(
        f"memory     training {in_units(index.training_bytes)} for {index.training_points:,} points, of "
        f"{in_units(index.memory)} (index.memory)"
    )
    streamed = ""
    if index.search_groups > 1:
        streamed = (
            f", in {index.search_groups:,} groups of partitions one after another; all opened at once "
            f"take {in_units(index.loaded_bytes)}"
        )
    console.say(f"memory     search {in_units(index.search_bytes)} a worker{streamed}")


def _show_planned_stages(plan: Plan, console: Console) -> None:
    counted = [
        (stage.stage, stage.tasks, stage.descriptor_bytes, stage.list_requests)
        for stage in plan.stages
    ]
    totals = plan.totals
    counted.append(("total", totals.tasks, totals.descriptor_bytes, totals.list_requests))
    rows = [
        (name, f"{tasks:,}", in_units(size), f"{requests:,}")
        for name, tasks, size, requests in counted
    ]
    console.show_table(("stage", "tasks", "descriptors", "list requests"), rows)
