"""Documents that were removed, and chunks that a compaction renumbered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from retro_db.manifest.sealing import FILE
from retro_db.verify.history import History
from retro_db.verify.opened import OpenedCorpus


def check_removed(corpus: OpenedCorpus) -> Iterator[str]:
    """Checks that every row names a document of the database, and that no document is named twice."""
    counts = corpus.database.manifest.counts
    is_removed = np.zeros(counts.documents, bool)
    chunks = 0
    for entry in corpus.reader.tables.removed:
        table = corpus.read_parquet(entry)
        rows = table["document"].to_numpy()
        if len(rows) and (rows.min() < 0 or rows.max() >= len(is_removed)):
            yield f"{entry.path}: a document is out of range"
            continue
        if (np.diff(rows) < 0).any():
            yield f"{entry.path}: documents do not ascend"
        if is_removed[rows].any() or len(np.unique(rows)) < len(rows):
            yield f"{entry.path}: a document is removed twice"
        is_removed[rows] = True
        wrong = next(_misnamed(corpus, table), None)
        if wrong is not None:
            yield f"{entry.path}: document {wrong} has another source or id"
    for part in corpus.parts():
        end = part.first_document + (part.files.documents.rows)
        removed = is_removed[part.first_document : end]
        if removed.any():
            counts_of_chunks = part.read_documents("chunk_count")["chunk_count"].to_numpy()
            chunks += int(counts_of_chunks[removed].sum())
    if (documents := int(is_removed.sum())) != counts.removed_documents:
        yield f"removed: {documents} documents, {FILE} says {counts.removed_documents}"
    if chunks != counts.removed_chunks:
        yield f"removed: {chunks} chunks of its documents, {FILE} says {counts.removed_chunks}"


def _misnamed(corpus: OpenedCorpus, removed: pa.Table) -> Iterator[int]:
    """Yields rows of documents that have another source or id in the documents table."""
    rows = removed["document"].to_numpy()
    for part in corpus.parts():
        end = part.first_document + (part.files.documents.rows)
        here = np.flatnonzero((rows >= part.first_document) & (rows < end))
        if len(here):
            table = part.read_documents("source", "id").take(rows[here] - part.first_document)
            for name in ("source", "id"):
                named, stored = removed[name].take(here).to_pylist(), table[name].to_pylist()
                pairs = zip(rows[here].tolist(), named, stored, strict=True)
                yield from (row for row, left, right in pairs if left != right)


def check_renumbered(corpus: OpenedCorpus, history: History) -> Iterator[str]:
    """Checks that runs of chunks ascend without overlap, and tile the ids that the compaction gave out.

    Later generations may have added chunks behind them.
    """
    entries = corpus.reader.tables.renumbered
    if not entries:
        return
    path = entries[0].path
    whole = pa.concat_tables([corpus.read_parquet(entry) for entry in entries])
    old, new, count = (whole[name].to_numpy() for name in ("old_first", "new_first", "count"))
    if (count < 1).any():
        yield f"{path}: a run has no chunk"
    if (old < 0).any() or (old[1:] < (old + count)[:-1]).any():
        yield f"{path}: old ids do not ascend, or overlap"
    compacted = next(iter(history.manifests.values()))
    if (new != np.cumsum(count) - count).any() or count.sum() != compacted.counts.chunks:
        yield f"{path}: new ids do not tile the {compacted.counts.chunks} chunks of the compaction"
