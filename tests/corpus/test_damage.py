"""Compressed files with padding, garbage and damage: every record is kept, or counted as lost."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import zstandard

from retro_db.config import parse_config
from retro_db.corpus.documents import Document
from retro_db.corpus.reading import read_shard
from retro_db.corpus.sharding import plan_shards
from support.soak import SOAKING, amount

Compress = Callable[[bytes], bytes]
CHECKED = zstandard.ZstdCompressor(write_checksum=True)
PACKED: dict[str, Compress] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": CHECKED.compress,
}
SOURCE = random.Random(5)
WORDS = ["".join(SOURCE.choices("abcdefghijklmnop", k=SOURCE.randrange(2, 9))) for _ in range(900)]
RECORDS, MEMBERS = 60, 3
STEP = amount(quick=97, soak=1)


def texts_of(count: int) -> list[str]:
    return [" ".join(SOURCE.choices(WORDS, k=SOURCE.randrange(9, 12))) for _ in range(count)]


def jsonl(texts: list[str]) -> bytes:
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)


def read(folder: Path, **settings: object) -> tuple[list[str], int]:
    """Texts of the documents, and the number of records that were lost."""
    source = {"name": "s", "paths": [str(folder)]} | settings
    config = parse_config(
        {
            "output": "db",
            "corpus": [source],
            "tokenizer": {"train": {}},
            "encoder": {"model": "m"},
        },
        "test",
    )
    texts, lost = [], 0
    for shard in plan_shards(config):
        for record in read_shard(shard, config.corpus[0]):
            if isinstance(record, Document):
                texts.append(str(record.text))
            else:
                lost += record.count
    return texts, lost


@pytest.mark.parametrize("suffix", PACKED)
def test_members_and_padding(tmp_path: Path, suffix: str) -> None:
    texts = texts_of(40)
    parts = [PACKED[suffix](jsonl(texts[:25])[:-7]), PACKED[suffix](b"")]
    parts += [PACKED[suffix](jsonl(texts[:25])[-7:]), PACKED[suffix](jsonl(texts[25:]))]
    path = tmp_path / f"a.jsonl{suffix}"
    for zeros in (0, 4, 1001):
        path.write_bytes(b"".join(part + bytes(zeros) for part in parts))
        assert read(tmp_path) == (texts, 0)
    path.write_bytes(b"".join(parts) + b"garbage, of which nobody knows what it was")
    kept, lost = read(tmp_path)
    assert (kept, lost > 0) == (texts, True)
    path.write_bytes(parts[0] + b"garbage" + b"".join(parts[1:]))
    kept, lost = read(tmp_path)
    assert kept == texts[:24] + texts[25:]
    assert 1 <= lost <= 3
    path.write_bytes(bytes(900))
    assert read(tmp_path) == ([], 1)


@pytest.mark.parametrize("members", [1, MEMBERS])
@pytest.mark.parametrize("suffix", PACKED)
def test_damage_at_every_byte(
    tmp_path: Path, suffix: str, members: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a sound file of the same kind, which tells what nothing of a damaged one tells."""
    texts, whole = texts_of(RECORDS), b""
    sizes = [0]
    for number in range(members):
        whole += PACKED[suffix](jsonl(texts[number::members]))
        sizes.append(len(whole))
    order = [text for number in range(members) for text in texts[number::members]]
    beside = texts_of(RECORDS)
    (tmp_path / f"b.jsonl{suffix}").write_bytes(PACKED[suffix](jsonl(beside)))
    path = tmp_path / f"a.jsonl{suffix}"
    doubtful = tried = 0
    for place in range(1, len(whole), STEP):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        for data, records in ((whole[:place], RECORDS * place / len(whole)), (flipped, RECORDS)):
            path.write_bytes(data)
            kept, lost = read(tmp_path)
            kept = kept[: -len(beside)]
            # Nothing is kept that was not there, and nothing is lost unsaid.
            assert set(kept) <= set(order)
            assert lost or kept == order or (len(data) == place and place in sizes)
            tried += 1
            # The first records of these take more bytes than others: what was cut off held few.
            is_read_to_the_cut = data is not flipped and suffix in (".gz", ".xz") and lost <= 3
            is_off = abs(len(kept) + lost - records) > max(3, 0.2 * records)
            doubtful += is_off and not is_read_to_the_cut
    # The bytes of a damaged bzip2 block may be put together to other lines that look like lines.
    assert doubtful <= (0.15 if suffix == ".bz2" else 0.03) * tried
    if SOAKING:
        with capsys.disabled():
            print(f"{suffix} of {members}: {tried} tried, {doubtful} off by more than 20% and 3")


@pytest.mark.parametrize("separator", ["\n====\n", None])
def test_text_that_was_cut_is_no_document(tmp_path: Path, separator: str | None) -> None:
    texts = texts_of(200)
    data = gzip.compress("\n====\n".join(texts).encode())
    path = tmp_path / "a.txt.gz"
    settings = {"separator": separator} if separator else {}
    path.write_bytes(data)
    assert read(tmp_path, **settings) == (texts if separator else ["\n====\n".join(texts)], 0)
    path.write_bytes(data[: len(data) // 2])
    kept, lost = read(tmp_path, **settings)
    assert lost >= 1
    assert kept == texts[: len(kept)]
    assert bool(kept) == bool(separator)


def test_a_member_that_is_too_large_to_wait_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retro_db.corpus.compression._HELD", 2000)
    texts = texts_of(80)
    path = tmp_path / "a.jsonl.gz"
    data = bytearray(gzip.compress(jsonl(texts)))
    path.write_bytes(data)
    assert read(tmp_path) == (texts, 0)
    data[-8] ^= 1  # its checksum
    path.write_bytes(bytes(data) + gzip.compress(jsonl(texts)))
    assert read(tmp_path) == (texts, 80)
