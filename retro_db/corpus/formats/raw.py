"""Records as the readers of formats return them: fields, tokens, or a bad record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from retro_db.corpus.compression import Damage

# The byte order mark of UTF-8, which some files begin with.
BOM = b"\xef\xbb\xbf"
# What is shown of a record's fields.
_MOST_NAMES, _LONGEST_NAME = 20, 40
# Reason of records that were lost in a damaged file.
DAMAGED = "damaged file"


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, or several in a row.

    Attributes:
        reason: Category of the problem, by which bad records are counted.
        detail: Exact description of the problem.
        count: Number of records.
        damage: Damage to the file in which records were lost; it replaces the count, which is estimated.
    """

    reason: str
    detail: str = ""
    count: int = 1
    damage: Damage | None = None

    @classmethod
    def lost(cls, damage: Damage) -> BadRecord:
        """The records that were in a damaged stretch of a file."""
        return cls(DAMAGED, damage.detail, damage=damage)


def absent_field(reason: str, setting: str, name: str, fields: Iterable[str]) -> BadRecord:
    """What a record is that lacks a field.

    Args:
        reason: Category of the problem.
        setting: Setting that names the field, `text` or `id`.
        name: Name of the field.
        fields: Fields that the record has, of which the first are shown.
    """
    shown = ", ".join(repr(field[:_LONGEST_NAME]) for field in islice(fields, _MOST_NAMES))
    remedy = f"set {setting} to one of its fields: {shown}" if shown else "it has no fields"
    return BadRecord(reason, f"no field {name!r}; {remedy}")


# JSON lines may hold any JSON value; only objects become documents.
RawRecord: TypeAlias = (
    dict[str, Any] | np.ndarray | BadRecord | list[Any] | str | int | float | None
)
