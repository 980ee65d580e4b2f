"""Opens the files of tables, and checks them against the manifest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from retro_db.errors import DamagedFileError
from retro_db.store.contracts import contract
from retro_db.store.copied import CopiedFile
from retro_db.store.folder import Folder, TableEntry
from retro_db.store.gathering import Table
from retro_db.store.parquet_tables import read_parquet
from retro_db.store.tables import IpcFile, TableFile


def read_rows(folder: Folder, entry: TableEntry, table: str) -> pa.Table:
    """Reads one file of a Parquet table.

    Args:
        folder: Folder of the database.
        entry: The file as the manifest or the completion records list it.
        table: Name of the contract, such as `removed`.

    Raises:
        DamagedFileError: The file is missing, of another size, or holds something else.
    """
    with folder.holding(entry) as path:
        where = f"{folder.url}: {entry.path}"
        return read_parquet(path, contract(table).schema(), entry.rows, where)


def read_documents(folder: Folder, entry: TableEntry, chunks: int) -> pa.Table:
    """Reads the documents of one part, and checks that they tile its chunks.

    Args:
        folder: Folder of the database.
        entry: The file as the manifest or the completion records list it.
        chunks: Number of chunks of the part.

    Returns:
        One row per document; `first_chunk` counts from the part's first chunk.

    Raises:
        DamagedFileError: The file is missing, of another size, or holds something else.
    """
    table = read_rows(folder, entry, "documents")
    firsts, counts = table["first_chunk"].to_numpy(), table["chunk_count"].to_numpy()
    # Numbers are at most `chunks`, so that their sums do not overflow.
    sane = ((counts >= 0) & (counts <= chunks) & (firsts >= 0) & (firsts <= chunks)).all()
    ends = np.concatenate([[0], firsts + counts])
    if not sane or (ends[:-1] != firsts).any() or ends[-1] != chunks:
        raise DamagedFileError(
            f"{folder.url}: {entry.path}: first_chunk and chunk_count do not tile the chunks; run verify"
        )
    return table


def open_table(
    folder: Folder, entries: list[TableEntry], table: str, parameters: dict[str, str | int]
) -> Table:
    """An Arrow table, which may have no files; arguments and errors are those of `open_files`."""
    files = open_files(folder, entries, table, parameters)
    return Table(files, contract(table).schema(**parameters))


def open_files(
    folder: Folder, entries: list[TableEntry], table: str, parameters: dict[str, str | int]
) -> list[TableFile]:
    """Opens the files of an Arrow table; on object stores, each when it is first read.

    Args:
        folder: Folder of the database.
        entries: The files as the manifest or the completion records list them.
        table: Name of the contract.
        parameters: Values for the contract's types; those that it does not name are ignored.

    Returns:
        One open file for each entry.

    Raises:
        DamagedFileError: A file is missing, of another size, or holds something else.
    """
    agreed = contract(table)
    schema = agreed.schema(**parameters)
    if not folder.is_local:
        return [CopiedFile(folder, entry, schema, agreed.batch_rows) for entry in entries]
    files: list[TableFile] = []
    for entry in entries:
        with folder.holding(entry) as path:
            files.append(IpcFile(path, schema, entry.rows, agreed.batch_rows))
    return files
