"""Mutated input files, and what must become of them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from retro_db.config import TrainTokenizerConfig, parse_config
from retro_db.corpus.chunking import ChunkedShard, chunk_shard
from retro_db.corpus.sharding import plan_shards
from retro_db.errors import InputError
from retro_db.store.folder import Folder
from retro_db.tokens.tokenizer import Tokenizer
from retro_db.tokens.tokenizer_training import train_tokenizer
from support.formats import SEPARATOR, frames, write_megatron

MEMORY = 6_000_000_000
WORDS = ["plain", "naïve", "北京", "🐘", "שלום", "\x00", "tab\t", "line\n", "long" * 90, "{}", '"']


def texts_of(source: random.Random) -> list[str]:
    return [
        " ".join(source.choices(WORDS, k=source.randrange(1, 30)))
        for _ in range(source.randrange(1, 60))
    ]


def as_jsonl(texts: list[str]) -> bytes:
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)


def as_text(texts: list[str]) -> bytes:
    return SEPARATOR.join(texts).encode()


def as_parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "n": range(len(texts))}), sink, row_group_size=9)
    return sink.getvalue()


def as_arrow(new: Callable[..., Any]) -> Callable[[list[str]], bytes]:
    def write(texts: list[str]) -> bytes:
        table, sink = pa.table({"text": texts}), io.BytesIO()
        with new(sink, table.schema) as writer:
            writer.write_table(table, 9)
        return sink.getvalue()

    return write


FORMATS: dict[str, tuple[str, Callable[[list[str]], bytes]]] = {
    "jsonl": (".jsonl", as_jsonl),
    "text": (".txt", as_text),
    "parquet": (".parquet", as_parquet),
    "arrow": (".arrow", as_arrow(pa.ipc.new_file)),
    "stream": (".arrow", as_arrow(pa.ipc.new_stream)),
    "megatron": (".bin", as_text),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".zst ": lambda data: frames(data, 300, table=True),
}


def mutate(data: bytes, source: random.Random) -> bytes:
    """A few random injuries."""
    out = bytearray(data)
    for _ in range(source.randrange(4)):
        place, size = source.randrange(len(out) + 1), source.randrange(1, 200)
        kind = source.randrange(7)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << source.randrange(8)
        elif kind == 1:
            del out[place : place + size]
        elif kind == 2:
            out[place:place] = out[place : place + size]
        elif kind == 3:
            out[place:place] = source.randbytes(size)
        elif kind == 4:
            del out[place:]
        elif kind == 5:
            out[place : place + 8] = source.choice([b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8)])
        else:
            out += source.choice([bytes(size), data[:size], source.randbytes(size)])
    return bytes(out)


def write_case(folder: Path, source: random.Random) -> dict[str, Any]:
    """A mutated file, and the settings of a source that reads it."""
    name = source.choice([*FORMATS, "jsonl", "text"])
    suffix, write = FORMATS[name]
    packed = source.choice(list(COMPRESSIONS)) if name in ("jsonl", "text") else ""
    named = packed.strip() if source.random() < 0.8 else ""
    path = folder / f"file{suffix}{named}"
    texts = texts_of(source)
    settings = {"name": "fuzz", "max_bad": 1.0, "max_document": source.choice([2000, 10**8])}
    settings |= {"paths": [str(path)], "format": "arrow" if name == "stream" else name}
    if name == "text" and source.random() < 0.7:
        settings["separator"] = SEPARATOR
    if name == "megatron":
        write_megatron(path, [np.arange(len(text)) % 250 for text in texts])
        index = path.with_suffix(".idx")
        index.write_bytes(mutate(index.read_bytes(), source))
        path.write_bytes(mutate(path.read_bytes(), source))
    else:
        path.write_bytes(mutate(COMPRESSIONS[packed](write(texts)), source))
    return settings


def check_case(seed: int, tokenizer: Tokenizer) -> None:
    """Chunks one mutated file as the stage does, and balances its records."""
    source = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = write_case(folder, source)
        config = parse_config(
            {
                "output": str(folder / "db"),
                "corpus": [settings],
                "tokenizer": {"path": "given"},
                "encoder": {"model": "unused"},
                "chunk": {"shard_size": source.choice([1, 400, 10**9])},
            },
            "fuzz",
        )
        database = Folder(config.output)
        try:
            shards = [
                chunk_shard(shard, config, tokenizer, database, {}, lambda count: None)
                for shard in plan_shards(config)
            ]
        except InputError as error:
            names_the_file(error)
            return
        balance(shards)
        if settings["format"] == "jsonl" and settings["paths"][0].endswith(".jsonl"):
            nothing_good_is_lost(Path(settings["paths"][0]), shards, settings["max_document"])


def names_the_file(error: InputError) -> None:
    assert "file." in str(error)


def balance(shards: list[ChunkedShard]) -> None:
    """Records in are documents out, dropped or rejected."""
    for shard in shards:
        rows = sum(part.documents.rows for part in shard.parts)
        assert shard.read == rows + sum(shard.dropped.values()) + sum(shard.rejected.values())


def nothing_good_is_lost(path: Path, shards: list[ChunkedShard], longest: int) -> None:
    """Every line that is an object with a text is a document, if the file is plain."""
    data = path.read_bytes()
    if data[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7") or data[1:4] in (
        b"\xb5\x2f\xfd",
        b"\x2a\x4d\x18",
    ):
        return
    good = 0
    for line in data.split(b"\n"):
        try:
            text = orjson.loads(line)["text"]
        except (ValueError, TypeError, KeyError):
            continue
        good += isinstance(text, str) and len(text.encode()) <= longest
    assert sum(part.documents.rows for shard in shards for part in shard.parts) == good


def check_batch(first: int, last: int) -> None:
    """What a process of the test does; the last seed that it prints is the one that ended it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tokenizer = train_tokenizer([" ".join(WORDS)], TrainTokenizerConfig(vocab_size=300))
    for seed in range(first, last):
        print(seed, flush=True)
        check_case(seed, tokenizer)
