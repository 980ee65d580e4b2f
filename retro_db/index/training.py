"""Training: once, on a uniform sample of all embeddings, never on a prefix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from retro_db.config import in_units
from retro_db.errors import CorpusError, IndexKeyError
from retro_db.hashing import fractions_of
from retro_db.index.keys import (
    MAX_POINTS_PER_LIST,
    POINT_COPIES,
    IndexKey,
    check_trainable,
    needed_points,
)
from retro_db.index.part_embeddings import PartEmbeddings
from retro_db.index.refining import FINE_PATH, train_fine
from retro_db.index.structure import faiss, inverted_file, is_embedded, widen
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.threads import use_faiss_threads

from faiss.contrib.clustering import two_level_clustering  # isort: skip


PATH = "index/trained.faissindex"
# k-means and rotations differ in their last bits between one thread and several: so the number of
# threads must depend neither on the workers nor on the cores.
_THREADS = 2
_SEED = 1234
# k-means takes time by points times centroids: above this number of lists, two levels of it take time
# by the square root of the centroids, at little loss.
_TWO_LEVELS_ABOVE = 100_000
# The graph over centroids is searched wide at construction: an embedding in the wrong list is lost.
_HNSW_EF_CONSTRUCTION = 200
HNSW_EF_SEARCH = 128


_TRANSFORMS = (
    faiss.OPQMatrix,
    faiss.PCAMatrix,
    faiss.RandomRotationMatrix,
    faiss.RemapDimensionsTransform,
)
_LISTS = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFRaBitQ)
_QUANTIZERS = (faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexHNSWFlat)


@dataclass(frozen=True)
class Sampling:
    """A uniform sample of the indexed embeddings, chosen by hashing chunk ids.

    Attributes:
        dimension: d of the embeddings.
        entries: Number of chunks of the training split in all parts.
        points: Expected size of the sample; all embeddings if it exceeds `entries`.
        seed: Seed of the hash.
    """

    dimension: int
    entries: int
    points: int
    seed: int

    @property
    def share(self) -> float:
        """Share of the embeddings that are chosen, 0 to 1."""
        return min(1.0, self.points / max(self.entries, 1))

    @property
    def most_points(self) -> int:
        """Largest size of the sample."""
        return min(self.entries, _upper_bound(self.points))


def sample_embeddings(parts: Iterable[PartEmbeddings], sampling: Sampling) -> np.ndarray:
    """Samples the indexed embeddings, in id order.

    Args:
        parts: All parts, read once.
        sampling: Size and seed of the sample.

    Returns:
        float32 [about points, d].
    """
    # Filled in place: pieces that are joined at the end would take twice the memory.
    sample, filled = np.empty((sampling.most_points, sampling.dimension), np.float32), 0
    for part in parts:
        step = part.embeddings.batch_rows
        rows = np.flatnonzero(part.in_training_split)
        rows = rows[fractions_of(rows + part.first_id, sampling.seed) < sampling.share]
        for start in np.unique(rows // step) * step:
            batch_rows = rows[(rows >= start) & (rows < start + step)] - start
            embeddings = part.embeddings.read("vector", int(start), int(start) + step)[batch_rows]
            chosen = embeddings[is_embedded(embeddings)][: len(sample) - filled]
            sample[filled : filled + len(chosen)] = widen(chosen)
            filled += len(chosen)
    return sample[:filled]


def _upper_bound(points: int) -> int:
    """Six standard deviations above the expected points of a hashed sample, which stays below that."""
    return points + 6 * math.isqrt(points) + 6


def training_points(key: IndexKey, dimension: int, entries: int, memory: int) -> int:
    """Counts the points that train an index key: 256 a list, fewer if the corpus or the memory ends.

    Args:
        key: The parsed index key.
        dimension: d of the embeddings.
        entries: Number of chunks that can train it.
        memory: Bytes that training may take.

    Returns:
        A number of points.

    Raises:
        IndexKeyError: Too few chunks, or too little memory for 30 points a list.
    """
    check_trainable(key, entries)
    wanted = max(key.lists, key.codebook_size) * MAX_POINTS_PER_LIST
    each = POINT_COPIES * 4 * dimension
    # A hashed sample may exceed its expected size.
    least = min(entries, _upper_bound(needed_points(key)))
    if memory // each < least:
        raise IndexKeyError(
            f"index.memory: training {key.text} takes {in_units(least * each)}, more than the "
            f"{in_units(memory)} allowed; raise it, or give an index.key with fewer lists"
        )
    return max(min(wanted, memory // each), least)


def create_index(key: IndexKey, dimension: int) -> faiss.Index:
    """Creates the empty, untrained index of a key.

    Args:
        key: The parsed index key.
        dimension: d of the embeddings.

    Returns:
        An index with transforms, inverted lists and codes, comparing by squared L2.

    Raises:
        IndexKeyError: Faiss does not know the key, or it has more than transforms, lists and codes.
    """
    try:
        index = faiss.index_factory(dimension, key.factory, faiss.METRIC_L2)
    except RuntimeError as error:
        raise IndexKeyError(
            f"index.key: Faiss does not take {key.text} for {dimension} dimensions; see its factory's "
            "language, or use auto"
        ) from error
    if name := _unsupported(index):
        raise IndexKeyError(
            f"index.key: {key.text}: {name} cannot be divided into partitions; use transforms (OPQ, PCA, "
            "RR), IVF with a flat or HNSW quantizer, and codes (Flat, PQ, PQ..x4fs, SQ, RaBitQ), such "
            "as OPQ48_192,IVF65536_HNSW32,PQ48"
        )
    return index


def _unsupported(index: faiss.Index) -> str | None:
    """Names the class of the first piece of an index that encoding and assembling do not support."""
    inner = index
    if isinstance(index, faiss.IndexPreTransform):
        for position in range(index.chain.size()):
            step = faiss.downcast_VectorTransform(index.chain.at(position))
            if type(step) not in _TRANSFORMS:
                return type(step).__name__
        inner = faiss.downcast_index(index.index)
    if type(inner) not in _LISTS:
        return type(inner).__name__
    quantizer = faiss.downcast_index(inner.quantizer)
    return None if type(quantizer) in _QUANTIZERS else type(quantizer).__name__


def predict_size(key: IndexKey, dimension: int, entries: int) -> tuple[int, int]:
    """Predicts the size of an index, on disk and loaded: codes, ids and centroids.

    Args:
        key: The parsed index key.
        dimension: d of the embeddings.
        entries: Number of chunks in the index.

    Returns:
        Bytes of one chunk, its code and its id of 8 bytes; and bytes of the whole index.
    """
    index = create_index(key, dimension)  # owns the objects that the next lines read
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
        key: The parsed index key.
        points: float32 [n, d].
        two_levels_above: Number of lists above which the centroids come from k-means within the
            clusters of another k-means.

    Returns:
        The trained index.

    Raises:
        IndexKeyError: There are too few points.
    """
    check_trainable(key, len(points))
    use_faiss_threads(_THREADS)
    index = create_index(key, points.shape[1])
    ivf = inverted_file(index)
    ivf.cp.seed = _SEED
    # Faiss would warn of few points; `check_trainable` has accepted them already.
    ivf.cp.min_points_per_centroid = 1
    ivf.cp.max_points_per_centroid = MAX_POINTS_PER_LIST
    quantizer = faiss.downcast_index(ivf.quantizer)
    if isinstance(quantizer, faiss.IndexHNSW):
        quantizer.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
        quantizer.hnsw.efSearch = HNSW_EF_SEARCH
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
    """Fills the coarse quantizer, so that training the index leaves it unchanged."""
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
    """Makes the quantizer that OPQ trains with: its own would warn of few points per sub-quantizer."""
    quantizer = faiss.ProductQuantizer(rotation.d_out, rotation.M, min(key.bits, 8))
    quantizer.cp.min_points_per_centroid = 1
    quantizer.this.disown()
    return quantizer


def train_part(
    parts: Iterable[PartEmbeddings],
    key: IndexKey,
    fine: str | None,
    sampling: Sampling,
    folder: Folder,
    report: Callable[[int], None],
) -> tuple[FileEntry, FileEntry | None, int]:
    """Samples, trains and writes the trained index.

    Args:
        parts: The embeddings of all parts, read once.
        key: The parsed index key.
        fine: Code to re-rank by if embeddings are not kept, else None.
        sampling: Size and seed of the training sample.
        folder: The database.
        report: Called with the number of embeddings that were sampled.

    Returns:
        The trained index's file, the file of the fine quantizer or None, and the number of points that
        trained them.

    Raises:
        CorpusError: The corpus has no embedding at all.
        IndexKeyError: The sample is too small.
    """
    sample = sample_embeddings(parts, sampling)
    if not len(sample):
        raise CorpusError(
            "corpus: no chunk has a word that the encoder knows; check the text field"
        )
    report(len(sample))
    trained_index = _write(train_index(key, sample), PATH, folder)
    quantizer = _write(train_fine(fine, sample), FINE_PATH, folder) if fine else None
    return trained_index, quantizer, len(sample)


def _write(index: faiss.Index, path: str, folder: Folder) -> FileEntry:
    with folder.writing(path) as temporary:
        faiss.write_index(index, str(temporary))
        return describe(temporary, path)
