"""Every table against its contract: columns, types, batches and compression."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.errors import DamagedFileError
from retro_db.manifest.model import TABLES
from retro_db.reader.database import Corpus
from retro_db.store.contracts import Contract, contract
from retro_db.store.folder import Folder, TableEntry
from retro_db.store.parquet_tables import read_parquet
from retro_db.store.tables import IpcFile
from retro_db.verify.ledger import Check, one_line


def table_checks(corpus: Corpus) -> Iterator[Check]:
    """Yields one check for each file of a corpus's tables.

    Args:
        corpus: The database, or a query corpus.

    Yields:
        Checks; a file with a problem should not be read as a table.
    """
    for table in TABLES:
        agreed = contract(table)
        entries = getattr(corpus.tables, table)
        schema = agreed.schema(**corpus.parameters) if entries else None
        for entry in entries:
            run = functools.partial(_check_table, corpus.folder, entry, agreed, schema)
            yield Check(entry.path, [entry.path], run)


def _check_table(
    folder: Folder, entry: TableEntry, agreed: Contract, schema: pa.Schema
) -> Iterator[str]:
    """Checks that the file keeps its contract, and can be read to its last value."""
    rows = entry.rows
    try:
        with folder.holding(entry) as path:
            if agreed.format == "parquet":
                read_parquet(path, schema, rows, entry.path)
                yield from (f"{entry.path}: {problem}" for problem in _check_groups(path, agreed))
            else:
                file = IpcFile(path, schema, rows, agreed.batch_rows, entry.path)
                for batch in range(-(-rows // agreed.batch_rows)):
                    file.view(schema.names[0], batch)
    except DamagedFileError as error:
        reason = one_line(error).removeprefix(f"{entry.path}: ").removesuffix("; run verify")
        yield f"{entry.path}: {reason}"


def _check_groups(path: Path, agreed: Contract) -> Iterator[str]:
    """Checks that row groups are compressed as agreed, and of equal size except the last."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    sizes = [group.num_rows for group in groups]
    if set(sizes[:-1]) - {agreed.batch_rows} or max(sizes, default=0) > agreed.batch_rows:
        yield f"its row groups are not of {agreed.batch_rows} rows"
    for number, group in enumerate(groups):
        codecs = {group.column(column).compression for column in range(group.num_columns)}
        if codecs != {(agreed.compression or "uncompressed").upper()}:
            yield f"row group {number} is compressed by {', '.join(sorted(codecs))}"
