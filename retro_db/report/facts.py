"""The facts of the report: counts of the manifest, and measures of a sample of chunks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from retro_db.index.structure import is_embedded, widen
from retro_db.manifest.model import Manifest
from retro_db.reader.database import Database
from retro_db.report.leakage import Overlaps, overlaps
from retro_db.report.stage_report import StageReport, read_stages
from retro_db.search.passages import Passage, Passages
from retro_db.search.searching import list_lengths

SAMPLE, _PARTS = 20_000, 64
LEAKAGE_K = 10  # as in the paper, section 2.6
_MAPPED = 2_000
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
class ChunkMap:
    """Embeddings of chunks on the plane of their two main directions.

    Attributes:
        points: float32 [n, 2].
        sources: Names of the chunks' sources, n.
        explained: Share of the variance that the plane shows.
    """

    points: np.ndarray
    sources: list[str]
    explained: float


@dataclass(frozen=True)
class Sample:
    """Chunks drawn evenly, without the chunks of removed documents.

    Attributes:
        ids: int64 [n], ascending; all chunks of a database with at most `SAMPLE` chunks in at most `_PARTS`
            files.
        lengths: Number of tokens of each chunk, int64 [n].
        splits: Names of the documents' splits, n.
        nearest: Squared distance of the first neighbor, float32 [n]; infinity if a chunk has none.
        last: Squared distance of the last of the k neighbors, likewise.
        overlaps: Longest common runs with the first `LEAKAGE_K` neighbors.
    """

    ids: np.ndarray
    lengths: np.ndarray
    splits: np.ndarray
    nearest: np.ndarray
    last: np.ndarray
    overlaps: Overlaps


@dataclass(frozen=True)
class Facts:
    """All that the report shows.

    Attributes:
        manifest: Manifest of the database.
        missing: Files that do not exist or have another size.
        flow: Steps from records to neighbors.
        sample: Measured chunks.
        lists: Number of entries of every inverted list, int64 [lists].
        chunk_map: Map of chunks; None if embeddings were not kept, or fewer than three chunks have different
            ones.
        passages: Chunks to read, each with its neighbors.
        stages: What the stages of the build took; None if this is not known.
    """

    manifest: Manifest
    missing: list[str]
    flow: list[Step]
    sample: Sample
    lists: np.ndarray
    chunk_map: ChunkMap | None
    passages: list[tuple[Passage, list[Passage]]]
    stages: StageReport | None


def gather_facts(database: Database) -> Facts:
    """Reads what the report shows.

    Raises:
        DamagedFileError: A file is missing, or disagrees with the manifest.
    """
    manifest, folder = database.manifest, database.folder
    missing = sorted(folder.missing(manifest.files))
    sample, sources = _sample(database)
    return Facts(
        manifest=manifest,
        missing=missing,
        flow=data_flow(manifest),
        sample=sample,
        lists=_list_lengths(database),
        chunk_map=_map(database, sample, sources),
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
        Step("with an embedding", "chunks", embedded, counts.keyless_chunks, "no WordPiece"),
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


def _sample(database: Database) -> tuple[Sample, list[str]]:
    """Returns the sample, and the name of each chunk's source."""
    drawn = _drawn(database.first_chunks)
    ids = drawn[~database.removals.has_chunks(drawn)]
    documents = database.documents_at(database.chunks.documents(ids))
    k = database.manifest.neighbors.k
    distances = database.neighbors.distances(ids)
    sample = Sample(
        ids=ids,
        lengths=database.chunks.lengths(ids).astype(np.int64),
        splits=np.array(documents["split"].to_pylist(), dtype=object),
        nearest=distances[:, 0],
        last=distances[:, -1],
        overlaps=Overlaps.joined(overlaps(database, ids, min(LEAKAGE_K, k))),
    )
    return sample, documents["source"].to_pylist()


def _drawn(first_chunks: np.ndarray) -> np.ndarray:
    """Draws ids from up to `_PARTS` files, int64 [n], ascending: a store need not send the other files.

    Args:
        first_chunks: First id of each file, and one behind the last id, int64 [files + 1].
    """
    chance = np.random.default_rng(0)
    files = np.arange(len(first_chunks) - 1)
    if len(files) > _PARTS:
        files = np.sort(chance.choice(files, _PARTS, replace=False))
    counts = first_chunks[files + 1] - first_chunks[files]
    ends = np.cumsum(counts)
    size = int(ends[-1]) if len(ends) else 0
    rows = np.unique(chance.integers(0, size, SAMPLE)) if size > SAMPLE else np.arange(size)
    owners = np.searchsorted(ends, rows, side="right")
    return first_chunks[files][owners] + rows - (ends - counts)[owners]


def _list_lengths(database: Database) -> np.ndarray:
    lengths = [np.empty(0, np.int64)]
    for entry in database.manifest.partition_files:
        with database.folder.holding(entry) as path:
            lengths.append(list_lengths(path))
    return np.concatenate(lengths)


def _map(database: Database, sample: Sample, sources: list[str]) -> ChunkMap | None:
    """Maps up to `_MAPPED` chunks of the sample, without those that have no embedding."""
    if not database.manifest.tables.embeddings:
        return None
    size = len(sample.ids)
    chosen = np.linspace(0, size, min(size, _MAPPED), endpoint=False).astype(np.int64)
    embeddings = database.embeddings[sample.ids[chosen]]
    embedded = is_embedded(embeddings)
    names = [sources[row] for row in chosen[embedded]]
    if len(names) < 3:
        return None
    vectors = widen(embeddings[embedded])
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    variance = values**2
    if not variance.sum():
        return None
    explained = float(variance[:2].sum() / variance.sum())
    return ChunkMap(left[:, :2] * values[:2], names, explained)


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
