"""Files of formats that no library here writes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import zstandard

SEPARATOR = "\n=====\n"


def frames(data: bytes, size: int, table: bool) -> bytes:
    """Several zstd frames, cut anywhere, with a seek table behind them if wanted."""
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    packed = [zstandard.compress(part) for part in parts]
    sizes = [struct.pack("<II", len(p), len(u)) for p, u in zip(packed, parts, strict=True)]
    body = b"".join(sizes) + struct.pack("<IBI", len(parts), 0, 0x8F92EAB1)
    seek_table = struct.pack("<II", 0x184D2A5E, len(body)) + body
    return b"".join(packed) + (seek_table if table else b"")


def write_megatron(path: Path, documents: list[np.ndarray], code: int = 8) -> None:
    """A .bin and .idx pair with one sequence a document."""
    kind = {8: np.uint16, 4: np.int32, 5: np.int64}[code]
    rows = [document.astype(kind) for document in documents]
    path.with_suffix(".bin").write_bytes(b"".join(row.tobytes() for row in rows))
    sizes = np.array([len(row) for row in rows], np.int32)
    lengths = sizes.astype(np.int64) * kind().itemsize
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, len(rows), len(rows) + 1)
    index = [sizes, np.cumsum(lengths) - lengths, np.arange(len(rows) + 1, dtype=np.int64)]
    path.with_suffix(".idx").write_bytes(header + b"".join(part.tobytes() for part in index))
