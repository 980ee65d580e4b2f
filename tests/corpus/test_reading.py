"""Sources, formats and shares of a corpus."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import retro_db
from retro_db.config import Config, load_config, parse_config
from retro_db.corpus.documents import Document, Reject
from retro_db.corpus.reading import read_shard
from retro_db.corpus.sharding import Shard, plan_shards, sample_shards
from retro_db.hashing import fraction_of, fractions_of
from retro_db_pipelines.stages.tokenizer import sample_texts
from support.projects import make_project

TEXTS = ["first text", "second\ntext with a line", "", "ünïcode 🐘 and \x00 and \u202e", "last"]


def configure(paths: list[Path], **source: Any) -> Config:
    return parse_config(
        {
            "output": "db",
            "corpus": [{"name": "s", "paths": [str(path) for path in paths]} | source],
            "tokenizer": {"train": {}},
            "encoder": {"model": "m"},
        },
        "test",
    )


def read(config: Config) -> list[Document | Reject]:
    shards = plan_shards(config)
    return [record for shard in shards for record in read_shard(shard, config.corpus[0])]


def jsonl(texts: list[str]) -> bytes:
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)


def offsets(texts: list[str]) -> list[int]:
    """Where each line of `jsonl` begins."""
    return [len(jsonl(texts[:number])) for number in range(len(texts))]


def two_frames(data: bytes) -> bytes:
    middle = len(data) // 2
    return zstandard.compress(data[:middle]) + zstandard.compress(data[middle:])


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("", lambda data: data),
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.compress),
        (".zst", two_frames),
    ],
)
def test_json_lines_plain_and_compressed(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(jsonl(TEXTS)))
    records = read(configure([path]))
    assert [record.text for record in records if isinstance(record, Document)] == TEXTS
    names = [f"{path.name}:{offset}" for offset in offsets(TEXTS)]
    assert [record.id for record in records if isinstance(record, Document)] == names


def test_parquet_and_arrow(tmp_path: Path) -> None:
    table = pa.table({"body": TEXTS, "key": [10, 20, 30, 40, 50], "more": [0.5] * 5})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    for name in ("a.parquet", "a.arrow"):
        records = read(configure([tmp_path / name], text="body", id="key"))
        assert [(r.id, r.text) for r in records if isinstance(r, Document)] == list(
            zip(["10", "20", "30", "40", "50"], TEXTS, strict=True)
        )


def test_text_files_are_documents_named_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_bytes("zwei ü".encode())
    (tmp_path / "one.txt").write_bytes(b"eins")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    config = configure([tmp_path / "**" / "*.txt"])
    [two, bad, one] = read(config)
    assert isinstance(two, Document)
    assert (two.id, two.text) == ("b/two.txt", "zwei ü")
    assert isinstance(one, Document)
    assert isinstance(bad, Reject)
    assert "UTF-8" in bad.reason


def test_bad_records_are_returned_with_their_place(tmp_path: Path) -> None:
    lines = [
        b'{"text": "fine"}',
        b"not json",
        b'{"text": "\\ud800"}',
        b'{"text": 5}',
        b'{"other": "x"}',
        b"[1]",
        b'{"text": "\xff"}',
        b"",
        b'{"text": "also fine"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    records = read(configure([path]))
    assert [isinstance(record, Document) for record in records] == [True] + [False] * 6 + [True]
    rejects = [record for record in records if isinstance(record, Reject)]
    starts = [len(b"\n".join([*lines[:number], b""])) for number in range(len(lines))]
    assert [reject.offset for reject in rejects] == starts[1:7]
    assert all(reject.file == "a.jsonl" for reject in rejects)


def test_a_truncated_stream_is_a_bad_record_after_the_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(TEXTS * 1000))[:-20])
    records = read(configure([path]))
    assert isinstance(records[-1], Reject)
    assert "damaged" in records[-1].reason
    assert all(isinstance(record, Document) for record in records[:-1])


def test_long_documents_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["short", "ü" * 60]))
    records = read(configure([path], max_document=100))
    assert [isinstance(record, Document) for record in records] == [True, False]


def test_plans_are_stable_and_lose_nothing(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.jsonl").write_bytes(jsonl([f"text {number}"] * (number + 1)))
    config = configure([tmp_path / "2*.jsonl", tmp_path / "*.jsonl"])
    config = config.model_copy(
        update={"chunk": config.chunk.model_copy(update={"shard_size": 1000})}
    )
    shards = plan_shards(config)
    assert shards == plan_shards(config)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    names = [piece.file.name for shard in shards for piece in shard.pieces]
    assert names == sorted(f"{number:02d}.jsonl" for number in range(30)), "none twice"
    assert all(shard.bytes <= 1000 for shard in shards)


def test_a_sample_is_spread_over_files_and_keeps_every_source(tmp_path: Path) -> None:
    shards = []
    for number, name in enumerate("ab"):
        for file in range(200 if name == "a" else 1):
            (tmp_path / f"{name}{file:03d}.jsonl").write_bytes(jsonl(["text"]))
        config = configure([tmp_path / f"{name}*.jsonl"])
        [shard] = plan_shards(config)
        shards.append(Shard(number, name, shard.format, shard.pieces))
    sampled = sample_shards(shards, 10, 1000, seed=0)
    assert sampled == sample_shards(shards, 10, 1000, seed=0)
    assert [shard.source for shard in sampled] == ["a", "b"]
    names = [piece.file.name for piece in sampled[0].pieces]
    assert 4 < len(names) < 40
    assert set(names) < {piece.file.name for piece in shards[0].pieces}
    assert max(names) > "a100", "not a prefix"
    assert sampled[0].fraction == pytest.approx(1 / 8)


def test_a_larger_share_contains_the_smaller(tmp_path: Path) -> None:
    texts = [f"document number {number}" for number in range(300)]
    kept: list[set[str]] = []
    for share in (0.1, 0.4):
        project = make_project(tmp_path / str(share), texts)
        project.settings["corpus"][0]["fraction"] = share
        assert project.build() == 0
        database = project.open()
        kept.append(set(database.documents["id"].to_pylist()))
        [source] = database.manifest.sources
        assert source.read == 300
        assert source.documents + source.dropped == 300
    assert 15 < len(kept[0]) < 50
    assert 90 < len(kept[1]) < 150
    assert kept[0] < kept[1]


def test_sources_follow_one_another_with_their_own_counts(tmp_path: Path) -> None:
    project = make_project(tmp_path, [f"news {number}" for number in range(7)])
    books = tmp_path / "books"
    books.mkdir()
    for number in range(3):
        (books / f"{number}.txt").write_text(f"a book, number {number} " * 100)
    project.settings["corpus"].append({"name": "books", "paths": [str(books)], "weight": 3.0})
    assert project.build() == 0
    database = project.open()
    assert database.documents["source"].to_pylist() == ["test"] * 7 + ["books"] * 3
    assert database.documents["id"].to_pylist()[7:] == ["0.txt", "1.txt", "2.txt"]
    first, second = database.manifest.sources
    assert (first.documents, second.documents, second.weight) == (7, 3, 3.0)
    assert first.chunks + second.chunks == len(database)


def test_samples_count_what_a_fraction_keeps(tmp_path: Path) -> None:
    texts = [f"document {number} " * 20 for number in range(4000)]
    project = make_project(tmp_path, texts, chunk={"shard_size": 50_000})
    project.settings["corpus"][0]["fraction"] = 0.1
    config = load_config(project.config)
    shards = plan_shards(config)
    sampled = sum(map(len, sample_texts(shards, config, 30_000, lambda count: None)))
    assert 15_000 < sampled < 60_000
    assert project.build("--smoke", "100") == 0
    [source] = retro_db.open(f"{project.output}-smoke").manifest.sources
    assert 50 < source.documents < 200


def test_hashed_numbers_are_uniform() -> None:
    numbers = np.array([fraction_of("a", 0, name) for name in range(4000)])
    others = fractions_of(np.arange(4000), seed=1)
    for sample in (numbers, others):
        assert sample.min() >= 0
        assert sample.max() < 1
        counts = np.histogram(sample, bins=8, range=(0, 1))[0]
        assert counts.min() > 400
    assert fraction_of("ab", "c") != fraction_of("a", "bc")


def test_links_and_brackets_are_names_like_others(tmp_path: Path) -> None:
    (tmp_path / "in" / ".real").mkdir(parents=True)
    (tmp_path / "in" / ".real" / "a.txt").write_text("linked")
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "in" / ".real" / "a.txt")
    (tmp_path / "in" / "b[1].txt").write_text("brackets")
    (tmp_path / "in" / "c::d #%20.txt").write_text("colons")
    for paths in ([tmp_path / "in"], [tmp_path / "in/a.txt", tmp_path / "in/[b-c]*.txt"]):
        records = read(configure(paths))
        texts = [record.text for record in records if isinstance(record, Document)]
        assert texts == ["linked", "brackets", "colons"]
    [record] = read(configure([tmp_path / "in/b[1].txt"]))
    assert isinstance(record, Document)


@pytest.mark.parametrize("suffix", [".bz2", ".gz", ".xz", ".zst"])
def test_a_file_that_is_not_compressed_as_named_is_a_bad_record(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"this is no compressed file")
    [record] = read(configure([path]))
    assert isinstance(record, Reject)
    assert "damaged" in record.reason


def test_the_tokenizer_does_not_depend_on_file_times(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["unused"])
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"words of file {number} " * 20)
    project.settings["corpus"] = [{"name": "s", "paths": [str(folder)]}]
    project.settings["chunk"] = {"shard_size": 500}
    project.settings["tokenizer"] = {"train": {"vocab_size": 400, "sample": 2000}}
    config = load_config(project.config)
    first = list(sample_texts(plan_shards(config), config, 2000, lambda count: None))
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert first == list(sample_texts(plan_shards(config), config, 2000, lambda count: None))
    assert 0 < len(first) < 30


def test_a_record_larger_than_the_memory_is_no_bad_record(tmp_path: Path) -> None:
    """JSON lines: the parser calls it an error of the JSON."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"word " * 40_000_000 + b'"}\n')
    program = """
import resource, sys
from pathlib import Path
from retro_db.config import SourceConfig
from retro_db.corpus.listing import Listing
from retro_db.corpus.reading import read_shard
from retro_db.corpus.sharding import Shard, pack_files
source = SourceConfig(name="a", paths=[sys.argv[1]], max_document="1GB")
[pieces] = pack_files(Listing("db").files(source.paths, "paths"), "jsonl", 10**9)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 500_000_000,) * 2)
try:
    print(list(read_shard(Shard(0, "a", "jsonl", pieces), source)))
except MemoryError as error:
    print("no memory:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=100
    )
    assert done.stdout.startswith("no memory: a.jsonl at 0: "), done
    assert "max_document can leave it out" in done.stdout
