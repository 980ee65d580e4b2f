"""The rules of one part: how documents are cut, what keys and neighbors may be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from retro_db.hashing import fractions_of
from retro_db.index.structure import is_embedded
from retro_db.manifest.model import TRAIN, VALIDATION
from retro_db.manifest.parts import Part
from retro_db.meter import Meter
from retro_db.search.part_documents import Documents
from retro_db.store.tables import TableFile
from retro_db.verify.opened import HeldPart, between, blocks

_DISTANCE_ROWS = 1000
# float32 sums of d squares of float16 differences.
_DISTANCE_TOLERANCE = 1e-5


def check_documents(held: HeldPart) -> Iterator[str]:
    """Documents tile the chunks, in order, without gap or overlap; which are held out is learned."""
    path, table = held.part.documents.path, held.read_documents()
    firsts, counts = table["first_chunk"].to_numpy(), table["chunk_count"].to_numpy()
    # Numbers up to the rows, of which no sum is too large.
    sane = ((counts >= 0) & (counts <= held.part.rows)).all()
    if not sane or (firsts != np.cumsum(counts) - counts).any() or counts.sum() != held.part.rows:
        yield f"{path}: first_chunk and chunk_count do not tile the chunks"
        return
    splits = table["split"].to_numpy()
    if strange := set(splits.tolist()) - {TRAIN, VALIDATION}:
        yield f"{path}: split {min(strange)!r} is neither {TRAIN} nor {VALIDATION}"
    held.held.held_out[held.rows] = np.repeat(splits != TRAIN, counts)


def check_chunks(held: HeldPart, meter: Meter) -> Iterator[str]:
    """Chunks are cut as they should be; what each source has is counted."""
    table = held.read_documents("source", "chunk_count")
    counts = table["chunk_count"].to_numpy()
    ends = np.cumsum(counts)
    sources, source_of = np.unique(table["source"].to_numpy().astype(str), return_inverse=True)
    tokens = np.zeros(len(sources), np.int64)
    file = held.open("chunks", held.part.chunks)
    for start, stop in blocks(held.part.rows):
        owners = np.searchsorted(ends, np.arange(start, stop), side="right")
        yield from _check_chunks(held, file, start, stop, owners, ends)
        lengths = file.read("length", start, stop)
        tokens += np.bincount(source_of[owners], lengths, len(sources)).astype(np.int64)
        meter(stop - start)
    documents = np.bincount(source_of, minlength=len(sources))
    chunks = np.bincount(source_of, counts, len(sources)).astype(np.int64)
    for name, *numbers in zip(sources.tolist(), documents, chunks, tokens, strict=True):
        for what, number in zip(("documents", "chunks", "tokens"), numbers, strict=True):
            held.held.count(what, name, more=int(number))


def _check_chunks(
    held: HeldPart, file: TableFile, start: int, stop: int, owners: np.ndarray, ends: np.ndarray
) -> Iterator[str]:
    """Lengths are 1 to m, full but for a document's last chunk; padding pads; ids are of the vocabulary."""
    info, path = held.held.database.manifest.chunk, held.part.chunks.path
    tokens, lengths = file.read("tokens", start, stop), file.read("length", start, stop)
    where = between(start, stop)
    if (file.read("document", start, stop) != owners).any():
        yield f"{path}: document is wrong {where}"
    if ((lengths < 1) | (lengths > info.tokens)).any():
        yield f"{path}: a length is not within 1 and {info.tokens} {where}"
    if (tokens[np.arange(info.tokens) >= lengths[:, None]] != info.pad_id).any():
        yield f"{path}: padding is not {info.pad_id} {where}"
    if (tokens >= info.vocab_size).any():
        yield f"{path}: a token is not below the vocabulary size {where}"
    inner = np.arange(start, stop) + 1 < ends[owners]
    if (lengths[inner] != info.tokens).any():
        yield f"{path}: a chunk before a document's last is short {where}"


def check_embeddings(held: HeldPart, meter: Meter) -> Iterator[str]:
    """Every value is finite; which chunks have a key is learned."""
    entry = held.part.keys_file
    file = held.open("embeddings", entry)
    for start, stop in blocks(held.part.rows):
        vectors = file.read("vector", start, stop)
        there = is_embedded(vectors)
        held.held.keyed[held.rows][start:stop] = there
        held.held.count("keyless", more=int((~there).sum()))
        if not np.isfinite(vectors).all():
            yield f"{entry.path}: not finite {between(start, stop)}"
        meter(stop - start)


def check_neighbors(held: HeldPart, parts: list[Part], meter: Meter) -> Iterator[str]:
    """In range, of another training document, nearest first, none twice, gaps at the end.

    Args:
        held: Whose neighbors.
        parts: Of the database.
        meter: Counts rows.

    Yields:
        What is wrong.
    """
    path, everything = held.neighbors.path, held.held.database
    file, documents = held.open("neighbors", held.neighbors), held.load_documents(parts)
    for start, stop in blocks(held.part.rows):
        ids, distances = file.read("ids", start, stop), file.read("distances", start, stop)
        where = between(start, stop)
        meter(stop - start)
        if ((ids < -1) | (ids >= len(everything))).any():
            yield f"{path}: an id is out of range {where}"
            continue
        if is_forbidden(documents, ids, start).any():
            yield f"{path}: a chunk has a neighbor of its own document {where}"
        yield from (f"{path}: {problem} {where}" for problem in _check_order(ids, distances))
        yield from _check_chosen(held, ids, start, stop)


def _check_order(ids: np.ndarray, distances: np.ndarray) -> Iterator[str]:
    """Rows ascend by distance and id, with gaps at their ends."""
    there = ids >= 0
    if (there[:, 1:] & ~there[:, :-1]).any():
        yield "gaps are not at the end"
    if not np.isfinite(distances[there]).all() or (distances[~there] != np.inf).any():
        yield "distances are not those of neighbors and gaps"
    if (distances[:, 1:] < distances[:, :-1]).any():
        yield "distances do not ascend"
    tied = there[:, 1:] & (distances[:, 1:] == distances[:, :-1])
    if (tied & (ids[:, 1:] < ids[:, :-1])).any():
        yield "ids that are equally near do not ascend"
    ordered = np.sort(ids, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        yield "an id stands twice in a row"


def _check_chosen(held: HeldPart, ids: np.ndarray, start: int, stop: int) -> Iterator[str]:
    """Only chunks with a key have neighbors, and none of them is of the validation split."""
    path, where, corpus = held.neighbors.path, between(start, stop), held.held
    there, known = ids >= 0, corpus.keyed[held.rows][start:stop]
    if (there & corpus.home.held_out[np.where(there, ids, 0)]).any():
        yield f"{path}: a validation chunk is a neighbor {where}"
    if corpus.has_keys:
        if there[~known].any():
            yield f"{path}: a chunk without a key has neighbors {where}"
    else:
        known[:] = there.any(axis=1)
    corpus.count("lacking", more=int((~there).any(axis=1).sum()))


def is_forbidden(documents: Documents, ids: np.ndarray, start: int) -> np.ndarray:
    """Which neighbors are of a document that the row's own document must not find.

    Args:
        documents: Of the part, with what each excludes.
        ids: int64 [n, k], of rows start to start + n - 1.
        start: First row.

    Returns:
        bool [n, k].
    """
    found = np.zeros(ids.shape, bool)
    owners = np.searchsorted(
        documents.starts + documents.counts, np.arange(start, start + len(ids)), side="right"
    )
    deepest = max((len(ranges) for ranges in documents.exclude), default=0)
    for depth in range(deepest):
        each = [ranges[depth] if depth < len(ranges) else (0, 0) for ranges in documents.exclude]
        first, end = np.array(each, np.int64)[owners].T
        found |= (ids >= first[:, None]) & (ids < end[:, None])
    return found


def check_distances(held: HeldPart) -> Iterator[str]:
    """On a hashed sample of rows, distances are those of the stored embeddings."""
    share = _DISTANCE_ROWS / max(len(held.held.corpus), 1)
    ids = np.arange(held.part.first_id, held.part.first_id + held.part.rows)
    rows = np.flatnonzero(fractions_of(ids, 0) < share)
    yield from compare_distances(held, rows)


def compare_distances(held: HeldPart, rows: np.ndarray) -> Iterator[str]:
    """Stored distances are those of the stored embeddings.

    Args:
        held: A part whose embeddings, and those of the database, were kept.
        rows: int64 [n], of the part.

    Yields:
        What is wrong.
    """
    keys, own = held.held.database.embeddings, held.open("embeddings", held.part.keys_file)
    file = held.open("neighbors", held.neighbors)
    for row in rows.tolist():
        [ids], [stored] = (file.read(name, row, row + 1) for name in ("ids", "distances"))
        there = (ids >= 0) & (ids < len(keys))
        near, stored = ids[there], stored[there]
        query = own.read("vector", row, row + 1).astype(np.float64)
        exact = ((keys[near].astype(np.float64) - query) ** 2).sum(axis=1)
        if not (np.abs(stored - exact) <= _DISTANCE_TOLERANCE * exact).all():
            yield f"{held.neighbors.path}: distances of row {row} are not those of the embeddings"
