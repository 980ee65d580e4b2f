"""Proof that a database is whole: every checksum and every invariant; needs the extra `build`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from retro_db.corpus.selection import CONTENT_REASONS
from retro_db.database import Corpus, Database
from retro_db.database import open as open_database
from retro_db.errors import RetroDBError
from retro_db.hashing import fractions_of
from retro_db.index.structure import faiss, inverted_file, list_ids, read_index
from retro_db.manifest import FILE, TABLES, TRAIN, query_path
from retro_db.store.folder import describe
from retro_db.tokenizer import Tokenizer

_BLOCK_ROWS = 65_536
_DISTANCE_ROWS = 1000
# float32 sums of d squares of float16 differences.
_DISTANCE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Verification:
    """What was checked, and everything that is wrong, each with its file."""

    files: int
    chunks: int
    problems: list[str]


def verify_database(url: str) -> Verification:
    """Checks a database against its manifest, its contracts and its rules.

    Args:
        url: Its folder.

    Raises:
        DatabaseError: There is no manifest that can be trusted.
    """
    database = open_database(url)
    problems = list(_check_files(database))
    damaged = bool(problems)
    checks: list[tuple[str, Callable[[], Iterator[str]]]] = [
        (check.__name__, functools.partial(check, database)) for check in _CHECKS
    ]
    for held in _corpora(database):
        checks += [(check.__name__, functools.partial(check, held)) for check in _CORPUS_CHECKS]
    for name, check in checks:
        try:
            problems += check()
        except RetroDBError as error:
            problems.append(str(error))
        except (IndexError, ValueError, OverflowError) as error:
            # A damaged file can mislead any later check; an undamaged one must not.
            if not damaged:
                raise
            problems.append(f"{name.removeprefix('_check_')}: not checkable: {error}")
    return Verification(len(database.manifest.files) + 1, len(database), problems)


def _check_files(database: Database) -> Iterator[str]:
    """Every listed file is there with its bytes; no other file pretends to belong."""
    listed = set()
    for entry in database.manifest.files:
        listed.add(entry.path)
        if not database.folder.exists(entry.path):
            yield f"{entry.path}: missing"
            continue
        found = describe(database.folder.local(entry.path), entry.path, entry.rows)
        if found != entry:
            yield f"{entry.path}: its bytes are not those that were written"
    below = ["", *(f"{query_path(name)}/" for name in database.queries)]
    folders = [f"{place}{table}" for place in below for table in TABLES]
    for folder in (*folders, "index", "tokenizer"):
        for name in database.folder.list(folder):
            if f"{folder}/{name}" not in listed:
                yield f"{folder}/{name}: not in {FILE}"


def _check_sources(database: Database) -> Iterator[str]:
    """What became of the records of each source adds up."""
    manifest = database.manifest
    for source in (*manifest.sources, *(query.source for query in manifest.queries)):
        if source.read != source.documents + source.dropped + source.rejected:
            yield f"{FILE}: source {source.name}: read is not kept + dropped + rejected"
        if source.dropped_by and sum(source.dropped_by.values()) != source.dropped:
            yield f"{FILE}: source {source.name}: dropped is not the sum of its reasons"
    if sum(entry.rows or 0 for entry in manifest.tables.dropped) != sum(
        source.dropped_by.get(reason, 0)
        for source in manifest.sources
        for reason in CONTENT_REASONS
    ):
        yield f"{FILE}: the dropped table has other rows than documents were left out"


def _check_tokenizer(database: Database) -> Iterator[str]:
    """The tokenizer is the one that the manifest names."""
    tokenizer = Tokenizer.of_database(database.folder)
    info = database.manifest.chunk
    if tokenizer.sha256 != database.manifest.tokenizer.sha256:
        yield f"tokenizer/tokenizer.json: not the tokenizer that {FILE} names"
    if (tokenizer.vocab_size, tokenizer.pad_id) != (info.vocab_size, info.pad_id):
        yield f"tokenizer: vocabulary or pad id differ from {FILE}"


@dataclass(frozen=True)
class _Checked:
    """A corpus and what the manifest counts of it; `name` begins the paths of its tables."""

    database: Database
    corpus: Corpus
    name: str
    documents: int
    chunks: int
    tokens: int
    keyless: int
    short_rows: int


def _corpora(database: Database) -> Iterator[_Checked]:
    """The database's own chunks, and every query corpus."""
    counts = database.manifest.counts
    numbers = (counts.documents, counts.chunks, counts.tokens)
    yield _Checked(database, database, "", *numbers, counts.keyless_chunks, counts.short_rows)
    for query in database.manifest.queries:
        source = query.source
        yield _Checked(
            database,
            database.queries[source.name],
            f"{query_path(source.name)}/",
            source.documents,
            source.chunks,
            source.tokens,
            query.keyless_chunks,
            query.short_rows,
        )


def _check_counts(held: _Checked) -> Iterator[str]:
    """Row counts of all tables agree with one another and with the counts."""
    tables = held.corpus.tables
    rows = [entry.rows for entry in tables.chunks]
    for name in ("embeddings", "fine", "neighbors"):
        entries = getattr(tables, name)
        if (entries or name == "neighbors") and [entry.rows for entry in entries] != rows:
            yield f"{FILE}: {held.name}{name} has other rows than chunks"
    if len(held.corpus) != held.chunks:
        yield f"{FILE}: the count of chunks is not the sum of the {held.name}chunks files' rows"
    if sum(entry.rows or 0 for entry in tables.documents) != held.documents:
        yield (
            f"{FILE}: the count of documents is not the sum of the {held.name}documents files' rows"
        )


def _check_documents(held: _Checked) -> Iterator[str]:
    """Documents tile the chunks, in order, without gap or overlap."""
    table, chunks = held.corpus.documents, held.corpus.chunks
    firsts, counts = table["first_chunk"].to_numpy(), table["chunk_count"].to_numpy()
    expected = np.cumsum(counts) - counts
    if (counts < 0).any() or (firsts != expected).any() or counts.sum() != len(held.corpus):
        yield f"{held.name}documents: first_chunk and chunk_count do not tile the chunks"
        return
    for start, ids in _blocks(held.corpus):
        owners = np.searchsorted(np.cumsum(counts), ids, side="right")
        if (chunks.documents(ids) != owners).any():
            yield (
                f"{held.name}chunks: document is wrong between rows {start} and {start + len(ids)}"
            )


def _check_chunks(held: _Checked) -> Iterator[str]:
    """Lengths are 1 to m, full but for a document's last chunk; padding pads; ids are of the vocabulary."""
    info, corpus = held.database.manifest.chunk, held.corpus
    m, total, table = info.tokens, 0, f"{held.name}chunks"
    for start, ids in _blocks(corpus):
        tokens, lengths = corpus.chunks[ids], corpus.chunks.lengths(ids)
        total += int(lengths.sum(dtype=np.int64))
        where = f"between rows {start} and {start + len(ids)}"
        if ((lengths < 1) | (lengths > m)).any():
            yield f"{table}: a length is not within 1 and {m} {where}"
        if (tokens[np.arange(m) >= lengths[:, None]] != info.pad_id).any():
            yield f"{table}: padding is not {info.pad_id} {where}"
        if (tokens >= info.vocab_size).any():
            yield f"{table}: a token is not below the vocabulary size {where}"
        following = corpus.chunks.documents(np.minimum(ids + 1, len(corpus) - 1))
        inner = (following == corpus.chunks.documents(ids)) & (ids + 1 < len(corpus))
        if (lengths[inner] != m).any():
            yield f"{table}: a chunk before a document's last is short {where}"
    if total != held.tokens:
        yield f"{table}: {total} tokens, {FILE} says {held.tokens}"


def _check_embeddings(held: _Checked) -> Iterator[str]:
    """Every value is finite, and as many chunks as counted have no key."""
    if not held.corpus.tables.embeddings:
        return
    keyless, table = 0, f"{held.name}embeddings"
    for start, ids in _blocks(held.corpus):
        vectors = held.corpus.embeddings[ids]
        keyless += int((~vectors.any(axis=1)).sum())
        if not np.isfinite(vectors).all():
            yield f"{table}: not finite between rows {start} and {start + len(ids)}"
    if keyless != held.keyless:
        yield f"{table}: {keyless} chunks without a key, {FILE} counts another number"


def _check_neighbors(held: _Checked) -> Iterator[str]:
    """In range, of another training document, nearest first, none twice, gaps at the end."""
    database, corpus = held.database, held.corpus
    validation, (own_names, names) = _validation_chunks(database), _names(held)
    short, table = 0, f"{held.name}neighbors"
    for start, rows in _blocks(corpus):
        ids, distances = corpus.neighbors[rows], corpus.neighbors.distances(rows)
        where = f"between rows {start} and {start + len(rows)}"
        there = ids >= 0
        if ((ids < -1) | (ids >= len(database))).any():
            yield f"{table}: an id is out of range {where}"
            continue
        own = own_names[corpus.chunks.documents(rows)]
        owners = database.chunks.documents(np.where(there, ids, 0).reshape(-1)).reshape(ids.shape)
        if (there & (names[owners] == own[:, None])).any():
            yield f"{table}: a chunk has a neighbor of its own document {where}"
        if (there & validation[np.where(there, ids, 0)]).any():
            yield f"{table}: a validation chunk is a neighbor {where}"
        if (there[:, 1:] & ~there[:, :-1]).any() or (there != np.isfinite(distances)).any():
            yield f"{table}: gaps are not at the end, or have distances {where}"
        if (distances[:, 1:] < distances[:, :-1]).any():
            yield f"{table}: distances do not ascend {where}"
        ordered = np.sort(ids, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            yield f"{table}: an id stands twice in a row {where}"
        yield from _check_distances(held, rows, ids, distances, where)
        short += int((~there[_keyed(corpus, rows)]).any(axis=1).sum())
    if corpus.tables.embeddings and short != held.short_rows:
        yield f"{table}: {short} rows are short, {FILE} counts {held.short_rows}"


def _names(held: _Checked) -> tuple[np.ndarray, np.ndarray]:
    """A number for each document of the corpus and of the database: equal ones must not meet.

    A document of the database is itself alone; one of a query corpus is all that share its id.
    """
    rows = np.arange(len(held.database.documents))
    if held.corpus is held.database:
        return rows, rows
    ids = held.database.documents["id"]
    names = pc.unique(ids)
    own = pc.index_in(held.corpus.documents["id"], value_set=names).fill_null(-1)
    return own.to_numpy(), pc.index_in(ids, value_set=names).to_numpy()


def _check_distances(
    held: _Checked, rows: np.ndarray, ids: np.ndarray, distances: np.ndarray, where: str
) -> Iterator[str]:
    """On a hashed sample of rows, distances are those of the stored embeddings."""
    if not held.corpus.tables.embeddings:
        return
    sampled = fractions_of(rows, 0) < _DISTANCE_ROWS / max(len(held.corpus), 1)
    for row, near, stored in zip(rows[sampled], ids[sampled], distances[sampled], strict=True):
        near, stored = near[near >= 0], stored[near >= 0]
        query = held.corpus.embeddings[[row]].astype(np.float64)
        exact = ((held.database.embeddings[near].astype(np.float64) - query) ** 2).sum(axis=1)
        if (np.abs(stored - exact) > _DISTANCE_TOLERANCE * exact).any():
            yield (
                f"{held.name}neighbors: distances of row {row} are not those of the embeddings "
                f"{where}"
            )


def _check_index(database: Database) -> Iterator[str]:
    """The lists hold every chunk that belongs in them once, and no other."""
    manifest, folder = database.manifest, database.folder
    pieces, lists = [], 0
    for partition in manifest.partition_files:
        index = read_index(folder.local(partition.path), faiss.IO_FLAG_MMAP)
        ivf = inverted_file(index)
        lists += ivf.nlist
        pieces += [list_ids(ivf.invlists, number) for number in range(ivf.nlist)]
    if lists != manifest.index.lists:
        yield f"index: {lists} lists, {FILE} says {manifest.index.lists}"
    ids = np.sort(np.concatenate(pieces)) if pieces else np.empty(0, np.int64)
    if len(ids) != manifest.counts.indexed_chunks:
        yield f"index: {len(ids)} entries, {FILE} says {manifest.counts.indexed_chunks}"
    if len(np.unique(ids)) != len(ids):
        yield "index: a chunk is in it twice"
    if not manifest.tables.embeddings:
        return
    everything = np.arange(len(database))
    belongs = _keyed(database, everything) & ~_validation_chunks(database)
    if not np.array_equal(ids, everything[belongs]):
        yield "index: it does not hold exactly the training chunks that have a key"


def _validation_chunks(database: Database) -> np.ndarray:
    """Whether each chunk is of a document outside the training split: bool [N]."""
    table = database.documents
    held_out = table["split"].to_numpy() != TRAIN
    return np.repeat(held_out, table["chunk_count"].to_numpy().astype(np.int64))


def _keyed(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """Whether chunks have a key: bool [n]."""
    if not corpus.tables.embeddings:
        return np.ones(len(rows), bool)
    pieces = [
        corpus.embeddings[rows[start : start + _BLOCK_ROWS]].any(axis=1)
        for start in range(0, len(rows), _BLOCK_ROWS)
    ]
    return np.concatenate([np.empty(0, bool), *pieces])


def _blocks(corpus: Corpus) -> Iterator[tuple[int, np.ndarray]]:
    """All chunk ids, a block at a time, with each block's start."""
    for start in range(0, len(corpus), _BLOCK_ROWS):
        yield start, np.arange(start, min(start + _BLOCK_ROWS, len(corpus)))


_CHECKS: tuple[Callable[[Database], Iterator[str]], ...] = (
    _check_sources,
    _check_tokenizer,
    _check_index,
)
_CORPUS_CHECKS: tuple[Callable[[_Checked], Iterator[str]], ...] = (
    _check_counts,
    _check_documents,
    _check_chunks,
    _check_embeddings,
    _check_neighbors,
)
