"""The driver's bookkeeping at the paper's size, with synthetic records: run by test_plan.py as a process.

    python -m support.paper_size FOLDER manifest | ids | finish | resume

It prints one JSON object: what it counted, and the peak of its memory in bytes above that of its imports.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retro_db.config import Config, parse_config
from retro_db.corpus.chunking import ChunkedPart, ChunkedShard
from retro_db.index.filling import range_bounds
from retro_db.manifest.sealing import FILE, read_manifest, write_manifest
from retro_db.plan import given_facts
from retro_db.plan.build_plan import plan_manifest
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.gathering import Table
from retro_db.store.packing import pack_numbers
from retro_db.store.records import Record, StageRecords
from retro_db.store.serialize import to_json
from retro_db.store.tables import IpcFile
from retro_db.store.writing import TableWriter
from retro_db_pipelines.engine.completing import Running
from retro_db_pipelines.engine.console import Console
from retro_db_pipelines.engine.context import Build
from retro_db_pipelines.engine.jobs import Stage, Task, fingerprint
from retro_db_pipelines.engine.runner import Engine
from retro_db_pipelines.stages.chunk import parts_of
from retro_db_pipelines.stages.encode import EncodedPart
from retro_db_pipelines.stages.neighbors import GatheredParts, NeighborsPart
from support.memory import peak
from support.soak import amount

SHARDS = 30_000
# Finished shards, of which every stage has a record.
RECORDS = amount(quick=5_000, soak=SHARDS)
TOKENS_OF_A_SHARD = 64_000_000
_SHA256 = "0123456789abcdef" * 4


def settings(folder: Path) -> Config:
    data = {
        "output": str(folder / "db"),
        "corpus": [{"name": "corpus", "paths": ["corpus.jsonl"]}],
        "tokenizer": {"path": "tokenizer"},
        "encoder": {"model": "encoder"},
    }
    return parse_config(data, "test")


def write_and_read_manifest(folder: Path) -> dict[str, Any]:
    """The planned manifest of so many shards becomes a file, and is read and checked like any other."""
    config = settings(folder)
    facts = given_facts(config, SHARDS * TOKENS_OF_A_SHARD, 1000, 4, 128_000, 768)
    assert len(facts.corpus.shards) == SHARDS
    database = Folder(config.output)
    written = write_manifest(database, plan_manifest(config, facts))
    manifest = read_manifest(database)
    assert manifest == written
    assert len(manifest.tables.chunks) == SHARDS
    assert database.missing(manifest.files) == {file.path for file in manifest.files}
    return {"bytes": database.size(FILE), "chunks": manifest.counts.chunks}


def entry(table: str, number: int, rows: int) -> TableEntry:
    return TableEntry(contract(table).name(number, 0), 0, _SHA256, rows)


def chunked(number: int, rows: int) -> ChunkedShard:
    part = ChunkedPart(entry("chunks", number, rows), entry("documents", number, 99), 64 * rows, 0)
    return ChunkedShard(number, "corpus", _SHA256, [part], 99, {}, {}, [], 256 * rows, 0)


def find_ids(folder: Path) -> dict[str, Any]:
    """From global ids to parts, by the prefix sums of the driver and of a reader."""
    rows = np.random.default_rng(0).integers(900_000, 1_048_576, SHARDS)
    parts = parts_of([chunked(number, count) for number, count in enumerate(rows.tolist())])
    firsts = np.array([part.first_id for part in parts])
    assert (np.diff(firsts) == rows[:-1]).all()
    asked = np.random.default_rng(1).integers(0, rows.sum(), 1000)
    found = np.searchsorted(firsts, asked, side="right") - 1
    assert ((asked >= firsts[found]) & (asked < firsts[found] + rows[found])).all()

    path, table = folder / "part.arrow", contract("embeddings")
    schema = table.schema(dimension=8)
    vectors = np.arange(24, dtype=np.float16).reshape(3, 8)
    with TableWriter(path, schema, table.batch_rows) as writer:
        writer.append({"vector": vectors})
    reader = Table([IpcFile(path, schema, 3, table.batch_rows)] * SHARDS).column("vector")
    assert len(reader) == 3 * SHARDS
    ids = np.random.default_rng(2).integers(0, len(reader), 10_000)
    assert (reader[ids] == vectors[ids % 3]).all()
    return {"chunks": int(rows.sum())}


def results(stage: str, number: int) -> tuple[Any, list[FileEntry]]:
    """What a task of a stage returns, and its files."""
    rows = 1_000_000 + number
    if stage == "chunk":
        shard = chunked(number, rows)
        return shard, [shard.parts[0].chunks, shard.parts[0].documents]
    if stage == "encode":
        ranges = len(range_bounds(65_536)) - 1
        spread = np.random.default_rng(number).multinomial(rows, [1 / ranges] * ranges)
        file = entry("codes", number, rows)
        return EncodedPart(file, pack_numbers(spread.tolist()), None), [file]
    file = entry("neighbors", number, rows)
    return GatheredParts([NeighborsPart(file, 7)]), [file]


KINDS = {
    "chunk": ChunkedShard,
    "encode": EncodedPart,
    "neighbors": GatheredParts,
}


class Unneeded:
    """A job that must not be asked to do anything."""

    def __init__(self, stage: str) -> None:
        self.stage = self.name = stage


def tasks_of(stage: str) -> list[Task]:
    decides = {"encoder": _SHA256, "tokenizer": _SHA256}
    return [
        Task(f"part-{number:07d}-0000", fingerprint(1, decides | {"chunk": number}), None)
        for number in range(RECORDS)
    ]


def finish(folder: Path) -> dict[str, Any]:
    """Files and compacted records, as finished stages leave them."""
    database = Folder(settings(folder).output)
    counted = {}
    for stage in KINDS:
        records = []
        for number, task in enumerate(tasks_of(stage)):
            result, files = results(stage, number)
            records.append(Record(task.name, task.depends, files, to_json(result), 1.0))
            for file in files:
                path = Path(database.locate(file.path))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        StageRecords(database, stage).keep_only(records)
        counted[stage] = Path(database.locate(f"state/records/{stage}.jsonl")).stat().st_size
    return counted


def resume(folder: Path) -> dict[str, Any]:
    """Finished stages are found finished: by one file of records, and one listing of each folder."""
    config = settings(folder)
    database = Folder(config.output)
    events: Counter[str] = Counter()
    sys.addaudithook(lambda event, _: events.update([event]))
    counted = {}
    build = Build(
        config=config,
        folder=database,
        home=database,
        engine=Engine(),
        console=Console(),
        shards=[],
        action=Running(),
    )
    for stage, kind in KINDS.items():
        tasks = tasks_of(stage)
        before = events.copy()
        complete = build.run(Stage(Unneeded(stage), tasks, kind, "chunks", 0))
        done = events - before
        counted[stage] = {
            "opened": done["open"],
            "listed": done["os.listdir"] + done["os.scandir"],
        }
        assert len(complete) == RECORDS
        assert complete[-1] == results(stage, RECORDS - 1)[0]
    return counted


def main(arguments: Sequence[str]) -> None:
    folder, what = arguments
    start = peak()
    runs: dict[str, Callable[[Path], dict[str, Any]]] = {
        "manifest": write_and_read_manifest,
        "ids": find_ids,
        "finish": finish,
        "resume": resume,
    }
    counted = runs[what](Path(folder))
    print(json.dumps(counted | {"peak": peak() - start}))


if __name__ == "__main__":
    main(sys.argv[1:])
