"""Parquet files, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from retro_db.config import FilesConfig
from retro_db.corpus.compression import BLOCK
from retro_db.corpus.formats.columns import absent_columns, rows_of, wanted_columns
from retro_db.corpus.formats.raw import DAMAGED, BadRecord, RawRecord
from retro_db.corpus.pieces import Piece
from retro_db.corpus.streams import Content, arrow_file

# Number of rows in a batch.
_ROWS = 1024


def read_records(
    raw: Content, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, RawRecord]]:
    """Yields the rows of a range of row groups, each with its number."""
    # Buffered, so that a large row group need not fit into memory.
    table = pq.ParquetFile(
        arrow_file(raw, piece.file.bytes), buffer_size=BLOCK, page_checksum_verification=True
    )
    columns = wanted_columns(table.schema_arrow, source, piece.file.url)
    absent = absent_columns(table.schema_arrow, source)
    rows = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    first, last = (piece.range.begin, piece.range.end) if piece.range else (0, len(rows))
    row = sum(rows[:first])
    for group in range(first, last):
        end = row + rows[group]
        try:
            for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns):
                for record in rows_of(batch, absent):
                    yield row, record
                    row += 1
        except (pa.ArrowException, OSError) as error:
            # The other row groups may be readable.
            yield (
                row,
                BadRecord(DAMAGED, " ".join(str(error).split())[:300], max(end - row, 1)),
            )
        row = end
