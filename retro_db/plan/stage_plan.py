"""The stages of a build: tasks, what is sent for each, and what an object store is asked to list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retro_db.config import Config
from retro_db.manifest.model import Tables, query_path
from retro_db.manifest.parts import Part, listed_parts
from retro_db.plan.corpus_facts import Corpus, Facts
from retro_db.plan.manifests import Files
from retro_db.store.serialize import canonical, digest, to_json

# Names that object stores return for one request.
LISTED_AT_ONCE = 1000
# A task's fingerprint has a hash for each of about so many things.
_MARKS = {f"setting.number-{number}": digest(number)[:32] for number in range(10)}
_SAMPLED = 100


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        stage: Its name.
        tasks: Elements of its Beam pipeline; each leaves one completion record.
        descriptor_bytes: Of all tasks, as JSON: about what crosses the stage boundary.
        list_requests: That find its records, and the files that they tell of, 1,000 names a page: what
            resuming asks for before the records are compacted into one file.
    """

    stage: str
    tasks: int
    descriptor_bytes: int
    list_requests: int


def plan_stages(
    config: Config,
    facts: Facts,
    files: Sequence[Files],
    partitions: int,
    pairs: int,
) -> list[StagePlan]:
    """All stages that a build runs, in order; but for the texts of the leakage filter, of one task.

    Args:
        config: Of the build.
        facts: Of the build.
        files: Of the corpus and of each query corpus, by table.
        partitions: Of the index.
        pairs: Partitions of the band keys, if duplicates are looked for.
    """
    shards, parts = facts.corpus.shards, _parts(files[0])
    every = _bytes_of(parts)
    read = _bytes_of(shards)
    trained = read if config.tokenizer.train else 0
    planned = [_stage("probe", 1, 0)] if facts.on_gpu else []
    planned += [_stage("tokenizer", 1, trained), *_screening(config, len(shards), read, pairs)]
    folders = 2 if not config.embeddings.keep else 1
    planned += [
        _stage("chunk", len(shards), read, len(parts), len(parts)),
        _stage("embed", len(parts), every, len(parts)),
        _stage("train", 1, every, 1),
        _stage("encode", len(parts), every, *[len(parts)] * folders),
        _stage("assemble", partitions, 0, partitions),
        _stage("sample", 1, every, 1),
        _stage("truth", len(parts), every, len(parts)),
        _stage("tune", 1, every),
        _stage("neighbors", len(parts), every, len(parts)),
    ]
    for query, held in zip(facts.queries, files[1:], strict=True):
        planned += _of_queries(query, _parts(held))
    return planned


def _screening(config: Config, shards: int, read: int, pairs: int) -> list[StagePlan]:
    planned = []
    if config.leakage.paths:
        planned.append(_stage("evaluation", 1, 0, 1))
    if config.leakage.paths or config.dedup.jaccard is not None:
        planned.append(_stage("screen", shards, read, shards))
    if config.dedup.jaccard is not None:
        planned += [_stage("pairs", pairs, 0, pairs), _stage("resolve", 1, 0, shards)]
    return planned


def _of_queries(query: Corpus, parts: list[Part]) -> list[StagePlan]:
    place, count, size = query_path(query.name), len(parts), _bytes_of(parts)
    return [
        _stage(f"{place}/chunk", len(query.shards), _bytes_of(query.shards), count, count),
        _stage(f"{place}/embed", count, size, count),
        _stage(f"{place}/neighbors", count, size, count),
    ]


def _stage(name: str, tasks: int, items: int, *folders: int) -> StagePlan:
    """A stage.

    Args:
        name: Of it.
        tasks: Of it.
        items: Bytes of what its tasks are about.
        *folders: Files that it leaves in each folder.
    """
    marks = len(canonical(["part-0000000-0000", _MARKS]))
    requests = sum(-(-count // LISTED_AT_ONCE) for count in (tasks, *folders))
    return StagePlan(name, tasks, items + tasks * marks, requests)


def _bytes_of(items: Sequence[Any]) -> int:
    """As JSON, one by one; told from a hundred of them, evenly spaced."""
    chosen = items[:: max(1, len(items) // _SAMPLED)]
    return len(items) * sum(len(canonical(to_json(item))) for item in chosen) // max(len(chosen), 1)


def _parts(files: Files) -> list[Part]:
    """Descriptors as the stages after chunking get them."""
    return listed_parts(Tables(**files))
