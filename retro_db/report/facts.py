"""The facts of the report: counts of the manifest, and measures of a sample of chunks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from retro_db.manifest.model import Manifest
from retro_db.reader.database import Database
from retro_db.report.chunk_map import MAPPED, ChunkMap, map_chunks
from retro_db.report.leakage import Overlaps, overlaps
from retro_db.report.retrieval import Retrieval, measure_retrieval
from retro_db.report.stage_report import StageReport, read_stages
from retro_db.search.passages import Passage, Passages
from retro_db.search.searching import list_lengths

SAMPLE, _PARTS = 20_000, 64
LEAKAGE_K = 10  # as in the paper, section 2.6
# Texts of each source that are compared with their tokens.
_TEXTS = 200
# Quantiles of the distance of the nearest neighbor, from near to far, at which chunks are shown to read.
_SHOWN_QUANTILES = (0.02, 0.25, 0.5, 0.75, 0.98)
_SHOWN_NEIGHBORS = 2
# Name of the documents that remain once others were dropped for a reason.
_KEPT_BY = {
    "fraction": "chosen by fraction",
    "name": "not left out by name",
    "leakage": "far from evaluation texts",
    "duplicate": "no near-duplicates",
    "removed": "left by compaction",
}


@dataclass(frozen=True)
class Step:
    """One step from records to neighbors.

    Attributes:
        name: Name of what is kept.
        unit: documents or chunks.
        kept: Number that is kept.
        left_out: Number that is not; in the two steps behind "with an embedding", of chunks with one.
        reasons: Reasons why they are not, in words.
    """

    name: str
    unit: str
    kept: int
    left_out: int
    reasons: str = ""


@dataclass(frozen=True)
class Sample:
    """Chunks drawn evenly, without the chunks of removed documents.

    Attributes:
        ids: int64 [n], ascending; all chunks of a database with at most `SAMPLE` chunks in at most `_PARTS`
            files.
        lengths: Number of tokens of each chunk, int64 [n].
        sources: Names of the documents' sources, n.
        splits: Names of the documents' splits, n.
        nearest: Squared distance of the first neighbor, float32 [n]; infinity if a chunk has none.
        last: Squared distance of the last of the k neighbors, likewise.
        overlaps: Longest common runs with the first `LEAKAGE_K` neighbors.
    """

    ids: np.ndarray
    lengths: np.ndarray
    sources: np.ndarray
    splits: np.ndarray
    nearest: np.ndarray
    last: np.ndarray
    overlaps: Overlaps


@dataclass(frozen=True)
class DocumentLengths:
    """Tokens of documents, without the removed ones.

    Attributes:
        tokens: int64 [n].
        is_whole: Whether these are all documents; otherwise those of the files that the sample is drawn from.
    """

    tokens: np.ndarray
    is_whole: bool


@dataclass(frozen=True)
class TextSize:
    """Some chunks of a source as text.

    Attributes:
        source: Name of the source.
        chunks: Number of chunks.
        tokens: Their tokens.
        bytes: Bytes of their text in UTF-8.
    """

    source: str
    chunks: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Facts:
    """All that the report shows.

    Attributes:
        manifest: Manifest of the database.
        missing: Files that do not exist or have another size.
        flow: Steps from records to neighbors.
        sample: Measured chunks.
        documents: Lengths of documents.
        text_sizes: Text of some chunks of each source of the sample.
        retrieval: Neighbors by source, hubs and copies.
        lists: Number of entries of every inverted list, int64 [lists].
        chunk_map: Map of chunks; None if there is none to draw.
        passages: Chunks to read, each with its neighbors.
        stages: What the stages of the build took; None if this is not known.
    """

    manifest: Manifest
    missing: list[str]
    flow: list[Step]
    sample: Sample
    documents: DocumentLengths
    text_sizes: list[TextSize]
    retrieval: Retrieval
    lists: np.ndarray
    chunk_map: ChunkMap | None
    passages: list[tuple[Passage, list[Passage]]]
    stages: StageReport | None


def gather_facts(database: Database, share: int = 1) -> Facts:
    """Reads what the report shows.

    Args:
        database: The database.
        share: Number of databases that share a page, and so the chunks of its maps.

    Raises:
        DamagedFileError: A file is missing, or disagrees with the manifest.
    """
    manifest, folder = database.manifest, database.folder
    missing = sorted(folder.missing(manifest.files))
    files = _files(database.first_chunks)
    sample = _sample(database, files)
    return Facts(
        manifest=manifest,
        missing=missing,
        flow=data_flow(manifest),
        sample=sample,
        documents=_document_lengths(database, files),
        text_sizes=_text_sizes(database, sample),
        retrieval=measure_retrieval(database, sample.ids),
        lists=_list_lengths(database),
        chunk_map=map_chunks(database, sample.ids, MAPPED // share),
        passages=_passages(database, sample),
        stages=read_stages(folder),
    )


def data_flow(manifest: Manifest) -> list[Step]:
    """Returns what each step kept and dropped, from records to neighbors, without query corpora."""
    sources, counts = manifest.sources, manifest.counts
    kept = sum(source.read for source in sources)
    steps = [Step("records read", "documents", kept, 0)]
    rejected = sum(source.rejected for source in sources)
    kept -= rejected
    reasons = _added([source.rejected_by for source in sources])
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    steps.append(Step("fit to be read", "documents", kept, rejected, why))
    for reason, count in _added([source.dropped_by for source in sources]).items():
        kept -= count
        steps.append(Step(_KEPT_BY.get(reason, "kept"), "documents", kept, count, reason))
    steps.append(Step("cut into chunks", "chunks", counts.chunks, 0))
    embedded = counts.chunks - counts.keyless_chunks
    held_out, short = embedded - counts.indexed_chunks, counts.short_rows
    steps += [
        Step(
            "with an embedding", "chunks", embedded, counts.keyless_chunks, "an embedding of zeros"
        ),
        Step("in the index", "chunks", counts.indexed_chunks, held_out, "validation split"),
        Step("with all neighbors", "chunks", embedded - short, short, "fewer were found"),
    ]
    if removed := counts.removed_chunks:
        steps.append(
            Step("not removed since", "chunks", counts.chunks - removed, removed, "removed")
        )
    return steps


def _added(counted: list[dict[str, int]]) -> Counter[str]:
    return sum(map(Counter, counted), Counter[str]())


def _files(first_chunks: np.ndarray) -> np.ndarray:
    """Draws the numbers of up to `_PARTS` files, ascending: a store need not send the others."""
    files = np.arange(len(first_chunks) - 1)
    if len(files) <= _PARTS:
        return files
    return np.sort(np.random.default_rng(0).choice(files, _PARTS, replace=False))


def _sample(database: Database, files: np.ndarray) -> Sample:
    drawn = _drawn(database.first_chunks, files)
    ids = drawn[~database.removals.has_chunks(drawn)]
    documents = database.documents_at(database.chunks.documents(ids))
    k = database.manifest.neighbors.k
    distances = database.neighbors.distances(ids)
    return Sample(
        ids=ids,
        lengths=database.chunks.lengths(ids).astype(np.int64),
        sources=np.array(documents["source"].to_pylist(), dtype=object),
        splits=np.array(documents["split"].to_pylist(), dtype=object),
        nearest=distances[:, 0],
        last=distances[:, -1],
        overlaps=Overlaps.joined(overlaps(database, ids, min(LEAKAGE_K, k))),
    )


def _drawn(first_chunks: np.ndarray, files: np.ndarray) -> np.ndarray:
    """Draws ids of some files' chunks, int64 [n], ascending.

    Args:
        first_chunks: First id of each file, and one behind the last id, int64 [files + 1].
        files: Numbers of the files to draw from.
    """
    counts = first_chunks[files + 1] - first_chunks[files]
    ends = np.cumsum(counts)
    size = int(ends[-1]) if len(ends) else 0
    rows = np.arange(size)
    if size > SAMPLE:
        rows = np.unique(np.random.default_rng(0).integers(0, size, SAMPLE))
    owners = np.searchsorted(ends, rows, side="right")
    return first_chunks[files][owners] + rows - (ends - counts)[owners]


def _document_lengths(database: Database, files: np.ndarray) -> DocumentLengths:
    m = database.manifest.chunk.tokens
    tokens = [np.empty(0, np.int64)]
    for first, end in zip(
        database.first_documents[files], database.first_documents[files + 1], strict=True
    ):
        rows = np.setdiff1d(np.arange(first, end), database.removed, assume_unique=True)
        documents = database.documents_at(rows)
        counts = documents["chunk_count"].to_numpy().astype(np.int64)
        has_chunks = counts > 0
        # Only the last chunk of a document is shorter than m.
        last = (documents["first_chunk"].to_numpy() + counts - 1)[has_chunks]
        lengths = m * (counts - 1)
        lengths[has_chunks] += database.chunks.lengths(last)
        tokens.append(np.maximum(lengths, 0))
    return DocumentLengths(np.concatenate(tokens), len(files) == len(database.tables.documents))


def _text_sizes(database: Database, sample: Sample) -> list[TextSize]:
    """Decodes up to `_TEXTS` chunks of each source, drawn evenly from the sample."""
    passages, sizes = Passages(database), []
    for source in database.manifest.sources:
        rows = np.flatnonzero(sample.sources == source.name)
        rows = rows[np.linspace(0, len(rows), min(len(rows), _TEXTS), False).astype(np.int64)]
        if len(rows):
            texts = passages.texts(sample.ids[rows])
            size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
            tokens = int(sample.lengths[rows].sum())
            sizes.append(TextSize(source.name, len(rows), tokens, size))
    return sizes


def _list_lengths(database: Database) -> np.ndarray:
    lengths = [np.empty(0, np.int64)]
    for entry in database.manifest.partition_files:
        with database.folder.holding(entry) as path:
            lengths.append(list_lengths(path))
    return np.concatenate(lengths)


def _passages(database: Database, sample: Sample) -> list[tuple[Passage, list[Passage]]]:
    has_neighbor = np.isfinite(sample.nearest)
    order = np.argsort(sample.nearest[has_neighbor], kind="stable")
    ordered = sample.ids[has_neighbor][order]
    if not len(ordered):
        return []
    ranks = (np.array(_SHOWN_QUANTILES) * (len(ordered) - 1)).round().astype(np.int64)
    passages = Passages(database)
    return [
        passages.with_neighbors(int(chunk), _SHOWN_NEIGHBORS) for chunk in ordered[np.unique(ranks)]
    ]
