"""The map of the report: chunks on a plane, in clusters with words of their own, each with its neighbors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.index.kmeans import assign, cluster
from retro_db.index.structure import widen
from retro_db.reader.database import Database
from retro_db.search.passages import Passage, Passages
from retro_db.store.embedded import is_embedded

MAPPED, NEAR = 1_000, 3
_CLUSTERS, _PER_CLUSTER = 12, 25
_WORDS = 3
# How much rarer a word of a cluster is elsewhere, so that it is no word of all texts.
_RARER = 3
# What has no letters is no word; most characters of one, which in some scripts is a sentence.
_WORD = re.compile(r"[^\W\d_]{3,20}")


@dataclass(frozen=True)
class ChunkMap:
    """Embeddings of chunks on the plane of their two main directions.

    Attributes:
        points: float32 [n, 2].
        explained: Share of the variance that the plane shows.
        clusters: Cluster of each chunk by its whole embedding, int64 [n].
        words: Words of each cluster that are rarer in the others, the strongest first; may be empty.
        chunks: The chunks, n.
        near: Ids and distances of the first `NEAR` neighbors of each chunk.
        passages: The chunks and these neighbors, by id.
    """

    points: np.ndarray
    explained: float
    clusters: np.ndarray
    words: list[list[str]]
    chunks: list[Passage]
    near: list[list[tuple[int, float]]]
    passages: dict[int, Passage]


def map_chunks(database: Database, sample: np.ndarray, most: int) -> ChunkMap | None:
    """Maps chunks of a sample, without those that have no embedding.

    Args:
        database: The database.
        sample: Ids of the sample, int64 [n].
        most: Most chunks to map.

    Returns:
        The map; None if embeddings were not kept, or fewer than three chunks have different ones.

    Raises:
        DamagedFileError: A file is missing, or disagrees with the manifest.
    """
    if not database.tables.embeddings:
        return None
    count = min(len(sample), most)
    ids = sample[np.linspace(0, len(sample), count, endpoint=False).astype(np.int64)]
    embeddings = database.embeddings[ids]
    embedded = is_embedded(embeddings)
    ids, vectors = ids[embedded], widen(embeddings[embedded])
    if len(ids) < 3:
        return None
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    variance = values**2
    if not variance.sum():
        return None
    near, distances = database.neighbors[ids][:, :NEAR], database.neighbors.distances(ids)
    wanted = np.union1d(ids, near[near >= 0])
    passages = {passage.id: passage for passage in Passages(database).of(wanted)}
    clusters = _clustered(vectors)
    chunks = [passages[chunk] for chunk in ids.tolist()]
    return ChunkMap(
        points=left[:, :2] * values[:2],
        explained=float(variance[:2].sum() / variance.sum()),
        clusters=clusters,
        words=_words_of_clusters([passage.text for passage in chunks], clusters),
        chunks=chunks,
        near=[
            [(chunk, far) for chunk, far in zip(row, rank, strict=False) if chunk >= 0]
            for row, rank in zip(near.tolist(), distances.tolist(), strict=True)
        ],
        passages=passages,
    )


def _clustered(vectors: np.ndarray) -> np.ndarray:
    """Clusters of some embeddings by k-means, the largest first: int64 [n]."""
    count = min(_CLUSTERS, max(1, len(vectors) // _PER_CLUSTER))
    nearest = assign(vectors, cluster(vectors, count, seed=0, threads=1), threads=1)
    sizes = np.bincount(nearest, minlength=count)
    ranks = np.empty(count, np.int64)
    ranks[np.argsort(-sizes, kind="stable")] = np.arange(count)
    return ranks[nearest]


def _words_of_clusters(texts: Sequence[str], clusters: np.ndarray) -> list[list[str]]:
    """Words that stand in more texts of a cluster than of the others."""
    within = [Counter[str]() for _ in range(int(clusters.max()) + 1)]
    for text, number in zip(texts, clusters.tolist(), strict=True):
        within[number].update(set(_WORD.findall(text.lower())))
    whole = sum(within, Counter[str]())
    sizes = np.bincount(clusters).tolist()
    return [
        list(_distinct(counts, whole, size, len(texts)))
        for counts, size in zip(within, sizes, strict=True)
    ]


def _distinct(counts: Counter[str], whole: Counter[str], size: int, texts: int) -> Iterator[str]:
    """Words by the share of a cluster's texts that have them times how much rarer they are elsewhere."""

    def strength(word: str) -> float:
        others = (whole[word] - counts[word] + 1) / (texts - size + 1)
        rarer = counts[word] / size / others
        return counts[word] / size * math.log(rarer) if rarer >= _RARER else 0.0

    # A word of one text alone says nothing of the cluster.
    ranked = sorted(((-strength(word), word) for word, count in counts.items() if count > 1))
    yield from (word for rank, word in ranked[:_WORDS] if rank < 0)
