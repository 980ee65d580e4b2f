"""Training: once, on a uniform sample of all keys, never on a prefix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

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
from retro_db.index.part_keys import PartKeys
from retro_db.index.refining import FINE_PATH, train_fine
from retro_db.index.structure import faiss, inverted_file, keyed, widen
from retro_db.store.folder import FileEntry, Folder, describe
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
HNSW_EF_SEARCH = 128


_TRANSFORMS = (
    faiss.OPQMatrix,
    faiss.PCAMatrix,
    faiss.RandomRotationMatrix,
    faiss.RemapDimensionsTransform,
)
_LISTS = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFRaBitQ)
_QUANTIZERS = (faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexHNSWFlat)


def sample_keys(
    parts: Iterable[PartKeys], dimension: int, entries: int, points: int, seed: int
) -> np.ndarray:
    """A uniform sample of the indexed keys, in id order, chosen by hashing chunk ids.

    Args:
        parts: All of them, read once.
        dimension: d.
        entries: Chunks of the training split in all of them.
        points: Expected size; all keys where there are no more.
        seed: Decides which.

    Returns:
        float32 [about points, d].
    """
    share = min(1.0, points / max(entries, 1))
    # Filled in place: pieces that are joined at the end would take twice the memory.
    sample, filled = np.empty((min(entries, _surely(points)), dimension), np.float32), 0
    for part in parts:
        step = part.embeddings.batch_rows
        rows = np.flatnonzero(part.trained)
        rows = rows[fractions_of(rows + part.first_id, seed) < share]
        for start in np.unique(rows // step) * step:
            here = rows[(rows >= start) & (rows < start + step)] - start
            keys = part.embeddings.read("vector", int(start), int(start) + step)[here]
            chosen = keys[keyed(keys)][: len(sample) - filled]
            sample[filled : filled + len(chosen)] = widen(chosen)
            filled += len(chosen)
    return sample[:filled]


def _surely(points: int) -> int:
    """Six standard deviations above: what a hashed sample of so many expected points stays below."""
    return points + 6 * math.isqrt(points) + 6


def training_points(key: IndexKey, dimension: int, entries: int, memory: int) -> int:
    """How many points train a key: 256 a list, fewer where there are no more or memory ends.

    Args:
        key: What is to be trained.
        dimension: d of the vectors.
        entries: Chunks that there are.
        memory: Bytes that training may take.

    Returns:
        Points.

    Raises:
        IndexKeyError: Too few chunks, or too little memory for 30 points a list.
    """
    check_trainable(key, entries)
    wanted = max(key.lists, key.codebook_size) * MAX_POINTS_PER_LIST
    each = POINT_COPIES * 4 * dimension
    # A hashed sample is not of the very size that was asked for.
    least = min(entries, _surely(needed_points(key)))
    if memory // each < least:
        raise IndexKeyError(
            f"index.memory: training {key.text} takes {in_units(least * each)}, more than the "
            f"{in_units(memory)} allowed; raise it, or give an index.key with fewer lists"
        )
    return max(min(wanted, memory // each), least)


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
    if odd := _unsupported(index):
        raise IndexKeyError(
            f"index.key: {key.text}: {odd} cannot be divided into partitions; use transforms (OPQ, PCA, "
            "RR), IVF with a flat or HNSW quantizer, and codes (Flat, PQ, PQ..x4fs, SQ, RaBitQ), such "
            "as OPQ48_192,IVF65536_HNSW32,PQ48"
        )
    return index


def _unsupported(index: faiss.Index) -> str | None:
    """The class of the first part of an index that does not go through encoding and assembling."""
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
    parts: Iterable[PartKeys],
    key: IndexKey,
    fine: str | None,
    dimension: int,
    entries: int,
    points: int,
    seed: int,
    folder: Folder,
    report: Callable[[int], None],
) -> tuple[FileEntry, FileEntry | None, int]:
    """Samples, trains and writes the template.

    Args:
        parts: All keys, read once.
        key: What to train.
        fine: Code to re-rank by, where keys are not kept.
        dimension: d.
        entries: Chunks of the training split.
        points: How many of them to train with.
        seed: Decides the sample.
        folder: The database.
        report: Told how many keys were sampled.

    Returns:
        Its file, the fine quantizer's if there is one, and how many points trained them.

    Raises:
        CorpusError: There is no key at all.
        IndexKeyError: There are too few.
    """
    sample = sample_keys(parts, dimension, entries, points, seed)
    if not len(sample):
        raise CorpusError(
            "corpus: no chunk has a word that the encoder knows; check the text field"
        )
    report(len(sample))
    template = _write(train_index(key, sample), PATH, folder)
    quantizer = _write(train_fine(fine, sample), FINE_PATH, folder) if fine else None
    return template, quantizer, len(sample)


def _write(index: faiss.Index, path: str, folder: Folder) -> FileEntry:
    with folder.writing(path) as temporary:
        faiss.write_index(index, str(temporary))
        return describe(temporary, path)
