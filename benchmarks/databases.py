"""Databases of any size for benchmarks of reading, with random tokens and neighbors but without an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retro_db.manifest.model import (
    ChunkInfo,
    Counts,
    EncoderInfo,
    IndexInfo,
    Manifest,
    NeighborsInfo,
    SourceCounts,
    Tables,
    TokenizerInfo,
)
from retro_db.manifest.sealing import write_manifest
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.writing import TableWriter

TOKENS, VOCABULARY, K = 64, 50_000, 20
MEAN_LENGTH = 16  # chunks of a document
_BLOCK = 1 << 16
_UNCHECKED = "0" * 64


def write_database(place: Path, chunks: int, part_rows: int, seed: int = 0) -> Manifest:
    """Writes a database.

    Args:
        place: New folder of the database.
        chunks: Number of chunks.
        part_rows: Chunks of a file.
        seed: Seed of all random numbers.

    Returns:
        Its manifest, with zeros for the checksums of files.
    """
    folder = Folder(str(place))
    tables = Tables([], [], [], [])
    chance = np.random.default_rng(seed)
    for number, start in enumerate(range(0, chunks, part_rows)):
        rows = min(part_rows, chunks - start)
        counts = _document_counts(chance, rows)
        tables.documents.append(_documents(folder, number, counts))
        tables.chunks.append(_chunks(folder, number, counts, chance))
        tables.neighbors.append(_neighbors(folder, number, rows, chunks, chance))
    documents = sum(entry.rows for entry in tables.documents)
    files = [FileEntry(f"index/{name}", 0, _UNCHECKED) for name in ("trained", "partition-0")]
    manifest = Manifest(
        counts=Counts(documents, chunks, chunks * TOKENS, 0, 0, chunks, 0),
        sources=[SourceCounts("random", 1.0, documents, documents, chunks, 0, 0, 0)],
        chunk=ChunkInfo(TOKENS, "uint16", 0, VOCABULARY),
        tokenizer=TokenizerInfo(_UNCHECKED),
        encoder=EncoderInfo("none", _UNCHECKED, 8, "mean", 256, "float32", "cpu"),
        index=IndexInfo("IVF1,Flat", 1, 1, 1, 1, 1, _UNCHECKED, 1, []),
        neighbors=NeighborsInfo(K),
        config={},
        tables=tables,
        index_files=files,
        tokenizer_files=[],
    )
    return write_manifest(folder, manifest)


def _document_counts(chance: np.random.Generator, rows: int) -> np.ndarray:
    """Returns the number of chunks of each document, whose sum is `rows`."""
    counts = chance.geometric(1 / MEAN_LENGTH, rows)
    ends = np.minimum(np.cumsum(counts), rows)
    ends = ends[: np.searchsorted(ends, rows) + 1]
    return np.diff(ends, prepend=0)


def _documents(folder: Folder, number: int, counts: np.ndarray) -> TableEntry:
    table = {
        "source": ["random"] * len(counts),
        "id": [f"{number}-{i}" for i in range(len(counts))],
        "first_chunk": np.cumsum(counts) - counts,
        "chunk_count": counts,
        "split": ["train"] * len(counts),
    }
    return _write(folder, "documents", number, [table])


def _chunks(
    folder: Folder, number: int, counts: np.ndarray, chance: np.random.Generator
) -> TableEntry:
    document = np.repeat(np.arange(len(counts)), counts)
    last = np.append(np.diff(document) > 0, [True])
    length = np.where(last, chance.integers(1, TOKENS + 1, len(document)), TOKENS)

    def block(start: int) -> dict[str, np.ndarray]:
        rows = slice(start, start + _BLOCK)
        shape = (len(document[rows]), TOKENS)
        tokens = chance.integers(1, VOCABULARY, shape).astype(np.uint16)
        tokens[np.arange(TOKENS) >= length[rows, None]] = 0
        return {
            "tokens": tokens,
            "length": length[rows].astype(np.uint16),
            "document": document[rows],
        }

    blocks = [block(start) for start in range(0, len(document), _BLOCK)]
    return _write(folder, "chunks", number, blocks)


def _neighbors(
    folder: Folder, number: int, rows: int, chunks: int, chance: np.random.Generator
) -> TableEntry:
    def block(count: int) -> dict[str, np.ndarray]:
        distances = np.sort(chance.random((count, K), np.float32))
        return {"ids": chance.integers(0, chunks, (count, K)), "distances": distances}

    blocks = [block(min(_BLOCK, rows - start)) for start in range(0, rows, _BLOCK)]
    return _write(folder, "neighbors", number, blocks)


def _write(
    folder: Folder, table: str, number: int, blocks: list[dict[str, np.ndarray | list[str]]]
) -> TableEntry:
    agreed = contract(table)
    schema = agreed.schema(token_type="uint16", chunk_tokens=TOKENS, k=K)  # noqa: S106
    path = agreed.name(number, 0)
    with (
        folder.writing(path) as file,
        TableWriter(file, schema, agreed.batch_rows, parquet=agreed.format == "parquet") as writer,
    ):
        for block in blocks:
            writer.append(block)
    return TableEntry(path, folder.size(path), _UNCHECKED, writer.rows)
