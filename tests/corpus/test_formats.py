"""Every format and compression of the same documents, splits of large files, and plans."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_db.config import (
    Config,
    SourceConfig,
    TokenizerConfig,
    TrainTokenizerConfig,
    parse_config,
)
from retro_db.corpus.documents import Document, Reject
from retro_db.corpus.formats.text import split_stream
from retro_db.corpus.reading import read_shard
from retro_db.corpus.sharding import plan_shards
from retro_db.errors import ConfigError, CorpusError, ExecutionError
from retro_db.tokens.tokenizer import Tokenizer
from retro_db.tokens.tokenizer_training import train_tokenizer
from retro_db_pipelines.commands.cli import run
from support.formats import SEPARATOR, frames, write_megatron
from support.projects import Project, make_project


def configure(paths: list[Any], shard_size: int = 256_000_000, **source: Any) -> Config:
    return parse_config(
        {
            "output": "db",
            "corpus": [{"name": "s", "paths": [str(path) for path in paths]} | source],
            "tokenizer": {"path": "given"},
            "encoder": {"model": "m"},
            "chunk": {"shard_size": shard_size},
        },
        "test",
    )


def read(config: Config) -> list[Document | Reject]:
    shards = plan_shards(config)
    return [record for shard in shards for record in read_shard(shard, config.corpus[0])]


def texts_of(records: list[Document | Reject]) -> list[str | None]:
    assert all(isinstance(record, Document) for record in records), records
    return [record.text for record in records if isinstance(record, Document)]


def some_texts(count: int) -> list[str]:
    """Documents of all lengths and kinds, all different; none looks like a separator."""
    source = random.Random(5)
    words = ["plain", "naïve", "北京", "🐘", "שלום", "\x00", "tab\t", "line\n", "wörd" * 40, "x"]
    texts = [" ".join(source.choices(words, k=source.randrange(1, 60))) for _ in range(count)]
    return [f"{number}: {text}" for number, text in enumerate(texts)]


def jsonl(texts: list[str]) -> bytes:
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".zst-frames": lambda data: frames(data, 10_000, table=False),
    ".zst-table": lambda data: frames(data, 10_000, table=True),
    ".gz-members": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
}


def corpora(folder: Path, texts: list[str], tokenizer: Tokenizer) -> Iterator[tuple[str, dict]]:
    """The same documents in every format and compression, as settings of a source."""
    for name, compress in COMPRESSIONS.items():
        suffix = name.split("-")[0]
        lines = folder / f"lines{name}" / f"a.jsonl{suffix}"
        plain = folder / f"text{name}" / f"a.txt{suffix}"
        unnamed = folder / f"unnamed{name}" / "a.jsonl"
        for path, data in (
            (lines, jsonl(texts)),
            (unnamed, jsonl(texts)),
            (plain, SEPARATOR.join(texts).encode()),
        ):
            path.parent.mkdir()
            path.write_bytes(compress(data))
        yield f"jsonl{name}", {"paths": [str(lines)]}
        yield f"jsonl by content{name}", {"paths": [str(unnamed)]}
        yield f"text{name}", {"paths": [str(plain)], "separator": SEPARATOR}
    files = folder / "files"
    files.mkdir()
    for number, text in enumerate(texts):
        (files / f"{number:05d}.txt").write_bytes(text.encode())
    yield "a file each", {"paths": [str(files)]}
    table = pa.table({"other": range(len(texts)), "text": texts})
    pq.write_table(table, folder / "a.parquet", row_group_size=300)
    yield "parquet", {"paths": [str(folder / "a.parquet")]}
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        path = folder / f"{kind.id}.arrow"
        with pa.ipc.new_file(path, pa.schema({"text": kind})) as file:
            file.write_table(pa.table({"text": pa.array(texts).cast(kind)}), 300)
        yield f"arrow {kind}", {"paths": [str(path)]}
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as stream:
        stream.write_table(table, 300)
    yield "arrow stream", {"paths": [str(folder / "stream.arrow")]}
    for code in (8, 4, 5):
        write_megatron(folder / f"tokens{code}.bin", tokenizer.encode(texts), code)
        yield f"megatron {code}", {"paths": [str(folder / f"tokens{code}.*")]}


def test_every_format_and_compression_gives_the_same_chunks(tmp_path: Path) -> None:
    texts = some_texts(500)
    tokenizer = train_tokenizer(texts, TrainTokenizerConfig(vocab_size=600))
    project = make_project(tmp_path / "project", ["unused"])
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, data in tokenizer.files.items():
        (folder / name).write_bytes(data)
    project.settings["tokenizer"] = {"path": str(folder)}
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    expected: list[bytes] | None = None
    for name, source in corpora(inputs, texts, tokenizer):
        project.settings["corpus"] = [{"name": "test"} | source]
        project.settings["output"] = str(tmp_path / "out" / name)
        found = chunk_files(project)
        expected = expected or found
        assert found == expected, name
        assert len(found) == 1


def chunk_files(project: Project) -> list[bytes]:
    """Contents of the chunks files after the stages up to them."""
    for stage in ("tokenizer", "chunk"):
        assert run(["stage", stage, str(project.config)]) == 0
    return [path.read_bytes() for path in sorted((project.output / "chunks").iterdir())]


@pytest.mark.parametrize("size", [1, 50, 1000, 20_000])
@pytest.mark.parametrize("kind", ["jsonl", "zst", "parquet", "megatron"])
def test_split_files_hold_every_document_once(tmp_path: Path, kind: str, size: int) -> None:
    texts = some_texts(150)
    data = jsonl(texts).replace(b"\n", b"\n\n", 3) + b'{"text": "the last has no line end"}'
    path = tmp_path / {"zst": "a.jsonl.zst", "megatron": "a.bin"}.get(kind, f"a.{kind}")
    if kind == "jsonl":
        path.write_bytes(data)
    elif kind == "zst":
        path.write_bytes(frames(data, max(size, 20), table=True))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
    else:
        write_megatron(path, [np.arange(number) for number in range(150)])
    config = configure([path], size)
    shards = plan_shards(config)
    assert shards == plan_shards(config)
    if size < 20_000:
        assert len(shards) > 1, "it is divided"
    assert sum(shard.bytes for shard in shards) == path.stat().st_size
    whole, divided = read(configure([path])), read(config)
    assert [vars_of(record) for record in divided] == [vars_of(record) for record in whole]
    assert len(whole) == (150 if kind in ("parquet", "megatron") else 151)


def vars_of(record: Document | Reject) -> list[Any]:
    assert isinstance(record, Document)
    return [record.id, record.offset, record.text, None if record.text else list(record.tokens)]


@given(
    st.lists(st.text(alphabet="ab\n=", max_size=30), max_size=8),
    st.integers(1, 40),
    st.booleans(),
)
@settings(deadline=None)
def test_any_lines_are_split_anywhere(lines: list[str], size: int, newline: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        data = b"\n".join(orjson.dumps({"text": line}) for line in lines)
        path.write_bytes(data + b"\n" * newline)
        records = read(configure([path], size))
    if not data and not newline:
        assert [record.reason for record in records if isinstance(record, Reject)] == ["empty file"]
    else:
        assert texts_of(records) == lines


@given(st.text(alphabet="ab\n#", max_size=200), st.integers(1, 30))
def test_separators_are_found_wherever_blocks_end(text: str, block: int) -> None:
    import re

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(block)

    for pattern in ("\n\n+", "^(?=#)", "#\n", "b$"):
        compiled = re.compile(pattern.encode(), re.MULTILINE)
        pieces = list(split_stream(Slow(text.encode()), compiled, 1000))  # type: ignore[arg-type]
        expected = [part for part in compiled.split(text.encode()) if part.strip()]
        assert [piece for _, piece in pieces] == expected
        for offset, piece in pieces:
            assert text.encode()[offset : offset + len(piece)] == piece


def test_documents_longer_than_the_limit_are_passed_over_in_a_stream() -> None:
    import re

    data = b"short\n--\n" + b"x" * 3_000_000 + b"\n--\nend"
    pieces = list(split_stream(io.BytesIO(data), re.compile(b"\n--\n"), 100))  # type: ignore[arg-type]
    assert [(offset, len(piece)) for offset, piece in pieces] == [(0, 5), (9, 100), (3_000_013, 3)]


def test_rejects_of_every_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "cut.jsonl.zst").write_bytes(zstandard.compress(jsonl(["a" * 999] * 999))[:-9])
    lines = [b"{", b'{"text": null}', b'{"text": 1}', b"3", b'{"text": "\\ud800"}']
    lines += [b'{"text": "' + b"y" * 101 + b'"}', b"\xef\xbb\xbf{}", b"\xff", b'{"text": "\xc3"}']
    (tmp_path / "lines.jsonl").write_bytes(b"\n".join(lines))
    rejects = [r for r in read(configure([tmp_path], max_document=100)) if isinstance(r, Reject)]
    reasons = [(reject.file, reject.reason) for reject in rejects]
    assert ("empty.jsonl", "empty file") in reasons
    assert ("packed.jsonl.gz", "empty file") in reasons
    assert ("cut.jsonl.zst", "damaged file") in reasons
    of_lines = [reason for file, reason in reasons if file == "lines.jsonl"]
    assert of_lines == [
        "not JSON",
        "no text",
        "text is no string",
        "not an object",
        "not JSON",
        "too long",
        "not JSON",
        "not JSON",
        "not JSON",
    ]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(["one", "two"]))
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthree")
    assert texts_of(read(configure([tmp_path / "a.jsonl"]))) == ["one", "two"]
    assert texts_of(read(configure([tmp_path / "b.txt"]))) == ["three"]


def test_bad_strings_in_tables_are_found_by_row(tmp_path: Path) -> None:
    data = pa.array([b"good", b"\xff\xfe", None, b"fine"], pa.binary())
    text = pa.StringArray.from_buffers(4, data.buffers()[1], data.buffers()[2], data.buffers()[0])
    table = pa.table({"text": text})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    pq.write_table(table, tmp_path / "b.parquet")
    for name in ("a.arrow", "b.parquet"):
        records = read(configure([tmp_path / name]))
        assert [getattr(record, "reason", "document") for record in records] == [
            "document",
            "not UTF-8",
            "no text",
            "document",
        ]
        assert [record.offset for record in records] == [0, 1, 2, 3]


def test_a_damaged_row_group_costs_its_own_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {number} " * 20 for number in range(60)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=20, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start, size = column.data_page_offset, column.total_compressed_size
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    records = read(configure([path]))
    [reject] = [record for record in records if isinstance(record, Reject)]
    assert (reject.offset, reject.count) == (20, 20)
    kept = [record.text for record in records if isinstance(record, Document)]
    assert kept == texts[:20] + texts[40:]


def test_stored_tokens_lose_their_end_and_must_fit_the_tokenizer(tmp_path: Path) -> None:
    text = "some words that were tokenized before, " * 30
    tokenizer = train_tokenizer([text], TrainTokenizerConfig(vocab_size=300))
    [ids] = tokenizer.encode([text])
    end = np.append(ids, tokenizer.end_id)
    project = make_project(tmp_path, ["unused"])
    (tmp_path / "tokenizer").mkdir()
    for name, data in tokenizer.files.items():
        (tmp_path / "tokenizer" / name).write_bytes(data)
    write_megatron(tmp_path / "a.bin", [ids, end, np.array([5, 60_000]), ids[:0]])
    project.settings |= {
        "corpus": [{"name": "stored", "paths": [str(tmp_path / "a.bin")], "max_bad": 0.25}],
        "tokenizer": {"path": str(tmp_path / "tokenizer")},
    }
    assert project.build() == 0
    database = project.open()
    [source] = database.manifest.sources
    assert source.rejected_by == {"unknown token": 1}
    counts = database.documents["chunk_count"].to_pylist()
    assert counts == [-(-len(ids) // 64)] * 2 + [0]
    rows = database.chunks[range(counts[0])].reshape(-1)[: len(ids)]
    assert np.array_equal(rows, ids)


def test_a_missing_index_of_stored_tokens_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path, ["text to train a tokenizer with"])
    assert run(["stage", "tokenizer", str(project.config)]) == 0
    write_megatron(tmp_path / "a.bin", [np.arange(5)])
    (tmp_path / "a.idx").unlink()
    project.settings["corpus"] = [{"name": "stored", "paths": [str(tmp_path / "a.bin")]}]
    project.settings["tokenizer"] = {"path": str(project.output / "tokenizer")}
    project.settings["output"] = str(tmp_path / "other")
    assert project.build() == 2
    assert "a.idx: vanished" in capsys.readouterr().err


def test_a_changed_index_of_stored_tokens_changes_the_shard(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a.bin", [np.arange(5), np.arange(7)])
    config = configure([tmp_path / "a.*"])
    [before] = plan_shards(config)
    data, moment = (tmp_path / "a.bin").read_bytes(), (tmp_path / "a.bin").stat().st_mtime
    write_megatron(tmp_path / "a.bin", [np.arange(12)])
    (tmp_path / "a.bin").write_bytes(data)
    os.utime(tmp_path / "a.bin", (moment, moment))
    os.utime(tmp_path / "a.idx", (1, 1))
    [after] = plan_shards(config)
    assert before.stamp != after.stamp


def test_stored_tokens_need_their_tokenizer(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a.bin", [np.arange(5)])
    config = configure([tmp_path / "a.bin"])
    trained = config.model_copy(update={"tokenizer": TokenizerConfig(train=TrainTokenizerConfig())})
    with pytest.raises(ConfigError, match=r"tokenizer\.path"):
        plan_shards(trained)


class Counting(LocalFileSystem):
    """Local files, with a note of every folder that is listed."""

    protocol = "counting"
    listed: list[str] = []  # noqa: RUF012 - shared on purpose

    def ls(self, path: str, detail: bool = False, **more: Any) -> Any:
        Counting.listed.append(str(path))
        return super().ls(path, detail, **more)

    def unstrip_protocol(self, name: str) -> str:
        return f"counting://{name}"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("counting://"))


def test_no_folder_is_listed_twice(tmp_path: Path) -> None:
    fsspec.register_implementation("counting", Counting, clobber=True)
    for number in range(300):
        folder = tmp_path / "data" / f"{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.jsonl").write_bytes(jsonl(["text"]))
        (folder / f".{number:03d}.jsonl").write_bytes(b"hidden")
    base = f"counting://{tmp_path}/data"
    Counting.listed.clear()
    paths = [f"{base}/*/*0.jsonl", f"{base}/*/*[1-9].jsonl", f"{base}/**/*.jsonl", base]
    [shard] = plan_shards(configure(paths))
    names = [piece.file.name for piece in shard.pieces]
    assert len(names) == 300
    assert names == sorted(names)
    assert len(Counting.listed) == len(set(Counting.listed)) == 11
    with pytest.raises(CorpusError, match="matches no file"):
        plan_shards(configure([f"{base}/*/*.parquet"]))


def test_ids_of_several_paths_differ_and_empty_folders_are_told(tmp_path: Path) -> None:
    for language in ("en", "fr"):
        (tmp_path / language).mkdir()
        (tmp_path / language / "0.jsonl").write_bytes(jsonl([language]))
    records = read(configure([tmp_path / "en" / "0.jsonl", tmp_path / "fr" / "*.jsonl"]))
    assert [record.id for record in records if isinstance(record, Document)] == [
        "en/0.jsonl:0",
        "fr/0.jsonl:0",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="matches no file"):
        plan_shards(configure([tmp_path / "empty"]))


class Hosted(MemoryFileSystem):
    """Files in memory under URLs with a host, which the filesystem leaves out of its names."""

    protocol = "hosted"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hosted://").removeprefix("node:8020").lstrip("/")


def test_hosts_in_urls_are_kept_and_changes_are_seen() -> None:
    fsspec.register_implementation("hosted", Hosted, clobber=True)
    files = fsspec.filesystem("hosted")
    files.pipe("/data/a.jsonl", jsonl(["one"]))
    config = configure(["hosted://node:8020/data/*.jsonl"])
    [shard] = plan_shards(config)
    assert [piece.file.url for piece in shard.pieces] == ["hosted://node:8020/data/a.jsonl"]
    assert texts_of(read(config)) == ["one"]
    files.pipe("/data/a.jsonl", jsonl(["two"]))
    assert plan_shards(config)[0].stamp != shard.stamp
    with pytest.raises(CorpusError, match="joined filesystems"):
        plan_shards(configure(["simplecache::hosted://node:8020/data/*.jsonl"]))


class Failing(MemoryFileSystem):
    """Files in memory behind a network that ends in the middle of each."""

    protocol = "failing"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("failing://").lstrip("/")

    def open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        file = super().open(path, mode, **more)
        if mode == "rb":
            content = file.getvalue()

            def read(size: int = -1) -> bytes:
                if file.tell() > len(content) // 2:
                    raise TimeoutError
                return io.BytesIO.read(file, size)

            file.read = read
        return file


def test_a_failing_network_loses_nothing() -> None:
    fsspec.register_implementation("failing", Failing, clobber=True)
    fsspec.filesystem("failing").pipe("/a.jsonl", jsonl(["text"] * 300_000))
    fsspec.filesystem("failing").pipe("/b.parquet", b"PAR1" * 999_999)
    for name in ("a.jsonl", "b.parquet"):
        with pytest.raises(ExecutionError, match="cannot be read: TimeoutError"):
            read(configure([f"failing://{name}"]))


def test_frames_without_content_lose_nothing(tmp_path: Path) -> None:
    texts = some_texts(60)
    blocks = [block for text in texts for block in (jsonl([text]), b"")]
    packed = [zstandard.compress(block) for block in blocks]
    sizes = [struct.pack("<II", len(p), len(u)) for p, u in zip(packed, blocks, strict=True)]
    body = b"".join(sizes) + struct.pack("<IBI", len(blocks), 0, 0x8F92EAB1)
    table = struct.pack("<II", 0x184D2A5E, len(body)) + body
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(packed) + table)
    for size in range(40, 1200, 90):
        assert texts_of(read(configure([tmp_path / "a.jsonl.zst"], size))) == texts


@pytest.mark.parametrize("kind", ["parquet", "megatron"])
def test_uneven_units_are_weighed(tmp_path: Path, kind: str) -> None:
    sizes = [3] * 400 + [20_000] * 20
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.bin")
    if kind == "parquet":
        schema = pa.schema({"text": pa.string()})
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for size in sizes:
                writer.write_table(pa.table({"text": ["x" * size]}))
    else:
        write_megatron(path, [np.zeros(size) for size in sizes])
    shards = plan_shards(configure([path], 150_000))
    large = [sum(record_size(r) > 1000 for r in read_shard(s, source_of(path))) for s in shards]
    assert sum(large) == 20
    assert max(large) <= 4


def record_size(record: Document | Reject) -> int:
    assert isinstance(record, Document)
    return record.size


def source_of(path: Path) -> SourceConfig:
    return configure([path]).corpus[0]


def test_links_that_form_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    assert texts_of(read(configure([tmp_path / "in"]))) == ["text"]
    assert texts_of(read(configure([tmp_path / "in" / "*" / "a.txt"]))) == ["text"]


def test_shards_have_about_equal_work(tmp_path: Path) -> None:
    source = random.Random(1)
    for number in range(200):
        (tmp_path / f"{number:03d}.jsonl").write_bytes(b"x" * source.randrange(1, 3000))
    (tmp_path / "large.jsonl").write_bytes((b"x" * 99 + b"\n") * 1000)
    shards = plan_shards(configure([tmp_path], 10_000))
    sizes = [shard.bytes for shard in shards]
    assert sum(sizes) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert max(sizes) <= 10_000
    assert sorted(sizes)[1] > 5_000, "all but the last of the small ones are filled"


def test_many_empty_files_are_not_one_shard(tmp_path: Path) -> None:
    for number in range(12_000):
        (tmp_path / f"{number}.jsonl").touch()
    shards = plan_shards(configure([tmp_path]))
    assert len(shards) == 2
    assert sum(len(shard.pieces) for shard in shards) == 12_000
