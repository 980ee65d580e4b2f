"""Hostile databases by the thousand: each is read like any other, in a process that may die of it."""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import json
import os
import random
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import retro_db
from retro_db.errors import RetroDBError
from retro_db.store.folder import Folder, describe
from retro_db.store.records import StageRecords
from retro_db.store.serialize import digest

MEMORY = 6 << 30
HEAD, TAIL = 1536, 2048
VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        7,
        2**31,
        2**53,
        2**61,
        2**62,
        2**63,
        2**64,
        10**400,
        0.5,
        1e308,
        float("nan"),
    ),
    *(
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a//b",
        "a/./b",
        "chunks/../../x",
        "a\\b",
        "a\0b",
        "a\nb",
    ),
    *(
        "\ud800",
        "state/x",
        "report/x",
        "manifest.json",
        "x" * 5000,
        "1.9",
        "2.0",
        "uint8",
        "é",
        "%2e%2e/x",
    ),
    *([], {}, [None], [[]], {"": {}}),
]
NUMBERS = [
    *(0, 1, 2, 7, 8, 64, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1),
    *(2**62, 2**63, 2**64 - 1),
]


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def injure(data: bytes, rng: random.Random) -> bytes:
    """Flips, splices and truncations."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        place, size = rng.randrange(len(out) + 1), rng.randrange(1, 60)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[place : place + size]
        elif kind == 2:
            other = rng.randrange(len(out) + 1)
            out[place:place] = out[other : other + size]
        elif kind == 3:
            out[place:place] = rng.randbytes(size)
        elif kind == 4 and rng.random() < 0.3:
            del out[place:]
        else:
            out[place:place] = rng.choice(
                [b"[" * 3000, b'{"a":' * 2000, b"9" * 5000, b'"', b"\xff", b"NaN"]
            )
    return bytes(out)


def places(value: Any, depth: int = 9) -> list[tuple[Any, Any]]:
    """Items of objects and lists below a value: the container, and the key or position."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    found = [(value, key) for key in keys]
    if not depth:
        return found
    return found + [place for key in keys for place in places(value[key], depth - 1)]


def twist(value: Any, rng: random.Random) -> None:
    """Puts hostile values in place of others, or takes, doubles or exchanges values."""
    for _ in range(rng.choice([1, 1, 1, 2])):
        found = places(value)
        if not found:
            return
        held, key = rng.choice(found)
        kind = rng.randrange(8)
        if kind == 0:
            del held[key]
        elif kind == 1 and isinstance(held, list):
            held.insert(key, copy.deepcopy(held[key]))
        elif kind == 2:
            other, place = rng.choice(found)
            held[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(held[key])
        elif kind == 3:
            held[key] = nested(rng.choice([40, 300, 900]))
            return
        elif kind == 4 and type(held[key]) is int:
            held[key] += rng.choice([-1, 1, 1000])
        else:
            held[key] = copy.deepcopy(rng.choice(VALUES))


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Other bytes in the headers and the footer of a table, as many as before."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        place = rng.choice(
            [rng.randrange(min(HEAD, len(out))), rng.randrange(max(len(out) - TAIL, 0), len(out))]
        )
        kind = rng.randrange(4)
        if kind == 0:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[place] = rng.randrange(256)
        elif kind == 2:
            width = rng.choice([2, 4, 8])
            place -= place % width
            number = rng.choice(NUMBERS) % (1 << 8 * width)
            out[place : place + width] = number.to_bytes(width, "little")
        else:
            other = rng.randrange(len(out))
            out[place : place + 8] = out[other : other + 8].ljust(8, b"\0")
    return bytes(out[: len(data)])


class Target:
    """A copy of a database whose files are exchanged, one case after another."""

    def __init__(self, source: Path, place: Path) -> None:
        self.path = Path(shutil.copytree(source, place))
        self.manifest = (self.path / "manifest.json").read_bytes()
        self.records = sorted((self.path / "state" / "records").glob("*.jsonl"))
        self.tables = [
            path
            for path in sorted(self.path.rglob("part-*"))
            if path.suffix in (".arrow", ".parquet")
        ]
        self.tables = [path for path in self.tables if "state" not in path.parts]

    def put(self, path: Path, data: bytes) -> None:
        """A new file: the old one may still be mapped."""
        temporary = path.with_name("new")
        temporary.write_bytes(data)
        temporary.replace(path)

    def hostile_manifest(self, rng: random.Random) -> str:
        data = injure(self.manifest, rng)
        if rng.random() < 0.7:
            twisted = json.loads(self.manifest)
            # A manifest has more figures than files, and what it says of files is what readers act upon.
            twist(rng.choice([twisted, twisted["tables"]]), rng)
            data = sealed(twisted)
        self.put(self.path / "manifest.json", data)
        try:
            return read_everything(self.path)
        finally:
            self.put(self.path / "manifest.json", self.manifest)

    def hostile_records(self, rng: random.Random) -> str:
        path = rng.choice(self.records)
        before = path.read_bytes()
        data = injure(before, rng)
        if rng.random() < 0.7:
            lines = [json.loads(line) for line in before.splitlines()]
            twist(lines, rng)
            data = b"\n".join(json.dumps(line).encode() for line in lines)
        self.put(path, data)
        try:
            return read_records(self.path, path.stem)
        finally:
            self.put(path, before)

    def hostile_table(self, rng: random.Random) -> str:
        path = rng.choice(self.tables)
        before = path.read_bytes()
        self.put(path, overwrite(before, rng))
        if rng.random() < 0.5:
            self.put(self.path / "manifest.json", self.relisted(path))
        try:
            return read_everything(self.path)
        finally:
            self.put(path, before)
            self.put(self.path / "manifest.json", self.manifest)

    def relisted(self, path: Path) -> bytes:
        """The manifest with a file's new checksum."""
        data, name = json.loads(self.manifest), str(path.relative_to(self.path))
        tables = [data["tables"], *(query["tables"] for query in data["queries"])]
        for entry in (entry for table in tables for entries in table.values() for entry in entries):
            if entry["path"] == name:
                entry["sha256"] = describe(path, name).sha256
        return sealed(data)


def sealed(data: Any) -> bytes:
    """A manifest as it is written, with the checksum of what it says, if it can have one."""
    if isinstance(data, dict) and "sha256" in data:
        body = {key: value for key, value in data.items() if key != "sha256"}
        with contextlib.suppress(ValueError, RecursionError):
            data["sha256"] = digest(body)
            return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
    return json.dumps(data).encode()


def read_everything(path: Path) -> str:
    """What a trainer may ask of a database; the name of the error that it gets, if any."""
    try:
        database = retro_db.open(str(path))
        corpora = [database, *database.queries.values()]
        for corpus in corpora:
            read_corpus(corpus, database)
        names = [None, *database.queries]
        for name in names:
            length = 4 * database.manifest.chunk.tokens
            dataset = retro_db.RetroDataset(database, length, k=1, queries=name)
            if len(dataset):
                assert dataset[0]["neighbors"].shape == (4, 1, length // 2)
    except RetroDBError as error:
        return type(error).__name__ if len(str(error)) < 5000 else "a long story"
    return "read"


def read_corpus(corpus: Any, database: Any) -> None:
    m, k = database.manifest.chunk.tokens, database.manifest.neighbors.k
    count = min(len(corpus), 50)
    ids = np.arange(count)
    assert corpus.documents.num_rows == sum(entry.rows for entry in corpus.tables.documents)
    assert len(corpus.documents.to_pylist()) == corpus.documents.num_rows
    if not count:
        return
    assert corpus.chunks[ids].shape == (count, m)
    assert corpus.chunks.values(ids).shape == (count, 2 * m)
    assert corpus.chunks.documents(ids).shape == (count,)
    assert corpus.neighbors[ids].shape == corpus.neighbors.distances(ids).shape == (count, k)
    found = corpus.neighbors[ids]
    database.chunks.values(found[found >= 0])
    if corpus.tables.embeddings:
        assert corpus.embeddings[ids].shape == (count, database.manifest.encoder.dimension)


def read_records(path: Path, stage: str) -> str:
    """Loads records and opens the files that they list."""
    folder = Folder(str(path))
    found = StageRecords(folder, stage).load()
    try:
        for record in found.values():
            for entry in record.files:
                assert folder.verified(entry).resolve().is_relative_to(path.resolve())
    except RetroDBError as error:
        return type(error).__name__
    return "read" if found else "missing"


def run_cases(source: str, place: str, first: int, last: int) -> None:
    """What a process does. The last number that it prints is that of the case which ended it."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    target = Target(Path(source), Path(place))
    outcomes: Counter[str] = Counter()
    kinds: list[Callable[[random.Random], str]] = [
        target.hostile_manifest,
        target.hostile_records,
        target.hostile_table,
    ]
    for number in range(first, last):
        print(number, flush=True)
        kind = kinds[number % 3]
        outcomes[f"{kind.__name__} {kind(random.Random(number))}"] += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    run_cases(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.flush()
    os._exit(0)
