"""Documents that were removed, and chunks that a compaction renumbered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from retro_db.manifest.files import FILE
from retro_db.verify.history import History
from retro_db.verify.opened import Held


def check_removed(held: Held) -> Iterator[str]:
    """Every row names a document of the database, and no document is named twice."""
    counts = held.database.manifest.counts
    gone = np.zeros(counts.documents, bool)
    chunks = 0
    for entry in held.corpus.tables.removed:
        table = held.read_parquet(entry)
        rows = table["document"].to_numpy()
        if len(rows) and (rows.min() < 0 or rows.max() >= len(gone)):
            yield f"{entry.path}: a document is out of range"
            continue
        if (np.diff(rows) < 0).any():
            yield f"{entry.path}: documents do not ascend"
        if gone[rows].any() or len(np.unique(rows)) < len(rows):
            yield f"{entry.path}: a document is removed twice"
        gone[rows] = True
        wrong = next(_misnamed(held, table), None)
        if wrong is not None:
            yield f"{entry.path}: document {wrong} has another source or id"
    for part in held.parts():
        there = gone[part.first_document : part.first_document + part.part.documents.rows]
        if there.any():
            numbers = part.read_documents("chunk_count")["chunk_count"].to_numpy()
            chunks += int(numbers[there].sum())
    if (documents := int(gone.sum())) != counts.removed_documents:
        yield f"removed: {documents} documents, {FILE} says {counts.removed_documents}"
    if chunks != counts.removed_chunks:
        yield f"removed: {chunks} chunks of its documents, {FILE} says {counts.removed_chunks}"


def _misnamed(held: Held, removed: pa.Table) -> Iterator[int]:
    """Rows of documents that the documents table knows by another source or id."""
    rows = removed["document"].to_numpy()
    for part in held.parts():
        end = part.first_document + part.part.documents.rows
        here = np.flatnonzero((rows >= part.first_document) & (rows < end))
        if len(here):
            table = part.read_documents("source", "id").take(rows[here] - part.first_document)
            for name in ("source", "id"):
                own = removed[name].take(here).to_pylist()
                pairs = zip(rows[here].tolist(), own, table[name].to_pylist(), strict=True)
                yield from (row for row, told, there in pairs if told != there)


def check_renumbered(held: Held, history: History) -> Iterator[str]:
    """Runs of chunks ascend without overlap, and tile the ids that the compaction gave out.

    Later generations may have added chunks behind them.
    """
    entries = held.corpus.tables.renumbered
    if not entries:
        return
    path = entries[0].path
    whole = pa.concat_tables([held.read_parquet(entry) for entry in entries])
    old, new, count = (whole[name].to_numpy() for name in ("old_first", "new_first", "count"))
    if (count < 1).any():
        yield f"{path}: a run has no chunk"
    if (old < 0).any() or (old[1:] < (old + count)[:-1]).any():
        yield f"{path}: old ids do not ascend, or overlap"
    compacted = next(iter(history.manifests.values()))
    if (new != np.cumsum(count) - count).any() or count.sum() != compacted.counts.chunks:
        yield f"{path}: new ids do not tile the {compacted.counts.chunks} chunks of the compaction"
