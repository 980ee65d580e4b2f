"""Prints the chunks of a retro-db database, or of one of its query corpora, as lines of JSON."""

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

Row = dict[str, Any]
COLUMNS = {
    "chunks": ["tokens", "length", "document"],
    "documents": ["source", "id", "first_chunk", "chunk_count", "split"],
    "neighbors": ["ids", "distances"],
    "removed": ["document"],
}


class FormatError(Exception):
    """The name of a file that cannot be read, and the reason."""


def manifest_checksum(text: str) -> str:
    """Returns the SHA-256 of a manifest's canonical JSON without its own checksum."""
    rest = "\n".join(line for line in text.split("\n") if not line.startswith(' "sha256":'))
    packed = re.sub(r'("(?:[^"\\]|\\.)*")|\s+', lambda match: match[1] or "", rest)
    return hashlib.sha256(packed.encode("ascii")).hexdigest()


def read_manifest(path: Path) -> Row:
    """Reads the manifest and checks its format, version and checksum."""
    try:
        text = path.read_text(encoding="ascii")
        manifest = json.loads(text)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "retro-db":
        raise FormatError(f"{path}: the format is not retro-db")
    if str(manifest.get("version")).split(".")[0] != "1":
        raise FormatError(f"{path}: unknown version {manifest.get('version')}")
    if manifest.get("sha256") != manifest_checksum(text):
        raise FormatError(f"{path}: the checksum is wrong")
    return manifest


def find_tables(manifest: Row, corpus: str | None) -> Row:
    """Returns the tables of the database, or of the query corpus of that name."""
    if corpus is None:
        return manifest["tables"]
    for query in manifest.get("queries", []):
        if query["source"]["name"] == corpus:
            return query["tables"]
    raise FormatError(f"manifest.json: there is no query corpus {corpus}")


def locate(root: Path, entry: Row) -> Path:
    """Returns the path of a file of the manifest, after a check of its name and size."""
    path = root / entry["path"]
    parts = entry["path"].split("/")
    if not all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", part) for part in parts):
        raise FormatError(f"{path}: not a path that a manifest may list")
    if not path.resolve().is_relative_to(root.resolve()):
        raise FormatError(f"{path}: leads out of the database's folder")
    if not path.is_file():
        raise FormatError(f"{path}: there is no such file")
    if path.stat().st_size != entry["bytes"]:
        raise FormatError(f"{path}: has {path.stat().st_size} bytes, not {entry['bytes']}")
    return path


def read_rows(root: Path, name: str, entry: Row) -> Iterator[Row]:
    """Opens a file of the table of that name, checks its number of rows and yields them."""
    path = locate(root, entry)
    try:
        if name in ("documents", "removed"):
            table = pa.parquet.ParquetFile(path).read()
        else:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table = table.select(COLUMNS[name])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise FormatError(f"{path}: {error}") from error
    if table.num_rows != entry["rows"]:
        raise FormatError(f"{path}: has {table.num_rows} rows, not {entry['rows']}")
    for batch in table.to_batches():
        yield from batch.to_pylist()


def all_rows(root: Path, tables: Row, name: str) -> Iterator[Row]:
    """Yields the rows of all files of a table; a table that is missing has none."""
    for entry in tables.get(name, []):
        yield from read_rows(root, name, entry)


def removed_chunks(root: Path, tables: Row) -> set[int]:
    """Returns the global ids of the chunks of removed documents."""
    removed = {row["document"] for row in all_rows(root, tables, "removed")}
    chunks: set[int] = set()
    first = 0
    for number, document in enumerate(all_rows(root, tables, "documents")):
        if number in removed:
            chunks.update(range(first, first + document["chunk_count"]))
        first += document["chunk_count"]
    return chunks


def pack_neighbors(row: Row, removed: set[int]) -> Row:
    """Returns a row's neighbors and distances without removed chunks, padded at the end."""
    pairs = zip(row["ids"], row["distances"], strict=True)
    kept = [(i, distance) for i, distance in pairs if i != -1 and i not in removed]
    kept += [(-1, math.inf)] * (len(row["ids"]) - len(kept))
    distances = [distance if math.isfinite(distance) else None for _, distance in kept]
    return {"neighbors": [i for i, _ in kept], "distances": distances}


def read_chunks(root: Path, manifest: Row, corpus: str | None) -> Iterator[Row]:
    """Yields what is to be printed of each chunk, in the order of global ids."""
    tables = find_tables(manifest, corpus)
    removed = removed_chunks(root, manifest["tables"])
    padding = [manifest["chunk"]["pad_id"]] * manifest["chunk"]["tokens"]
    number = first_document = 0
    parts = zip(tables["chunks"], tables["documents"], tables["neighbors"], strict=True)
    for chunk_file, document_file, neighbor_file in parts:
        chunks = read_rows(root, "chunks", chunk_file)
        documents = list(read_rows(root, "documents", document_file))
        neighbors = read_rows(root, "neighbors", neighbor_file)
        # No document spans two parts, so the last chunk of a part has no successor.
        pairs = pairwise(chain(chunks, [None]))
        for (chunk, successor), neighbor in zip(pairs, neighbors, strict=True):
            follows = successor is not None and successor["document"] == chunk["document"]
            if not 0 <= chunk["document"] < len(documents):
                raise FormatError(f"{root / chunk_file['path']}: a chunk's document is not there")
            document = documents[chunk["document"]]
            yield {
                "chunk": number,
                "document": first_document + chunk["document"],
                **{name: document[name] for name in ("source", "id", "split")},
                "value": chunk["tokens"] + (successor["tokens"] if follows else padding),
                "lengths": [chunk["length"], successor["length"] if follows else 0],
                "removed": corpus is None and number in removed,
                **pack_neighbors(neighbor, removed),
            }
            number += 1
        first_document += len(documents)


def main() -> None:
    """Prints the chunks of the database, or of the query corpus, that the arguments name."""
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: second_reader.py DB [QUERY_CORPUS_NAME]")
    root, corpus = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else None
    try:
        for row in read_chunks(root, read_manifest(root / "manifest.json"), corpus):
            print(json.dumps(row))
    except FormatError as error:
        sys.exit(" ".join(str(error).split()))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"{root / 'manifest.json'}: does not fit its files: {error!r}")


if __name__ == "__main__":
    main()
