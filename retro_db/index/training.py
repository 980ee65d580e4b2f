"""Training: once, on a uniform sample of all embeddings, never on a prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from retro_db.config import in_units
from retro_db.errors import CorpusError, IndexKeyError
from retro_db.index.keys import (
    MAX_POINTS_PER_LIST,
    TRANSFORM_POINTS,
    IndexKey,
    check_trainable,
    most_points,
    needed_points,
    needed_transform_points,
    points_within,
    training_bytes,
)
from retro_db.index.kmeans import cluster, cluster_in_levels
from retro_db.index.part_embeddings import PartEmbeddings
from retro_db.index.refining import FINE_PATH, train_fine
from retro_db.index.structure import faiss, inverted_file, transform, widen
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.threads import use_faiss_threads

PATH = "index/trained.faissindex"
# Rotations and code books differ in their last bits between one thread and several: so the number of
# threads must depend neither on the workers nor on the cores.
_THREADS = 2
_SEED = 1234
# k-means takes time by points times centroids: above this number of lists, two levels of it take time
# by the square root of the centroids, at little loss.
_TWO_LEVELS_ABOVE = 100_000
# Points that code books are trained with, if they do not need more; Faiss may take fewer.
_CODE_POINTS = 1 << 17
# Points that are transformed at a time: products of another number of rows have other last bits.
_TRANSFORMED = 8192
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
        return min(self.entries, most_points(self.points))


class Points(Protocol):
    """Embeddings that can train the index."""

    def read(self, share: float, seed: int) -> Iterator[np.ndarray]:
        """Yields the indexed embeddings of chunks whose hash lies below a share, in the order of ids.

        Args:
            share: Share of all, 0 to 1.
            seed: Seed of the hash.

        Yields:
            float16 [n, d].
        """


@dataclass(frozen=True)
class StoredPoints:
    """The embeddings of all parts.

    Attributes:
        open_parts: Opens one part after another.
    """

    open_parts: Callable[[], Iterable[PartEmbeddings]]

    def read(self, share: float, seed: int) -> Iterator[np.ndarray]:
        """Reads the parts one after another."""
        for part in self.open_parts():
            yield from part.below(share, seed)


def sample_points(
    points: Points, sampling: Sampling, transforms: faiss.Index | None = None
) -> np.ndarray:
    """Samples the indexed embeddings, in id order.

    Args:
        points: The embeddings.
        sampling: Size and seed of the sample.
        transforms: Index whose transforms are applied; none are by default.

    Returns:
        float32 [about points, d'].
    """
    width = inverted_file(transforms).d if transforms else sampling.dimension
    use_faiss_threads(1)
    # Filled in place: pieces that are joined at the end would take twice the memory.
    sample, filled = np.empty((sampling.most_points, width), np.float32), 0
    for embeddings in _blocks(points.read(sampling.share, sampling.seed)):
        chosen = widen(embeddings[: len(sample) - filled])
        if transforms:
            chosen = transform(transforms, chosen)
        sample[filled : filled + len(chosen)] = chosen
        filled += len(chosen)
    return sample[:filled]


def _blocks(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Divides rows that come in batches of any size into blocks of one size, but for the last."""
    waiting: list[np.ndarray] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        if count >= _TRANSFORMED:
            rows = np.concatenate(waiting)
            whole = count // _TRANSFORMED * _TRANSFORMED
            yield from np.split(rows[:whole], range(_TRANSFORMED, whole, _TRANSFORMED))
            waiting, count = [rows[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


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
    # A hashed sample may exceed its expected size.
    least = min(entries, most_points(needed_points(key)))
    affordable = points_within(key, dimension, memory)
    if affordable < least:
        raise IndexKeyError(
            f"index.memory: training {key.text} takes {in_units(training_bytes(key, dimension, least))}, "
            f"more than the {in_units(memory)} allowed; raise it, or give an index.key with fewer lists"
        )
    return max(min(wanted, affordable), least)


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


def train_transforms(key: IndexKey, points: np.ndarray) -> faiss.Index:
    """Creates an index whose transforms before the lists are trained.

    Args:
        key: The parsed index key.
        points: float32 [n, d]; some of those that train the lists are enough.

    Returns:
        The index, without centroids and codes.

    Raises:
        IndexKeyError: Faiss does not take the key, or there are too few points.
    """
    if key.has_transforms and len(points) < needed_transform_points(key):
        check_trainable(key, len(points))
    use_faiss_threads(_THREADS)
    index = create_index(key, points.shape[1])
    if isinstance(index, faiss.IndexPreTransform):
        last = index.chain.size() - 1
        for position in range(last + 1):
            step = faiss.downcast_VectorTransform(index.chain.at(position))
            if isinstance(step, faiss.OPQMatrix):
                step.pq = _quiet_product_quantizer(step, key)
            if not step.is_trained:
                step.train(points)
            if position < last:
                points = step.apply(points)
    return index


def train_lists(
    index: faiss.Index,
    key: IndexKey,
    points: np.ndarray,
    threads: int,
    two_levels_above: int = _TWO_LEVELS_ABOVE,
) -> None:
    """Trains what is left of an index: centroids and code books.

    Args:
        index: What `train_transforms` returned.
        key: The parsed index key.
        points: float32 [n, d'], transformed.
        threads: Number of threads; the result does not depend on it.
        two_levels_above: Number of lists above which the centroids come from k-means within the
            clusters of another k-means.

    Raises:
        IndexKeyError: There are too few points.
    """
    check_trainable(key, len(points))
    ivf = inverted_file(index)
    quantizer = faiss.downcast_index(ivf.quantizer)
    if isinstance(quantizer, faiss.IndexHNSW):
        quantizer.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
        quantizer.hnsw.efSearch = HNSW_EF_SEARCH
    if isinstance(ivf, faiss.IndexIVFPQ):
        ivf.by_residual = key.by_residual
        ivf.pq.cp.min_points_per_centroid = 1
        # No tables for a search: none is made here.
        ivf.use_precomputed_table = -1
    place = cluster_in_levels if key.lists > two_levels_above else cluster
    centroids = place(points, key.lists, _SEED, threads)
    # Threads that build a graph together would link it by chance.
    use_faiss_threads(1)
    quantizer.train(centroids)
    quantizer.add(centroids)
    use_faiss_threads(_THREADS)
    # Leaves the centroids that are there.
    ivf.train(_spread(points, max(_CODE_POINTS, MAX_POINTS_PER_LIST * key.codebook_size)))
    index.is_trained = True


def train_index(key: IndexKey, points: np.ndarray, threads: int = _THREADS) -> faiss.Index:
    """Trains an index on points in memory; the result holds no vectors.

    Args:
        key: The parsed index key.
        points: float32 [n, d].
        threads: Number of threads; the result does not depend on it.

    Raises:
        IndexKeyError: There are too few points.
    """
    check_trainable(key, len(points))
    index = train_transforms(key, _spread(points, TRANSFORM_POINTS))
    train_lists(index, key, transform(index, points), threads)
    return index


def _spread(points: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the points, evenly spread: they come in the order of the corpus."""
    if len(points) <= most:
        return points
    return points[np.arange(most) * len(points) // most]


def _quiet_product_quantizer(rotation: faiss.OPQMatrix, key: IndexKey) -> faiss.ProductQuantizer:
    """Makes the quantizer that OPQ trains with: its own would warn of few points per sub-quantizer."""
    quantizer = faiss.ProductQuantizer(rotation.d_out, rotation.M, min(key.bits, 8))
    quantizer.cp.min_points_per_centroid = 1
    quantizer.this.disown()
    return quantizer


def train_and_write(
    points: Points,
    key: IndexKey,
    fine: str | None,
    sampling: Sampling,
    folder: Folder,
    meter: Meter,
    *,
    threads: int,
) -> tuple[FileEntry, FileEntry | None, int]:
    """Samples, trains and writes the trained index.

    The transforms are trained on a few points; then all of them are held once, transformed.

    Args:
        points: The embeddings, read twice where there are transforms or a fine code.
        key: The parsed index key.
        fine: Code to re-rank by if embeddings are not kept, else None.
        sampling: Size and seed of the training sample.
        folder: The database.
        meter: Counts the embeddings that were sampled, and seconds in `read`, `transforms` and `lists`.
        threads: Number of threads; the result does not depend on it.

    Returns:
        The trained index's file, the file of the fine quantizer or None, and the number of points that
        trained them.

    Raises:
        CorpusError: The corpus has no embedding at all.
        IndexKeyError: The sample is too small.
    """
    few = replace(sampling, points=min(sampling.points, TRANSFORM_POINTS))
    sample = np.empty((0, sampling.dimension), np.float32)
    if key.has_transforms or fine:
        with meter.timing("read"):
            sample = sample_points(points, few)
        _check_any(sample)
    with meter.timing("transforms"):
        index = train_transforms(key, sample)
        quantizer = _write(train_fine(fine, sample), FINE_PATH, folder) if fine else None
    del sample
    with meter.timing("read"):
        transformed = sample_points(points, sampling, index)
    _check_any(transformed)
    meter(len(transformed))
    with meter.timing("lists"):
        train_lists(index, key, transformed, threads)
    return _write(index, PATH, folder), quantizer, len(transformed)


def _check_any(sample: np.ndarray) -> None:
    if not len(sample):
        raise CorpusError(
            "corpus: no chunk has a word that the encoder knows; check the text field"
        )


def _write(index: faiss.Index, path: str, folder: Folder) -> FileEntry:
    with folder.writing(path) as temporary:
        faiss.write_index(index, str(temporary))
        return describe(temporary, path)
