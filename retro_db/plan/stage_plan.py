"""The stages of a build: their tasks and descriptors, and the list requests that an object store gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retro_db.config import Config
from retro_db.index.drawing import Drawing, Drawn
from retro_db.manifest.model import Tables, query_path
from retro_db.manifest.parts import Part, listed_parts
from retro_db.plan.corpus_facts import Corpus, Facts
from retro_db.plan.manifests import Files
from retro_db.plan.stage_needs import StageNeeds
from retro_db.store.folder import FileEntry
from retro_db.store.packing import pack_numbers
from retro_db.store.serialize import canonical, digest, to_json
from retro_db.store.slices import SlicedFile

# Number of names that object stores return for one request.
LISTED_AT_ONCE = 1000
# A task's fingerprint has a hash for each of about this many settings.
_MARKS = {f"setting.number-{number}": digest(number)[:32] for number in range(10)}
_SAMPLED = 100
# What names the chunks that were drawn from a part.
_DRAWN = Drawn(
    Drawing(1024, 1 / 256, 1e-8, 0),
    SlicedFile(
        FileEntry("state/drawn/part-0000000-0000-0123456789abcdef.arrows", 1 << 20, "0" * 64),
        pack_numbers([8, 1 << 19, 1 << 20]),
    ),
)


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        stage: Name of the stage.
        tasks: Number of elements of its Beam pipeline; each leaves one completion record.
        descriptor_bytes: Bytes of all tasks as JSON: about what crosses the stage boundary.
        list_requests: Number of requests that find its records and the files they name, 1,000 names a page:
            what a resumed build asks for before the records are compacted into one file.
        needs: What it moves and what its tasks need; None if it was not reckoned.
    """

    stage: str
    tasks: int
    descriptor_bytes: int
    list_requests: int
    needs: StageNeeds | None = None


def plan_stages(
    config: Config,
    facts: Facts,
    files: Sequence[Files],
    partitions: int,
    join_partitions: int,
    pairs: int,
    needs: Mapping[str, StageNeeds],
) -> list[StagePlan]:
    """Plans all stages that a build runs, in order; the stage of the leakage filter's texts has one task.

    Args:
        config: Configuration of the build.
        facts: Corpora, encoder and tokenizer to build from.
        files: Files of the corpus and of each query corpus, by table.
        partitions: Number of partitions of the index.
        join_partitions: Number of partitions of the join.
        pairs: Number of partitions of the band keys, if the build looks for duplicates.
        needs: What stages move and their tasks need.
    """
    shards, parts = facts.corpus.shards, _parts(files[0])
    all_parts = _bytes_of(parts)
    read = _bytes_of(shards)
    trained = read if config.tokenizer.train else 0
    planned = [_stage("probe", 1, 0)] if facts.on_gpu else []
    planned += [_stage("tokenizer", 1, trained), *_screening(config, len(shards), read, pairs)]
    drawn = len(parts) * len(canonical(to_json(_DRAWN)))
    folders = 2 if not config.embeddings.keep else 1
    planned += [
        _stage("chunk", len(shards), read, len(parts), len(parts)),
        _stage("embed", len(parts), all_parts, len(parts)),
        _stage("draw", len(parts), all_parts + drawn, len(parts)),
        _stage("train", 1, all_parts + drawn, 1),
        _stage("encode", len(parts), all_parts, *[len(parts)] * folders),
        _stage("assemble", partitions, 0, partitions),
        _stage("sample", 1, drawn, 1),
        _stage("truth", len(parts), all_parts, len(parts)),
        _stage("tune", 1, all_parts),
        _stage("order", 1, 0, 1),
        *_join("", len(parts), join_partitions, all_parts),
    ]
    for query, by_table in zip(facts.queries, files[1:], strict=True):
        planned += _of_queries(query, _parts(by_table), join_partitions)
    return [replace(stage, needs=needs.get(stage.stage)) for stage in planned]


def _join(folder: str, parts: int, partitions: int, size: int) -> list[StagePlan]:
    """Plans the stages that find neighbors, if all chunks go through the partitions once."""
    planned = [
        _stage(f"{folder}route", parts, size, parts),
        _stage(f"{folder}home", partitions, 0, 2 * partitions),
    ]
    if partitions > 1:
        planned.append(_stage(f"{folder}visit", partitions, 0, partitions))
    return [*planned, _stage(f"{folder}neighbors", parts, size, parts)]


def _screening(config: Config, shards: int, read: int, pairs: int) -> list[StagePlan]:
    planned = []
    if config.leakage.paths:
        planned.append(_stage("evaluation", 1, 0, 1))
    if config.leakage.paths or config.dedup.jaccard is not None:
        planned.append(_stage("screen", shards, read, shards))
    if config.dedup.jaccard is not None:
        planned += [_stage("pairs", pairs, 0, pairs), _stage("resolve", 1, 0, shards)]
    return planned


def _of_queries(query: Corpus, parts: list[Part], join_partitions: int) -> list[StagePlan]:
    folder, count, size = query_path(query.name), len(parts), _bytes_of(parts)
    return [
        _stage(f"{folder}/chunk", len(query.shards), _bytes_of(query.shards), count, count),
        _stage(f"{folder}/embed", count, size, count),
        *_join(f"{folder}/", count, join_partitions, size),
    ]


def _stage(name: str, tasks: int, items: int, *folders: int) -> StagePlan:
    """Plans one stage.

    Args:
        name: Name of the stage.
        tasks: Number of its tasks.
        items: Bytes of the descriptors of its tasks.
        *folders: Number of files that it leaves in each folder.
    """
    marks = len(canonical(["part-0000000-0000", _MARKS]))
    requests = sum(-(-count // LISTED_AT_ONCE) for count in (tasks, *folders))
    return StagePlan(name, tasks, items + tasks * marks, requests)


def _bytes_of(items: Sequence[Any]) -> int:
    """Returns the bytes of items as JSON, one by one; estimated from a hundred of them, evenly spaced."""
    chosen = items[:: max(1, len(items) // _SAMPLED)]
    return len(items) * sum(len(canonical(to_json(item))) for item in chosen) // max(len(chosen), 1)


def _parts(files: Files) -> list[Part]:
    """Returns the descriptors that the stages after chunking get."""
    return listed_parts(Tables(**files))
