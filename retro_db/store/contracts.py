"""The tables' contracts: read from `schemas/`, so that what is documented is what is written."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from importlib import resources

import pyarrow as pa

from retro_db.store.serialize import from_json

_LIST = re.compile(r"list<(\w+)>")
_FIXED_SIZE_LIST = re.compile(r"fixed_size_list<(\w+)>\[(\d+)\]")


@dataclass(frozen=True)
class Column:
    """One column: its name, its Arrow type as text, and what it means."""

    name: str
    type: str
    description: str


@dataclass(frozen=True)
class Contract:
    """How one kind of table looks on disk; the fields match `schemas/<table>.json`.

    Types may name parameters in braces, such as `{dimension}`, which `schema` fills in.
    """

    table: str
    description: str
    path: str
    format: str
    compression: str | None
    batch_rows: int
    columns: list[Column]

    def name(self, shard: int, part: int) -> str:
        """The path of one part's file, relative to the database folder.

        Args:
            shard: Number of the planned shard.
            part: Roll-over number within it.

        Returns:
            A path such as `chunks/part-0000003-0000.arrow`.
        """
        return self.path.format(shard=shard, part=part)

    def schema(self, **parameters: str | int) -> pa.Schema:
        """The Arrow schema, with no column nullable.

        Args:
            **parameters: A value for every parameter in the columns' types, such as
                `token_type="uint16"` and `chunk_tokens=64`.
        """
        return pa.schema(
            [
                pa.field(column.name, _arrow_type(column.type.format(**parameters)), nullable=False)
                for column in self.columns
            ]
        )


@functools.cache
def contract(table: str) -> Contract:
    """The contract of a table: the name of a file in `schemas/`, such as `chunks`."""
    text = resources.files("retro_db_schemas").joinpath(f"{table}.json").read_text("utf-8")
    return from_json(Contract, json.loads(text), table)


def _arrow_type(name: str) -> pa.DataType:
    if match := _FIXED_SIZE_LIST.fullmatch(name):
        item = pa.field("item", pa.type_for_alias(match[1]), nullable=False)
        return pa.list_(item, int(match[2]))
    if match := _LIST.fullmatch(name):
        return pa.list_(pa.field("item", pa.type_for_alias(match[1]), nullable=False))
    return pa.type_for_alias(name)
