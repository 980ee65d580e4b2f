"""What a build reads is what it planned to read, every time, or it stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retro_db.config import Config
from retro_db.corpus.documents import Document, Reject
from retro_db.corpus.reading import read_shard
from retro_db.corpus.sharding import plan_shards
from retro_db.errors import CorpusError
from support.formats import write_megatron
from support.projects import make_project

CHANGED = "changed since the build was planned"


def configure(folder: Path, pattern: str) -> Config:
    project = make_project(folder / "project", ["unused"])
    project.settings["corpus"] = [{"name": "test", "paths": [str(folder / pattern)]}]
    project.settings["tokenizer"] = {"path": "tokenizer"}
    return Config.model_validate(project.settings)


def lines(word: str, count: int = 3) -> bytes:
    return b"".join(orjson.dumps({"text": f"{word} {n}"}) + b"\n" for n in range(count))


def write_parquet(path: Path, word: str) -> None:
    pq.write_table(pa.table({"text": [f"{word} {n}" for n in range(3)]}), path)


def records(config: Config) -> Iterator[Document | Reject]:
    for shard in plan_shards(config):
        yield from read_shard(shard, config.corpus[0])


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(lines("secret"))
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(lines("b")),
        lambda path: path.write_bytes(lines("a", 2)),
        lambda path: path.write_bytes(lines("a", 4)),
        become_a_pipe,
        become_a_link,
    ],
)
def test_a_file_that_changed_after_planning_is_not_read(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("a"))
    os.utime(path, (1, 1))
    config = configure(tmp_path, "a.jsonl")
    [shard] = plan_shards(config)
    change(path)
    signal.alarm(20)  # a pipe without a writer must not be waited for
    try:
        with pytest.raises(CorpusError, match=CHANGED):
            list(read_shard(shard, config.corpus[0]))
    finally:
        signal.alarm(0)


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("a", 300_000))
    reading = records(configure(tmp_path, "a.jsonl"))
    assert isinstance(next(reading), Document)
    with path.open("ab") as file:
        file.write(lines("more"))
    with pytest.raises(CorpusError, match=CHANGED):
        list(reading)


def test_a_file_that_is_replaced_by_damage_is_no_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, "a")
    config = configure(tmp_path, "a.parquet")
    [shard] = plan_shards(config)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, (1, 1))
    with pytest.raises(CorpusError, match=CHANGED):
        list(read_shard(shard, config.corpus[0]))


def test_reading_may_end_early(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("a", 100_000))
    reading = records(configure(tmp_path, "a.jsonl"))
    next(reading)
    path.write_bytes(b"")
    reading.close()


@pytest.mark.parametrize("pattern", ["*.bin", "a.*"])
def test_an_index_that_is_replaced_is_noticed_however_it_is_named(
    tmp_path: Path, pattern: str
) -> None:
    write_megatron(tmp_path / "a.bin", [np.arange(5), np.arange(7)])
    config = configure(tmp_path, pattern)
    [before] = plan_shards(config)
    assert len(list(read_shard(before, config.corpus[0]))) == 2
    os.utime(tmp_path / "a.idx", (1, 1))
    [after] = plan_shards(config)
    assert after.stamp != before.stamp
    with pytest.raises(CorpusError, match=f"a.idx: {CHANGED}"):
        list(read_shard(before, config.corpus[0]))
