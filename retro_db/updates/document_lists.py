"""Lists of documents: reading them, and finding the rows of the documents that they name."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retro_db.errors import InputError
from retro_db.reader.database import Database

_JSON_LINES = (".jsonl", ".ndjson")
_FIELDS = {"id", "source"}


@dataclass(frozen=True)
class NamedDocument:
    """A document in a list of documents: its line, its source if the line names one, and its id."""

    line: int
    source: str | None
    id: str


@dataclass(frozen=True)
class DocumentList:
    """A list of documents.

    Attributes:
        file: Path of the list, for messages.
        documents: Documents that it names.
        lines: Lines of a plain list, as they stand; empty for JSON lines, which can say every id.
    """

    file: str
    documents: list[NamedDocument]
    lines: frozenset[str] = frozenset()


def read_list(file: Path, sources: Sequence[str]) -> DocumentList:
    """Reads a list of documents.

    Args:
        file: JSON lines, `{"id": ..., "source": ...}` with or without the source, if it is named `.jsonl` or
            `.ndjson`; otherwise one document per line: its id, or its source, a tab and its id.
        sources: Names that may precede a tab; any other tab is part of an id.

    Raises:
        InputError: The file cannot be read, is not UTF-8, or has a line that names no document.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; convert it") from error
    lines = text.split("\n")
    if file.suffix in _JSON_LINES:
        return DocumentList(str(file), _of_json_lines(lines, file, sources))
    return DocumentList(str(file), _of_plain_lines(lines, sources), frozenset(lines))


def _of_plain_lines(lines: Sequence[str], sources: Sequence[str]) -> list[NamedDocument]:
    documents = []
    for number, line in enumerate(lines, 1):
        name = line.removesuffix("\r")
        source, tab, rest = name.partition("\t")
        if tab and source in sources:
            documents.append(NamedDocument(number, source, rest))
        elif name.strip():
            documents.append(NamedDocument(number, None, name))
    return documents


def _of_json_lines(lines: Sequence[str], file: Path, sources: Sequence[str]) -> list[NamedDocument]:
    documents = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            data = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error}); correct or delete it") from error
        if not isinstance(data, dict) or "id" not in data or data.keys() - _FIELDS:
            raise InputError(
                f'{where}: not an object with "id", and "source" if need be; correct or delete it'
            )
        name, source = data["id"], data.get("source")
        if not isinstance(name, str) or not isinstance(source, str | None):
            raise InputError(f"{where}: id and source are texts; correct or delete it")
        if source is not None and source not in sources:
            raise InputError(
                f"{where}: the database has no source {source!r}, only {', '.join(sorted(sources))}; "
                "correct it"
            )
        documents.append(NamedDocument(number, source, name))
    return documents


def find_documents(database: Database, listed: DocumentList) -> np.ndarray:
    """Finds the rows of listed documents.

    Args:
        database: Database of the documents, without its query corpora.
        listed: Documents to find.

    Returns:
        Global document rows, int64 [n], ascending, none twice.

    Raises:
        InputError: The database lacks a document, has it in several sources and its line names none, or has
            an id that the list may mean and cannot say.
    """
    documents = database.documents.select(["source", "id"])
    if listed.lines:
        _expect_sayable(documents["id"], listed)
    wanted = pa.array(sorted({document.id for document in listed.documents}), pa.string())
    rows = np.flatnonzero(pc.is_in(documents["id"], value_set=wanted).to_numpy())
    by_id: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, columns in zip(rows.tolist(), documents.take(rows).to_pylist(), strict=True):
        by_id[columns["id"]][columns["source"]].append(row)
    numbers = [
        row for document in listed.documents for row in _rows_of(document, by_id, listed.file)
    ]
    return np.unique(np.array(numbers, np.int64))


def _expect_sayable(ids: pa.ChunkedArray, listed: DocumentList) -> None:
    """Refuses a plain list with a line that an id holds which a plain list cannot say.

    Such an id has a line end, begins as a source and a tab do, ends with what an editor may have added, or is
    blank: its lines would name other documents, or none.
    """
    said = {document.id for document in listed.documents if document.source is None}
    odd = pc.match_substring_regex(ids, r"[\n\r\t]|^\s*$")
    for name in ids.filter(odd).to_pylist():
        if name not in said and not listed.lines.isdisjoint(_lines_of(name)):
            raise InputError(
                f"{listed.file}: may mean the document {name!r}, whose id such a list cannot say; give "
                'JSON lines, {"id": ..., "source": ...}, in a file named .jsonl'
            )


def _lines_of(name: str) -> set[str]:
    """Lines that a plain list may have for an id, with and without what an editor adds."""
    lines = {*name.split("\n"), name}
    return {line for line in (*lines, *(line.removesuffix("\r") for line in lines)) if line}


def _rows_of(
    document: NamedDocument, by_id: dict[str, dict[str, list[int]]], file: str
) -> list[int]:
    """Returns the rows of a listed document; `by_id` has the rows of all documents by id, then source."""
    where, by_source = f"{file}: line {document.line}", by_id.get(document.id, {})
    if document.source is not None:
        by_source = {name: rows for name, rows in by_source.items() if name == document.source}
    if not by_source:
        of = "the database" if document.source is None else f"source {document.source}"
        raise InputError(
            f"{where}: no document of {of} has the id {document.id!r}; correct or delete the line"
        )
    if len(by_source) > 1:
        raise InputError(
            f"{where}: id {document.id!r} is in several sources ({', '.join(sorted(by_source))}); name the "
            "source, in a plain list with a tab behind it"
        )
    return next(iter(by_source.values()))
