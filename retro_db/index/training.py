"""Training: once, on a uniform sample of all keys, never on a prefix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.errors import CorpusError, IndexKeyError
from retro_db.hashing import fractions_of
from retro_db.index.keys import MAX_POINTS_PER_LIST, IndexKey, check_trainable
from retro_db.index.structure import faiss, inverted_file
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.store.tables import IpcFile
from retro_db.threads import use_faiss_threads

from faiss.contrib.clustering import two_level_clustering  # isort: skip

PATH = "index/trained.faissindex"
# k-means and rotations differ in their last bits between one thread and several: so their number
# must depend neither on the workers nor on the cores.
_THREADS = 2
_SEED = 1234
# k-means takes time by points times centroids: from here on by their square root, at little loss.
_TWO_LEVELS_ABOVE = 100_000
# At construction the graph over centroids is searched wide: a key in the wrong list is lost to it.
_HNSW_EF_CONSTRUCTION = 200
_HNSW_EF_SEARCH = 128


@dataclass(frozen=True)
class PartKeys:
    """One part's keys, and which of them may be anyone's neighbor.

    Attributes:
        first_id: Global id of its first chunk.
        embeddings: The part's file.
        indexed: bool [rows]; False for validation chunks and for chunks without a key.
    """

    first_id: int
    embeddings: IpcFile
    indexed: np.ndarray


def sample_keys(parts: Sequence[PartKeys], points: int, seed: int) -> np.ndarray:
    """A uniform sample of the indexed keys, in id order, chosen by hashing chunk ids.

    Args:
        parts: All of them.
        points: Expected size; all keys where there are no more.
        seed: Decides which.

    Returns:
        float32 [about points, d].
    """
    total = sum(int(part.indexed.sum()) for part in parts)
    share = min(1.0, points / max(total, 1))
    pieces = []
    for part in parts:
        rows = np.flatnonzero(part.indexed)
        rows = rows[fractions_of(rows + part.first_id, seed) < share]
        for start in range(0, part.embeddings.rows, part.embeddings.batch_rows):
            stop = start + part.embeddings.batch_rows
            chosen = rows[(rows >= start) & (rows < stop)] - start
            if len(chosen):
                view = part.embeddings.read("vector", start, stop)
                pieces.append(view[chosen].astype(np.float32))
    return np.concatenate(pieces) if pieces else np.empty((0, 0), np.float32)


def create_index(key: IndexKey, dimension: int) -> faiss.Index:
    """The empty, untrained index of a key.

    Args:
        key: Parsed.
        dimension: d of the vectors.

    Returns:
        An index with transforms, inverted lists and codes, comparing by squared L2.

    Raises:
        IndexKeyError: Faiss does not know it, or it is more than transforms, lists and codes.
    """
    try:
        index = faiss.index_factory(dimension, key.factory, faiss.METRIC_L2)
    except RuntimeError as error:
        raise IndexKeyError(
            f"index.key: Faiss does not take {key.text} for {dimension} dimensions; see its factory's "
            "language, or use auto"
        ) from error
    inner = index.index if isinstance(index, faiss.IndexPreTransform) else index
    if not isinstance(faiss.downcast_index(inner), faiss.IndexIVF):
        raise IndexKeyError(
            f"index.key: {key.text} is more than transforms, inverted lists and codes; leave refining "
            "out, candidates are re-ranked exactly"
        )
    return index


def predict_size(key: IndexKey, dimension: int, entries: int) -> tuple[int, int]:
    """What an index will take, on disk and loaded: codes, ids and centroids.

    Args:
        key: Parsed.
        dimension: d of the vectors.
        entries: Chunks in the index.

    Returns:
        Bytes of one chunk, its code and its id of 8 bytes; and bytes of the whole.
    """
    index = create_index(key, dimension)  # owns what the next lines look at
    ivf = inverted_file(index)
    quantizer = faiss.downcast_index(ivf.quantizer)
    links = quantizer.hnsw.nb_neighbors(0) * 4 if isinstance(quantizer, faiss.IndexHNSW) else 0
    each = int(ivf.code_size) + 8
    return each, entries * each + key.lists * (4 * int(ivf.d) + links)


def train_index(
    key: IndexKey, points: np.ndarray, two_levels_above: int = _TWO_LEVELS_ABOVE
) -> faiss.Index:
    """Trains quantizers; the result holds no vectors.

    Args:
        key: What to train.
        points: float32 [n, d].
        two_levels_above: Lists from which the centroids come from k-means within the clusters of
            another k-means.

    Returns:
        The trained index, called the template.

    Raises:
        IndexKeyError: There are too few points.
    """
    check_trainable(key, len(points))
    use_faiss_threads(_THREADS)
    index = create_index(key, points.shape[1])
    ivf = inverted_file(index)
    ivf.cp.seed = _SEED
    # Keys with fewer points than Faiss likes have been refused or chosen already.
    ivf.cp.min_points_per_centroid = 1
    ivf.cp.max_points_per_centroid = MAX_POINTS_PER_LIST
    quantizer = faiss.downcast_index(ivf.quantizer)
    if isinstance(quantizer, faiss.IndexHNSW):
        quantizer.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
        quantizer.hnsw.efSearch = _HNSW_EF_SEARCH
    if isinstance(ivf, faiss.IndexIVFPQ):
        ivf.by_residual = key.by_residual
        ivf.pq.cp.min_points_per_centroid = 1
    if isinstance(index, faiss.IndexPreTransform):
        for position in range(index.chain.size()):
            rotation = faiss.downcast_VectorTransform(index.chain.at(position))
            if isinstance(rotation, faiss.OPQMatrix):
                rotation.pq = _quiet_product_quantizer(rotation, key)
    if key.lists > two_levels_above:
        _place_centroids(index, ivf, points)
    index.train(points)
    return index


def _place_centroids(index: faiss.Index, ivf: faiss.IndexIVF, points: np.ndarray) -> None:
    """Fills the coarse quantizer, so that training the index leaves it as it is."""
    if isinstance(index, faiss.IndexPreTransform):
        for position in range(index.chain.size()):
            rotation = faiss.downcast_VectorTransform(index.chain.at(position))
            if not rotation.is_trained:
                rotation.train(points)
            points = rotation.apply(points)
    centroids, _ = two_level_clustering(
        points, math.isqrt(ivf.nlist), ivf.nlist, seed=_SEED, min_points_per_centroid=1
    )
    ivf.quantizer.train(centroids)
    ivf.quantizer.add(centroids)


def _quiet_product_quantizer(rotation: faiss.OPQMatrix, key: IndexKey) -> faiss.ProductQuantizer:
    """The quantizer that OPQ trains with, which would warn of few points for every sub-quantizer."""
    quantizer = faiss.ProductQuantizer(rotation.d_out, rotation.M, min(key.bits, 8))
    quantizer.cp.min_points_per_centroid = 1
    quantizer.this.disown()
    return quantizer


def train_part(
    parts: Sequence[PartKeys],
    key: IndexKey,
    seed: int,
    folder: Folder,
    report: Callable[[int], None],
) -> tuple[FileEntry, int]:
    """Samples, trains and writes the template.

    Args:
        parts: All keys.
        key: What to train.
        seed: Decides the sample.
        folder: The database.
        report: Told how many keys were sampled.

    Returns:
        Its file, and how many points trained it.

    Raises:
        CorpusError: There is no key at all.
        IndexKeyError: There are too few.
    """
    points = sample_keys(parts, max(key.lists, key.codebook_size) * MAX_POINTS_PER_LIST, seed)
    if not len(points):
        raise CorpusError(
            "corpus: no chunk has a word that the encoder knows; check the text field"
        )
    report(len(points))
    index = train_index(key, points)
    with folder.writing(PATH) as temporary:
        faiss.write_index(index, str(temporary))
        return describe(temporary, PATH), len(points)
