"""The rules of one part: how documents are cut, what embeddings and neighbors may be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from retro_db.index.structure import widen
from retro_db.manifest.model import TRAIN, VALIDATION
from retro_db.manifest.parts import Part
from retro_db.meter import Meter
from retro_db.search.part_documents import Documents
from retro_db.store.embedded import is_embedded
from retro_db.store.gathering import Table
from retro_db.store.tables import TableFile
from retro_db.verify.opened import OpenedCorpus, OpenedPart, between, blocks
from retro_db.verify.sampling import Sample

# Values of neighbors' embeddings that are compared at once.
_BLOCK_VALUES = 1 << 22
# Rows of a part that are named one by one.
_NAMED_ROWS = 10
# For float32 sums of d squares of float16 differences.
_DISTANCE_TOLERANCE = 1e-5
# Of embeddings of length 1 in float16.
_LENGTH_TOLERANCE = 1e-2


def check_documents(part: OpenedPart) -> Iterator[str]:
    """Checks that documents tile the chunks in order, without gap or overlap; learns which are held out."""
    path, table = part.files.documents.path, part.read_documents()
    firsts, counts = table["first_chunk"].to_numpy(), table["chunk_count"].to_numpy()
    # Counts up to the number of rows, whose sums cannot overflow.
    sane = ((counts >= 0) & (counts <= part.files.rows)).all()
    if not sane or (firsts != np.cumsum(counts) - counts).any() or counts.sum() != part.files.rows:
        yield f"{path}: first_chunk and chunk_count do not tile the chunks"
        return
    splits = table["split"].to_numpy()
    if strange := set(splits.tolist()) - {TRAIN, VALIDATION}:
        yield f"{path}: split {min(strange)!r} is neither {TRAIN} nor {VALIDATION}"
    part.corpus.held_out[part.rows] = np.repeat(splits != TRAIN, counts)


def check_chunks(part: OpenedPart, meter: Meter) -> Iterator[str]:
    """Checks that chunks are cut by the rules; counts what each source has."""
    table = part.read_documents("source", "chunk_count")
    counts = table["chunk_count"].to_numpy()
    ends = np.cumsum(counts)
    sources, source_of = np.unique(table["source"].to_numpy().astype(str), return_inverse=True)
    tokens = np.zeros(len(sources), np.int64)
    file = part.open("chunks", part.files.chunks)
    for start, stop in blocks(part.files.rows):
        owners = np.searchsorted(ends, np.arange(start, stop), side="right")
        yield from _check_chunks(part, file, start, stop, owners, ends)
        lengths = file.read("length", start, stop)
        tokens += np.bincount(source_of[owners], lengths, len(sources)).astype(np.int64)
        meter(stop - start)
    documents = np.bincount(source_of, minlength=len(sources))
    chunks = np.bincount(source_of, counts, len(sources)).astype(np.int64)
    for name, *numbers in zip(sources.tolist(), documents, chunks, tokens, strict=True):
        for what, number in zip(("documents", "chunks", "tokens"), numbers, strict=True):
            part.corpus.count(what, name, more=int(number))


def _check_chunks(
    part: OpenedPart, file: TableFile, start: int, stop: int, owners: np.ndarray, ends: np.ndarray
) -> Iterator[str]:
    """Checks lengths (1 to m, and m before a document's last chunk), padding, and ids of tokens."""
    info, path = part.corpus.database.manifest.chunk, part.files.chunks.path
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


def check_embeddings(part: OpenedPart, meter: Meter) -> Iterator[str]:
    """Checks that values are finite, and lengths 1 if so told; learns which chunks have an embedding."""
    entry = part.files.keys_file
    file = part.open("embeddings", entry)
    normalized = part.corpus.database.manifest.encoder.normalize
    for start, stop in blocks(part.files.rows):
        vectors = file.read("vector", start, stop)
        embedded = is_embedded(vectors)
        part.corpus.embedded[part.rows][start:stop] = embedded
        part.corpus.count("keyless", more=int((~embedded).sum()))
        if not np.isfinite(vectors).all():
            yield f"{entry.path}: not finite {between(start, stop)}"
        elif normalized and not _has_length_one(vectors[embedded]):
            yield f"{entry.path}: not of length 1, as encoder.normalize says, {between(start, stop)}"
        meter(stop - start)


def _has_length_one(vectors: np.ndarray) -> bool:
    lengths = np.linalg.norm(widen(vectors), axis=1)
    return bool((np.abs(lengths - 1) < _LENGTH_TOLERANCE).all())


def check_neighbors(part: OpenedPart, parts: list[Part], meter: Meter) -> Iterator[str]:
    """Checks neighbors: in range, of another training document, nearest first, none twice, gaps at the end.

    Args:
        part: Part of the neighbors.
        parts: Parts of the database.
        meter: Counts rows.

    Yields:
        A line for each problem.
    """
    path, database = part.neighbors.path, part.corpus.database
    file, documents = part.open("neighbors", part.neighbors), part.load_documents(parts)
    for start, stop in blocks(part.files.rows):
        ids, distances = file.read("ids", start, stop), file.read("distances", start, stop)
        where = between(start, stop)
        meter(stop - start)
        if ((ids < -1) | (ids >= len(database))).any():
            yield f"{path}: an id is out of range {where}"
            continue
        if is_forbidden(documents, ids, start).any():
            yield f"{path}: a chunk has a neighbor of its own document {where}"
        yield from (f"{path}: {problem} {where}" for problem in _check_order(ids, distances))
        yield from _check_chosen(part, ids, start, stop)


def _check_order(ids: np.ndarray, distances: np.ndarray) -> Iterator[str]:
    """Checks that rows ascend by distance and id, with gaps at their ends."""
    filled = ids >= 0
    if (filled[:, 1:] & ~filled[:, :-1]).any():
        yield "gaps are not at the end"
    if not np.isfinite(distances[filled]).all() or (distances[~filled] != np.inf).any():
        yield "a neighbor's distance is not finite, or a gap's not infinite"
    if (distances[:, 1:] < distances[:, :-1]).any():
        yield "distances do not ascend"
    tied = filled[:, 1:] & (distances[:, 1:] == distances[:, :-1])
    if (tied & (ids[:, 1:] < ids[:, :-1])).any():
        yield "ids that are equally near do not ascend"
    ordered = np.sort(ids, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        yield "an id is twice in a row"


def _check_chosen(part: OpenedPart, ids: np.ndarray, start: int, stop: int) -> Iterator[str]:
    """Checks that only chunks with an embedding have neighbors, and none of the validation split."""
    path, where, corpus = part.neighbors.path, between(start, stop), part.corpus
    filled, embedded = ids >= 0, corpus.embedded[part.rows][start:stop]
    if (filled & corpus.home.held_out[np.where(filled, ids, 0)]).any():
        yield f"{path}: a validation chunk is a neighbor {where}"
    if corpus.has_embeddings:
        if filled[~embedded].any():
            yield f"{path}: a chunk without an embedding has neighbors {where}"
    else:
        embedded[:] = filled.any(axis=1)
    corpus.count("lacking", more=int((~filled).any(axis=1).sum()))


def is_forbidden(documents: Documents, ids: np.ndarray, start: int) -> np.ndarray:
    """Returns which neighbors belong to a document that the row's document must not find.

    Args:
        documents: Documents of the part, with the ids that each excludes.
        ids: int64 [n, k], neighbors of rows start to start + n - 1.
        start: First row.

    Returns:
        bool [n, k].
    """
    forbidden = np.zeros(ids.shape, bool)
    owners = np.searchsorted(
        documents.starts + documents.counts, np.arange(start, start + len(ids)), side="right"
    )
    deepest = max((len(ranges) for ranges in documents.exclude), default=0)
    for depth in range(deepest):
        each = [ranges[depth] if depth < len(ranges) else (0, 0) for ranges in documents.exclude]
        first, end = np.array(each, np.int64)[owners].T
        forbidden |= (ids >= first[:, None]) & (ids < end[:, None])
    return forbidden


def check_distances(part: OpenedPart, sample: Sample) -> Iterator[str]:
    """Checks the distances of a hashed sample of rows against the stored embeddings."""
    ids = np.arange(part.files.first_id, part.files.first_id + part.files.rows)
    yield from compare_distances(part, np.flatnonzero(sample.takes(ids)))


def compare_distances(part: OpenedPart, rows: np.ndarray) -> Iterator[str]:
    """Checks stored distances against the stored embeddings.

    Args:
        part: Part of a corpus whose embeddings, and the database's, were kept.
        rows: int64 [n], rows of the part.

    Yields:
        A line for each problem.
    """
    path, wrong = part.neighbors.path, 0
    count = max(1, _BLOCK_VALUES // values_of_row(part.corpus))
    for start in range(0, len(rows), count):
        block = rows[start : start + count]
        for row in block[_are_wrong(part, block)].tolist():
            wrong += 1
            if wrong <= _NAMED_ROWS:
                yield f"{path}: distances of row {row} are not those of the embeddings"
    if wrong > _NAMED_ROWS:
        yield f"{path}: distances of {wrong - _NAMED_ROWS:,} more rows are not those of the embeddings"


def values_of_row(corpus: OpenedCorpus) -> int:
    """Values of the embeddings of one row's neighbors."""
    manifest = corpus.database.manifest
    return manifest.neighbors.k * manifest.encoder.dimension


def _are_wrong(part: OpenedPart, rows: np.ndarray) -> np.ndarray:
    """Whether a stored distance of each row is wrong, bool [n]; neighbors out of range are passed over."""
    embeddings = part.corpus.database.embeddings
    queries = Table([part.open("embeddings", part.files.keys_file)]).column("vector")
    neighbors = Table([part.open("neighbors", part.neighbors)])
    ids, stored = (neighbors.column(name)[rows] for name in ("ids", "distances"))
    place, column = np.nonzero((ids >= 0) & (ids < len(embeddings)))
    near, inverse = np.unique(ids[place, column], return_inverse=True)
    # float64, so that the sum of d squares adds no error of its own.
    others, own = embeddings[near].astype(np.float64), queries[rows].astype(np.float64)
    apart = others[inverse]
    apart -= own[place]
    exact = np.einsum("nd,nd->n", apart, apart)
    agree = np.abs(stored[place, column] - exact) <= _DISTANCE_TOLERANCE * exact
    wrong = np.zeros(len(rows), bool)
    wrong[place[~agree]] = True
    return wrong
