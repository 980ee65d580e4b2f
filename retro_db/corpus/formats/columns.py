"""Rows of Arrow columns as Python values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from retro_db.config import FilesConfig
from retro_db.corpus.formats.raw import BadRecord, absent_field
from retro_db.errors import CorpusError


def wanted_columns(schema: pa.Schema, source: FilesConfig, url: str) -> list[str]:
    """Names of the columns of text and id, if the schema has them.

    Args:
        schema: Schema of a file.
        source: Settings: fields of text and id.
        url: URL of the file, for the error.

    Raises:
        CorpusError: Two columns have one of these names.
    """
    wanted = [source.text] if source.id is None else [source.text, source.id]
    for name in wanted:
        if schema.names.count(name) > 1:
            raise CorpusError(
                f"{url}: {schema.names.count(name)} columns are named {name!r}, which leaves open which "
                "is meant; rename them"
            )
    return [name for name in wanted if name in schema.names]


def absent_columns(schema: pa.Schema, source: FilesConfig) -> dict[str, BadRecord]:
    """What every row has in place of the columns of text and id that the schema lacks."""
    wanted = [("no text", "text", source.text)]
    if source.id is not None:
        wanted.append(("no id", "id", source.id))
    return {
        name: absent_field(reason, setting, name, schema.names)
        for reason, setting, name in wanted
        if name not in schema.names
    }


def rows_of(batch: pa.RecordBatch, absent: dict[str, BadRecord]) -> Iterator[dict[str, Any]]:
    """The rows of a batch, with a `BadRecord` in place of a string that is not UTF-8.

    Args:
        batch: The wanted columns.
        absent: What every row has in place of those that there are not.
    """
    columns = [_values(column) for column in batch.columns]
    for number in range(batch.num_rows):
        values = zip(batch.schema.names, (column[number] for column in columns), strict=True)
        yield {**absent, **dict(values)}


def _values(column: pa.Array) -> list[Any]:
    """A column as Python values. Strings are decoded here, as Arrow does not check their UTF-8."""
    if pa.types.is_dictionary(column.type):
        column.validate(full=True)
        if pa.types.is_string_view(column.type.value_type):
            # Arrow cannot look them up as views.
            values = column.dictionary.cast(pa.large_string())
            column = pa.DictionaryArray.from_arrays(column.indices, values)
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.large_binary())
    else:
        column.validate(full=True)
        return column.to_pylist()
    column.validate(full=True)
    return [_string(value) for value in column.to_pylist()]


def _string(value: bytes | None) -> str | BadRecord | None:
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRecord("not UTF-8", f"{error.reason} at byte {error.start} of the document")
