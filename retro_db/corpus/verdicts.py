"""Verdicts: the documents of a shard that screening drops, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.store.folder import Folder, TableEntry, describe

_VERDICTS = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("by", pa.string()),
        pa.field("similarity", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Verdict:
    """Reason to drop a record.

    Attributes:
        number: Number of the record in its shard.
        reason: leakage or duplicate.
        by: Id of the document that the record is too close to.
        similarity: Jaccard similarity of the two.
    """

    number: int
    reason: str
    by: str
    similarity: float


def write_verdicts(
    verdicts: Sequence[Verdict], shard: int, stage: str, folder: Folder
) -> TableEntry:
    """Writes the verdicts on one shard.

    Args:
        verdicts: Verdicts in the order of their records.
        shard: Number of the shard.
        stage: Stage that writes them: screen, or resolve once duplicates are known.
        folder: Folder of the database.

    Returns:
        The file, a table under `state/`.
    """
    path = f"state/{stage}/verdicts-{shard:07d}.parquet"
    table = pa.Table.from_pylist([asdict(verdict) for verdict in verdicts], _VERDICTS)
    with folder.writing(path) as file:
        pq.write_table(table, file)
        return describe(file, path, len(verdicts))


def read_verdicts(folder: Folder, file: TableEntry) -> list[Verdict]:
    """The verdicts on one shard, in the order of their records.

    Args:
        folder: Folder of the database.
        file: File that `write_verdicts` returned.
    """
    with folder.holding(file) as path:
        table = pq.read_table(path, schema=_VERDICTS)
    return [Verdict(**row) for row in table.to_pylist()]
