"""Finds near-duplicate documents: compares pairs that share a band, and keeps one of each pair."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import pyarrow as pa
from xxhash import xxh3_128_digest

from retro_db.corpus.selection import DUPLICATE
from retro_db.corpus.verdicts import Verdict, read_verdicts, write_verdicts
from retro_db.screening.grams import jaccard
from retro_db.screening.screening import ScreenedShard
from retro_db.screening.signatures import SignatureFile
from retro_db.store.folder import Folder, TableEntry, describe

# A document's number over all shards: the shard's number in the high bits, the row in its signatures in
# the low ones.
_ROW_BITS = 40
# A band key and the number of its document.
BAND_ENTRY = np.dtype([("key", "<u8"), ("document", "<u8")])
# Most entries of one partition: 64 MB.
_PARTITION_ENTRIES = 1 << 22
# In a band with more different documents than this, only this many first ones are compared with all.
_MOST_COMPARED = 1000
_OPEN_FILES = 64
_PAIRS = pa.schema(
    [
        pa.field("first", pa.uint64()),
        pa.field("second", pa.uint64()),
        pa.field("similarity", pa.float64()),
    ]
)


@dataclass(frozen=True)
class SignedShard:
    """The signatures of one shard.

    Attributes:
        number: Number of the shard.
        file: File of its signatures.
    """

    number: int
    file: TableEntry


@dataclass(frozen=True)
class Pairs:
    """The near-duplicate pairs of one partition of the bands."""

    file: TableEntry


def count_partitions(documents: int, bands: int) -> int:
    """Number of partitions of the band keys, each small enough for one worker's memory.

    Args:
        documents: Number of documents with keys.
        bands: Number of keys of a document.
    """
    return max(1, -(-documents * bands // _PARTITION_ENTRIES))


def band_entries(
    shard: SignedShard, folder: Folder, partitions: int
) -> Iterator[tuple[int, bytes]]:
    """The band keys of a shard's documents, by partition.

    Args:
        shard: Signatures to read.
        folder: Folder of the database.
        partitions: Number of partitions that keys are divided among.

    Returns:
        Numbers of partitions, each with packed pairs of key and document, both little-endian uint64.
    """
    with folder.holding(shard.file) as path:
        keys = SignatureFile(path).keys
    entries = np.empty(keys.size, BAND_ENTRY)
    entries["key"] = keys.reshape(-1)
    documents = np.arange(len(keys), dtype=np.uint64) + np.uint64(shard.number << _ROW_BITS)
    entries["document"] = np.repeat(documents, keys.shape[1])
    partition = entries["key"] % np.uint64(partitions)
    order = np.argsort(partition, kind="stable")
    bounds = np.searchsorted(partition[order], np.arange(partitions + 1))
    for number, (low, high) in enumerate(pairwise(bounds)):
        if low < high:
            yield number, entries[order[low:high]].tobytes()


def find_pairs(
    partition: int,
    blocks: Iterable[bytes],
    shards: Sequence[SignedShard],
    similarity: float,
    folder: Folder,
) -> Pairs:
    """Compares documents that share a band, and writes the pairs that are close enough.

    Args:
        partition: Number of the partition of the band keys.
        blocks: Packed pairs that `band_entries` returned for the partition, in any order.
        shards: Signatures of all shards.
        similarity: Jaccard similarity from which a pair is close enough.
        folder: Folder of the database.

    Returns:
        The file of pairs, in order, the first document of each before the second.
    """
    entries = np.concatenate(
        [np.empty(0, BAND_ENTRY), *(np.frombuffer(block, BAND_ENTRY) for block in blocks)]
    )
    entries = entries[np.lexsort((entries["document"], entries["key"]))]
    files = _Signatures(shards, folder)
    same = np.flatnonzero(entries["key"][1:] == entries["key"][:-1])
    pairs: list[tuple[int, int, float]] = []
    # Runs of equal keys: each begins at a key whose successor is equal and whose predecessor is not.
    starts = same[np.diff(same, prepend=-2) > 1] if len(same) else same
    for start in starts.tolist():
        key = entries["key"][start]
        end = start + 1
        while end < len(entries) and entries["key"][end] == key:
            end += 1
        pairs += _close_pairs(key, entries["document"][start:end].tolist(), files, similarity)
    pairs.sort()
    path = f"state/pairs/part-{partition:07d}.arrow"
    columns = list(zip(*pairs, strict=True)) or [(), (), ()]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _PAIRS, strict=True)]
    with folder.writing(path) as file:
        with pa.ipc.new_file(str(file), _PAIRS) as sink:
            sink.write_table(pa.Table.from_arrays(arrays, schema=_PAIRS))
        return Pairs(describe(file, path, len(pairs)))


def _close_pairs(
    key: np.uint64, documents: Sequence[int], files: _Signatures, similarity: float
) -> Iterator[tuple[int, int, float]]:
    """Close pairs of one band, without pairs that share an earlier band, which were found there."""
    originals: dict[bytes, int] = {}
    different: list[int] = []
    width = len(files.keys(documents[0]))
    different_keys = np.empty((min(len(documents), _MOST_COMPARED), width), np.uint64)
    for second in documents:
        grams, keys = files.grams(second), files.keys(second)
        original = originals.setdefault(xxh3_128_digest(grams.tobytes()), second)
        if original != second:
            # The original is close to the same documents as its copy.
            if keys[0] == key:
                yield original, second, 1.0
            continue
        first_common = keys[np.argmax(different_keys[: len(different)] == keys, axis=1)]
        for number in np.flatnonzero(first_common == key):
            first = different[number]
            pair_similarity = jaccard(files.grams(first), grams)
            if pair_similarity >= similarity:
                yield first, second, pair_similarity
        if len(different) < len(different_keys):
            different_keys[len(different)] = keys
            different.append(second)


class _Signatures:
    """The signatures of all shards, by document number; few files are open at a time."""

    def __init__(self, shards: Sequence[SignedShard], folder: Folder) -> None:
        files = {shard.number: shard.file for shard in shards}

        def read(shard: int) -> SignatureFile:
            with folder.holding(files[shard]) as path:
                return SignatureFile(path)

        self._open = functools.lru_cache(_OPEN_FILES)(read)

    def _find(self, document: int) -> tuple[SignatureFile, int]:
        return self._open(document >> _ROW_BITS), document & ((1 << _ROW_BITS) - 1)

    def grams(self, document: int) -> np.ndarray:
        """Grams of a document, uint64 [g]."""
        file, row = self._find(document)
        return file.grams(row)

    def keys(self, document: int) -> np.ndarray:
        """Band keys of a document, uint64 [b]."""
        file, row = self._find(document)
        return file.keys[row]

    def describe(self, document: int) -> tuple[int, str]:
        """Number of a document's record in its shard, and its id."""
        file, row = self._find(document)
        return int(file.numbers[row]), file.id(row)


def keep_first(pairs: Iterable[tuple[int, int, float]]) -> dict[int, tuple[int, float]]:
    """Chooses the documents to drop: those close to an earlier document that is kept.

    Args:
        pairs: First document, second document and similarity, first < second, in any order.

    Returns:
        For each dropped document, the closest document that is kept (the first of several), and the
        similarity of the two.
    """
    dropped: dict[int, tuple[int, float]] = {}
    ordered = sorted(set(pairs), key=lambda pair: (pair[1], -pair[2], pair[0]))
    for second, group in groupby(ordered, key=lambda pair: pair[1]):
        for first, _, similarity in group:
            if first not in dropped:
                dropped[second] = (first, similarity)
                break
            if similarity == 1.0:
                # A copy of a dropped document is equally close to the document that is kept.
                dropped[second] = dropped[first]
                break
    return dropped


def resolve(
    screened: Mapping[int, ScreenedShard],
    shards: Sequence[SignedShard],
    pairs: Sequence[Pairs],
    sources: Mapping[int, str],
    folder: Folder,
) -> dict[int, TableEntry]:
    """Decides about all pairs, and writes new verdicts on every shard, leakage included.

    Args:
        screened: Files that screening wrote, by shard.
        shards: Signatures of the shards.
        pairs: Pairs of all partitions; they take some 200 bytes of memory each.
        sources: Name of each shard's source.
        folder: Folder of the database.

    Returns:
        The file of verdicts on each shard.
    """
    all_pairs: set[tuple[int, int, float]] = set()
    for partition in pairs:
        with folder.holding(partition.file) as path:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        all_pairs.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    files = _Signatures(shards, folder)
    verdicts = {number: read_verdicts(folder, shard.verdicts) for number, shard in screened.items()}
    for document, (kept, similarity) in sorted(keep_first(all_pairs).items()):
        number, _ = files.describe(document)
        _, kept_id = files.describe(kept)
        by = f"{sources[kept >> _ROW_BITS]}:{kept_id}"
        verdicts[document >> _ROW_BITS].append(Verdict(number, DUPLICATE, by, similarity))
    return {
        shard: write_verdicts(
            sorted(on_shard, key=lambda verdict: verdict.number), shard, "resolve", folder
        )
        for shard, on_shard in verdicts.items()
    }
