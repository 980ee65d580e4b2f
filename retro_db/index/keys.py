"""Index keys: Faiss's factory language, what a corpus can train, and the choice of `auto`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from retro_db.errors import IndexKeyError

# Below this number of chunks a full scan is as fast as any index, and exact.
FLAT_BELOW = 1_000
# Above this number of chunks the memory budget decides, and autofaiss proposes where it is installed.
PROPOSAL_ABOVE = 4_000_000
# Used where no proposal fits into the memory: InstructRetro's index (arXiv 2310.07713, appendix B) of
# 19 billion chunks.
_LARGEST_LISTS, _LARGEST_CODE = 1 << 22, 64
# Bytes of a code, the best first, and of the id beside it.
_CODE_SIZES, _ID_BYTES = (256, 128, 64, 32, 16, 8), 8
POINTS_PER_LIST = 30
MAX_POINTS_PER_LIST = 256
# Points that train the transforms before the lists, as Faiss's OPQ would choose of more; they are held as
# read, transformed, and in what OPQ needs.
TRANSFORM_POINTS, _TRANSFORM_COPIES = 1 << 16, 3

_IVF = re.compile(r"IVF(\d+)")
# The lists with what finds the nearest of them, which few lists do not need.
_QUANTIZER = re.compile(r"IVF\d+(_HNSW\d+|\([^)]*\))?")
_TRANSFORMS = re.compile(r"OPQ|PCA|RR|Pad")
_STEP = re.compile(r"(?P<kind>OPQ|PCAW?R?|RR|Pad)(?P<first>\d+)?(?:_(?P<second>\d+))?")
_PQ = re.compile(r"PQ(\d+)(?:x(\d+))?(fsr|fs|np)?$")


@dataclass(frozen=True)
class IndexKey:
    """A parsed index key, such as `OPQ48_192,IVF1024_HNSW32,PQ48` or `IVF128,PQ192x4fs`.

    Attributes:
        text: The key as given.
        lists: Number of inverted lists.
        sub_quantizers: Number of sub-quantizers of product-quantized codes; None for other codes.
        bits: Bits of each sub-quantizer.
        fast_scan: Whether the codes become FastScan when loaded; on disk they are plain.
        by_residual: Whether codes encode the residual to the list's centroid.
    """

    text: str
    lists: int
    sub_quantizers: int | None = None
    bits: int = 8
    fast_scan: bool = False
    by_residual: bool = True

    @property
    def factory(self) -> str:
        """Key for `faiss.index_factory`: with plain codes, and without polysemous training."""
        if self.sub_quantizers is None:
            return self.text
        return _PQ.sub(f"PQ{self.sub_quantizers}x{self.bits}np", self.text)

    @property
    def has_transforms(self) -> bool:
        """Whether vectors are transformed before the lists."""
        return bool(_TRANSFORMS.match(self.text))

    @property
    def codebook_size(self) -> int:
        """Number of centroids of one sub-quantizer: the least number of points that train it."""
        return 0 if self.sub_quantizers is None else 1 << self.bits


def parse_key(text: str, dimension: int) -> IndexKey:
    """Parses an index key.

    Args:
        text: The key, in the language of Faiss's index factory.
        dimension: d of the embeddings.

    Returns:
        The parsed key.

    Raises:
        IndexKeyError: The key has no inverted lists, a transform does not fit the vectors that it gets, or
            the sub-quantizers do not divide the vectors.
    """
    lists = _IVF.search(text)
    if lists is None or int(lists[1]) < 1:
        raise IndexKeyError(
            f"index.key: {text} has no inverted lists; use a key such as IVF1024,PQ48, or auto"
        )
    _check_transforms(text, dimension)
    codes = _PQ.search(text)
    if codes is None:
        return IndexKey(text, int(lists[1]))
    count, bits, suffix = int(codes[1]), int(codes[2] or 8), codes[3]
    fast_scan = suffix in ("fs", "fsr")
    if fast_scan and bits != 4:
        raise IndexKeyError(
            f"index.key: {text}: FastScan needs 4-bit codes; use PQ{count}x4{suffix}"
        )
    width = _coded_dimension(text, dimension)
    if count < 1 or width % count:
        raise IndexKeyError(
            f"index.key: {text}: {count} sub-quantizers do not divide {width} dimensions; use auto, or "
            f"PQ{_divisor(width, count)}"
        )
    return IndexKey(
        text, int(lists[1]), count, bits, fast_scan=fast_scan, by_residual=suffix != "fs"
    )


def choose_key(chunks: int, dimension: int, memory: int) -> str:
    """Chooses the index key for `auto`.

    Below 1,000 chunks a single flat list. Up to some millions 2 sqrt(N) lists, at most N / 30 so that
    they can be trained, and 4-bit product codes of d / 2 sub-quantizers searched as FastScan, whose
    candidates are re-ranked exactly: these train in seconds, and a quarter of the lists gives recall
    0.98 and more. Above, autofaiss's proposal for the memory, or where it is not installed the largest
    codes that fit; with at most as many lists as the memory can train. Where even the smallest codes
    exceed the memory, the index is searched one group of partitions after another anyway: then codes of
    64 bytes, in as many lists as the memory can train.

    Args:
        chunks: N, the number of entries of the index.
        dimension: d.
        memory: Bytes that the index may use.

    Returns:
        An index key that N chunks can train.
    """
    if chunks < FLAT_BELOW:
        return "IVF1,Flat"
    if chunks > PROPOSAL_ABOVE:
        return _proposed_key(chunks, dimension, memory)
    codes = f"PQ{_halves(dimension)}x4fs"
    trained = _trainable_lists(f"IVF1,{codes}", dimension, memory)
    lists = max(1, min(round(2 * math.sqrt(chunks)), chunks // POINTS_PER_LIST, trained))
    return f"IVF{lists},{codes}"


def needed_points(key: IndexKey) -> int:
    """Counts the fewest points that train an index key: 30 a list, one for each code of a sub-quantizer.

    A PCA needs as many points as it keeps dimensions.
    """
    lists = key.lists * POINTS_PER_LIST if key.lists > 1 else 1
    return max(lists, key.codebook_size, *_kept_dimensions(key))


def training_bytes(key: IndexKey, dimension: int, points: int) -> int:
    """Memory that training takes: that of its transforms, or after them that of all points.

    A point takes its transformed vector, float32 [d'], a quarter as much for centroids and for the clusters
    that threads refine, and 24 bytes that sort it by cluster.

    Args:
        key: The parsed index key.
        dimension: d of the embeddings.
        points: Number of points.
    """
    few = min(points, TRANSFORM_POINTS) if key.has_transforms else 0
    return max(points * _point_bytes(key, dimension), few * _TRANSFORM_COPIES * 4 * dimension)


def points_within(key: IndexKey, dimension: int, memory: int) -> int:
    """Counts the points that some bytes of memory can train, the other way round."""
    points = memory // _point_bytes(key, dimension)
    if training_bytes(key, dimension, points) > memory:
        return memory // (_TRANSFORM_COPIES * 4 * dimension)
    return points


def _point_bytes(key: IndexKey, dimension: int) -> int:
    return 5 * _coded_dimension(key.text, dimension) + 24


def most_points(points: int) -> int:
    """Bounds a hashed sample of so many expected points: six standard deviations above."""
    return points + 6 * math.isqrt(points) + 6


def needed_transform_points(key: IndexKey) -> int:
    """Counts the fewest points that train the transforms: as many as an OPQ has codes, or a PCA keeps."""
    return max(min(key.codebook_size, 256), *_kept_dimensions(key), 1)


def _kept_dimensions(key: IndexKey) -> list[int]:
    return [int(match[1]) for match in re.finditer(r"PCAW?R?(\d+)", key.text)]


def check_trainable(key: IndexKey, points: int) -> None:
    """Refuses an index key that needs more points than the corpus has.

    Args:
        key: The parsed index key.
        points: Number of embeddings that can train it.

    Raises:
        IndexKeyError: Names the key, how many points it needs and gets, and a key that would train.
    """
    needed = needed_points(key)
    if points < needed:
        raise IndexKeyError(
            f"index.key: {key.text} needs {needed:,} chunks to train and the corpus has {points:,}; "
            f"{smaller_key(key, points)}"
        )


def smaller_key(key: IndexKey, points: int) -> str:
    """What to use in place of an index key that needs more points: fewer lists, if that is enough.

    Args:
        key: The parsed index key.
        points: Number of embeddings that can train it.
    """
    lists = max(points // POINTS_PER_LIST, 1)
    smaller = replace(key, text=_QUANTIZER.sub(f"IVF{lists}", key.text), lists=lists)
    is_trained = needed_points(smaller) <= points
    return f"use auto, or {smaller.text}" if is_trained else "use auto"


def reduce_key(text: str, points: int, dimension: int) -> str:
    """Reduces an index key to one that a sample can train: fewer lists, smaller codes, no graph.

    Used by smoke builds, which run the same stages on a sample.

    Args:
        text: The index key of the whole build.
        points: Number of chunks of the sample.
        dimension: d of the embeddings.

    Returns:
        An index key that passes `check_trainable`.
    """
    key = parse_key(text, dimension)
    lists = max(min(key.lists, 2 ** int(math.log2(max(points / POINTS_PER_LIST, 1)))), 1)
    if lists < key.lists:
        text = _QUANTIZER.sub(f"IVF{lists}", text)
    if key.codebook_size > points:
        bits = int(math.log2(points))
        if bits < 1:
            return "IVF1,Flat"
        text = _PQ.sub(f"PQ{key.sub_quantizers}x{min(bits, 4)}np", text)
    return text


def _proposed_key(chunks: int, dimension: int, memory: int) -> str:
    try:
        from autofaiss.external.optimize import get_optimal_index_keys_v2
    except ModuleNotFoundError:  # it has no release for the NumPy of Python 3.13
        return _fitting_key(chunks, dimension, memory)
    proposals = get_optimal_index_keys_v2(
        chunks,
        dimension,
        f"{memory // 1_000_000}MB",
        should_be_memory_mappable=True,
    )
    if not proposals:
        return _streamed_key(dimension, memory)
    corrected = _corrected(proposals[0], dimension)
    most_lists = _trainable_power(corrected, dimension, memory)
    return re.sub(_IVF, lambda match: f"IVF{min(int(match[1]), most_lists)}", corrected)


def _fitting_key(chunks: int, dimension: int, memory: int) -> str:
    """Chooses the largest codes with which the index fits into the memory, in about 16 sqrt(N) lists."""
    fitting = (size for size in _CODE_SIZES if chunks * (size + _ID_BYTES) <= memory)
    size = next((size for size in fitting if size <= dimension), None)
    if size is None:
        return _streamed_key(dimension, memory)
    lists = 1 << round(math.log2(16 * math.sqrt(chunks)))
    return _rotated_key(size, 4 * size, lists, dimension, memory)


def _streamed_key(dimension: int, memory: int) -> str:
    """Chooses the key of an index that is searched one group of partitions after another."""
    size = min(_LARGEST_CODE, dimension)
    return _rotated_key(size, 2 * size, _LARGEST_LISTS, dimension, memory)


def _rotated_key(size: int, width: int, most_lists: int, dimension: int, memory: int) -> str:
    """Names the key of codes of rotated vectors, in as many lists as the memory can train.

    Args:
        size: Bytes of a code.
        width: Dimensions of the rotated vectors, if the embeddings have as many.
        most_lists: Most lists that it gets.
        dimension: d of the embeddings.
        memory: Bytes that training may take.
    """
    width = min(width, dimension // size * size)
    key = f"OPQ{size}_{width},IVF{{}}_HNSW32,PQ{size}np"
    trained = _trainable_power(key.format(most_lists), dimension, memory)
    return key.format(min(most_lists, trained))


def _trainable_lists(text: str, dimension: int, memory: int) -> int:
    """Lists of a key that the memory can train, whose sample may exceed its expected size."""
    points = points_within(parse_key(text, dimension), dimension, memory)
    # The largest p with `most_points(p)` within them.
    expected = max(0, math.isqrt(points + 3) - 4) ** 2
    return expected // POINTS_PER_LIST


def _trainable_power(text: str, dimension: int, memory: int) -> int:
    """The largest power of two among numbers of lists that the memory can train."""
    return 1 << int(math.log2(max(1, _trainable_lists(text, dimension, memory))))


def _corrected(proposal: str, dimension: int) -> str:
    """Removes polysemous training from autofaiss's key, and narrows its rotation to the vectors."""

    def narrowed(match: re.Match[str]) -> str:
        blocks = int(match[1])
        width = min(int(match[2]), dimension // blocks * blocks)
        return f"OPQ{blocks}_{width}"

    return re.sub(r"OPQ(\d+)_(\d+)", narrowed, re.sub(r"(PQ\d+)x8$", r"\1np", proposal))


def _transforms(text: str, dimension: int) -> Iterator[tuple[str, int, int]]:
    """The transforms of a key in order: each as written, with the dimensions that it gets and gives."""
    for step in text.split(","):
        if match := _STEP.fullmatch(step.strip()):
            size = match["second"] if match["kind"] == "OPQ" else match["first"]
            given = int(size) if size else dimension
            yield match[0], dimension, given
            dimension = given


def _check_transforms(text: str, dimension: int) -> None:
    """Refuses transforms that Faiss would refuse when it trains them, after all was embedded."""
    for step, before, after in _transforms(text, dimension):
        if step.startswith("PCA") and not 1 <= after <= before:
            raise IndexKeyError(
                f"index.key: {text}: {step} cannot give {after} dimensions of {before}; use at most "
                f"PCA{before}"
            )
        blocks = int(step.removeprefix("OPQ").split("_")[0] or 0) if step.startswith("OPQ") else 1
        if blocks < 1 or after < 1 or after % blocks:
            raise IndexKeyError(
                f"index.key: {text}: the {blocks} blocks of {step} do not divide {after} dimensions"
            )


def _coded_dimension(text: str, dimension: int) -> int:
    """Dimensions that the codes get after the transforms of a key."""
    for _, _, given in _transforms(text, dimension):
        dimension = given
    return dimension


def _divisor(width: int, most: int) -> int:
    """The largest divisor of a width that is at most so large."""
    return max(n for n in range(1, max(most, 1) + 1) if width % n == 0)


def _halves(dimension: int) -> int:
    """D / 2 sub-quantizers, or d of them for an odd d."""
    return dimension // 2 if dimension % 2 == 0 else dimension
