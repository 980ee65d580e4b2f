"""The index: trained, filled, and tuned."""

from __future__ import annotations

from retro_db.index.keys import parse_key
from retro_db.manifest.parts import Part

from ..engine.resume import Build
from ..stages.assemble import ListRange, assemble_stage, divide_lists
from ..stages.encode import encode_stage
from ..stages.train import train_stage
from ..stages.tune import BuiltIndex, tune_stages


def index_stages(
    build: Build, parts: list[Part], key: str, entries: int, dimension: int
) -> BuiltIndex:
    """Runs the stages.

    Args:
        build: The build.
        parts: All parts, embedded.
        key: Of the index.
        entries: Chunks of training documents.
        dimension: d.

    Returns:
        The index, tuned.
    """
    parsed = parse_key(key, dimension)
    template = train_stage(build, parts, parsed, entries, dimension)
    codes = encode_stage(build, parts, template, dimension)
    ranges = [
        ListRange(number, first, end)
        for number, (first, end) in enumerate(
            divide_lists(build.config.index, codes, parsed, dimension)
        )
    ]
    assembled = assemble_stage(build, codes, template, ranges)
    partitions = [partition.file for partition in assembled]
    search = tune_stages(build, parts, key, template.file, partitions, dimension)
    fine = [encoded.fine for encoded in codes if encoded.fine]
    index = BuiltIndex(key, parsed.lists, template, partitions, fine, search)
    say_index(build, index)
    return index


def say_index(build: Build, index: BuiltIndex) -> None:
    """One line on how the index is searched, and how well that was measured to find."""
    search, settings = index.search, index.search.settings
    graph = f", efSearch {settings.ef_search}" if settings.ef_search else ""
    said = (
        f"index      {index.key}, nprobe {settings.nprobe:,} of {index.lists:,} lists{graph}, "
        f"{settings.rerank} re-ranked"
    )
    if search.curve:
        point = search.curve[-1]
        said += (
            f": recall@10 {point.recall:.3f}, at least {point.lower_bound:.3f} "
            f"({search.queries:,} queries)"
        )
    if search.remedy:
        target = build.config.index.recall_target
        said += f"; the target {target:g} is out of reach, {search.remedy} would meet it"
    build.console.say(said)
