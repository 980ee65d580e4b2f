"""Arrow files and streams, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from retro_db.config import FilesConfig
from retro_db.corpus.formats.columns import absent_columns, rows_of, wanted_columns
from retro_db.corpus.formats.raw import RawRecord
from retro_db.corpus.pieces import Piece
from retro_db.corpus.streams import Content, arrow_file


def read_records(
    raw: Content, piece: Piece, source: FilesConfig
) -> Iterator[tuple[int, RawRecord]]:
    """Yields the rows of an Arrow file or stream, each with its number."""
    file = arrow_file(raw, piece.file.bytes)
    row = 0
    if raw.peek(6).startswith(b"ARROW1"):
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        reader = pa.ipc.open_stream(file)
        batches = iter(reader)
    columns = wanted_columns(reader.schema, source, piece.file.url)
    absent = absent_columns(reader.schema, source)
    for batch in batches:
        for record in rows_of(batch.select(columns), absent):
            yield row, record
            row += 1
