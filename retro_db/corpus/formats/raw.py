"""Records as the readers of formats return them: fields, tokens, or a bad record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

# The byte order mark of UTF-8, which some files begin with.
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, or several in a row.

    Attributes:
        reason: Category of the problem, by which bad records are counted.
        detail: Exact description of the problem.
        count: Number of records.
    """

    reason: str
    detail: str = ""
    count: int = 1


# JSON lines may hold any JSON value; only objects become documents.
RawRecord: TypeAlias = (
    dict[str, Any] | np.ndarray | BadRecord | list[Any] | str | int | float | None
)
