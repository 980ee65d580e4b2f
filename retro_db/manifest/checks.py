"""Checks that a manifest agrees with itself, before anything in it is used."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from retro_db.manifest.model import Counts, Manifest, SourceCounts, Tables
from retro_db.store.contracts import contract
from retro_db.store.entries import FOLDER_NAME, LIMIT, check_entry
from retro_db.store.folder import FileEntry
from retro_db.store.serialize import DecodeError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_DATA = re.compile(
    r"(generations/[^/]+/)?(manifest\.json$|README\.md$|(queries/[^/]+/)?(state|report)(/|$))"
)
_TOKEN_LIMITS = {"uint16": 1 << 16, "uint32": 1 << 31}  # a trainer reads int32
# Sections of the configuration in which readers look something up.
_SECTIONS = {"index", "neighbors", "leakage"}
_PARALLEL = ("documents", "neighbors", "embeddings", "fine")
_RANGES = {
    "generation": (1, 100_000),
    "chunk.tokens": (1, 65_535),
    "encoder.dimension": (1, 65_536),
    "encoder.identity": (1, 2),
    "index.fine_size": (0, 1 << 20),
    "neighbors.k": (1, 65_536),
}


def check_manifest(manifest: Manifest) -> None:
    """Checks numbers and paths, and that the parts of the manifest agree with one another.

    After it, no reader opens a file outside the folder, or allocates more than the listed files hold.

    Args:
        manifest: The manifest as decoded.

    Raises:
        DecodeError: A field is wrong; the message begins with its path.
    """
    _check_numbers(manifest)
    _check_files(manifest)
    _check_tables(manifest, manifest.tables, manifest.counts, "")
    for number, query in enumerate(manifest.queries):
        where = f"queries[{number}]."
        if not FOLDER_NAME.fullmatch(query.source.name):
            raise DecodeError(
                f"{where}source.name: {query.source.name[:100]!r} is not a name of a folder"
            )
        _check_tables(manifest, query.tables, query.source, where)
    for name in _SECTIONS & manifest.config.keys():
        if not isinstance(manifest.config[name], dict):
            raise DecodeError(f"config.{name}: not an object")
    names = [query.source.name for query in manifest.queries]
    if len(set(names)) < len(names):
        raise DecodeError("queries: two have the same name")
    trained = 2 if manifest.index.fine_size else 1
    if len(manifest.index_files) != trained + manifest.index.partitions:
        raise DecodeError(
            f"index.partitions: {manifest.index.partitions}, but index_files has "
            f"{len(manifest.index_files) - trained}"
        )


def _check_numbers(manifest: Manifest) -> None:
    for where, number in _numbers(manifest, ""):
        if not 0 <= number < LIMIT:
            raise DecodeError(f"{where}: {number} is not a valid count")
    for where, (least, most) in _RANGES.items():
        value: Any = manifest
        for name in where.split("."):
            value = getattr(value, name)
        if not least <= value <= most:
            raise DecodeError(f"{where}: {value} is not between {least} and {most}")
    for number, path in enumerate(manifest.encoder.dense):
        if not FOLDER_NAME.fullmatch(path):
            raise DecodeError(f"encoder.dense[{number}]: {path[:100]!r} is not a name of a folder")
    chunk = manifest.chunk
    if chunk.token_type not in _TOKEN_LIMITS:
        raise DecodeError(f"chunk.token_type: {chunk.token_type[:20]!r} is not uint16 or uint32")
    if chunk.pad_id >= _TOKEN_LIMITS[chunk.token_type]:
        raise DecodeError(f"chunk.pad_id: {chunk.pad_id} does not fit in a token")


def _numbers(value: Any, where: str) -> Iterator[tuple[str, int]]:
    """Whole numbers in dataclasses and in lists of them, with their fields, except in entries of files."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield where, value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _numbers(item, f"{where}[{number}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, FileEntry):
        for name, item in vars(value).items():
            yield from _numbers(item, f"{where}.{name}" if where else name)


def _check_files(manifest: Manifest) -> None:
    """Checks that every file lies in a folder for data, and that none is listed twice."""
    seen: set[str] = set()
    for where, entries in _listed(manifest):
        for number, entry in enumerate(entries):
            field = f"{where}[{number}]"
            check_entry(entry, field)
            if _NO_DATA.match(entry.path):
                raise DecodeError(f"{field}.path: {entry.path!r} is not a place for data")
            if not _SHA256.fullmatch(entry.sha256):
                raise DecodeError(f"{field}.sha256: not 64 hexadecimal digits")
            if entry.path in seen:
                raise DecodeError(f"{field}.path: {entry.path!r} is listed twice")
            seen.add(entry.path)


def _listed(manifest: Manifest) -> Iterator[tuple[str, Sequence[FileEntry]]]:
    tables = [("tables", manifest.tables)]
    tables += [(f"queries[{i}].tables", query.tables) for i, query in enumerate(manifest.queries)]
    for where, files in tables:
        yield from ((f"{where}.{name}", entries) for name, entries in vars(files).items())
    yield "index_files", manifest.index_files
    yield "tokenizer_files", manifest.tokenizer_files


def _check_tables(
    manifest: Manifest, tables: Tables, counts: Counts | SourceCounts, where: str
) -> None:
    """Checks that tables agree on their rows, and that no Arrow file has more rows than its bytes hold."""
    for name, entries in vars(tables).items():
        field = f"{where}tables.{name}"
        width = _row_bytes(manifest, name) if entries else None
        for number, entry in enumerate(entries):
            if width is not None and entry.rows * width > entry.bytes:
                raise DecodeError(f"{field}[{number}].rows: more than {entry.bytes} bytes hold")
    rows = [entry.rows for entry in tables.chunks]
    for name in ("chunks", "documents"):
        count = getattr(counts, name)
        if sum(entry.rows for entry in getattr(tables, name)) != count:
            field = f"{where}source.{name}" if where else f"counts.{name}"
            raise DecodeError(f"{field}: {count} is not the sum of the files' rows")
    for name in _PARALLEL:
        entries = getattr(tables, name)
        if name in ("embeddings", "fine") and not entries:
            continue
        if name == "fine" and not manifest.index.fine_size:
            raise DecodeError(f"{where}tables.fine: index.fine_size is 0")
        if len(entries) != len(rows):
            raise DecodeError(f"{where}tables.{name} has another number of files than chunks")
        if name != "documents" and [entry.rows for entry in entries] != rows:
            raise DecodeError(f"{where}tables.{name} has other rows than chunks")


def _row_bytes(manifest: Manifest, table: str) -> int | None:
    """Bytes of one row of an Arrow table; None for Parquet, whose reader checks the rows."""
    agreed = contract(table)
    if agreed.format == "parquet":
        return None
    schema = agreed.schema(**manifest.type_parameters)
    return sum(_type_bytes(field.type) for field in schema)


def _type_bytes(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * kind.value_type.bit_width // 8
    return kind.bit_width // 8
