"""The spatial order of lists, and the partitions of the join: ranges of it.

Near lists lie side by side in the order, so that a query's lists are in few partitions. It exists for the
join alone: the files of the index keep the order of training.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from retro_db.index.structure import faiss
from retro_db.store.folder import FileEntry, Folder, describe
from retro_db.threads import use_faiss_threads

PATH = "state/join/order.npz"
# Within so few lists their order is of no account.
_LEAF = 8
_ROUNDS = 8


@dataclass(frozen=True)
class Order:
    """The lists in spatial order, cut into partitions.

    Attributes:
        places: int64 [lists], place of each list of the index in the order.
        cuts: int64 [partitions + 1], first place of each partition, and the number of lists.
    """

    places: np.ndarray
    cuts: np.ndarray

    @property
    def partitions(self) -> int:
        """Number of partitions."""
        return len(self.cuts) - 1

    def partition_of(self, places: np.ndarray) -> np.ndarray:
        """Partition of each place: int64, in the shape of the places."""
        return np.searchsorted(self.cuts, places, side="right") - 1

    @classmethod
    def read(cls, folder: Folder) -> Self:
        """Reads the order that a build has written."""
        with np.load(io.BytesIO(folder.read(PATH))) as arrays:
            return cls(arrays["places"], arrays["cuts"])

    def write(self, folder: Folder) -> FileEntry:
        """Writes it to its place in the folder."""
        with folder.writing(PATH) as temporary:
            with temporary.open("wb") as file:
                np.savez(file, places=self.places, cuts=self.cuts)
            return describe(temporary, PATH)


def order_lists(centroids: np.ndarray) -> np.ndarray:
    """Orders lists by a tree that divides their centroids in two, again and again, by 2-means.

    Args:
        centroids: float32 [lists, d].

    Returns:
        int64 [lists], the lists in order.
    """
    use_faiss_threads(1)
    pending, ordered = [np.arange(len(centroids))], []
    while pending:
        lists = pending.pop()
        side = _halves(centroids[lists]) if len(lists) > _LEAF else None
        if side is None:
            ordered.append(lists)
        else:
            pending += [lists[side], lists[~side]]
    return np.concatenate(ordered)


def _halves(points: np.ndarray) -> np.ndarray | None:
    """Which points belong to the second of two clusters: bool [n]; None if they are not to be divided."""
    centers = points[[0, len(points) // 2]].copy()
    side = np.zeros(len(points), bool)
    for _ in range(_ROUNDS):
        distances = faiss.pairwise_distances(points, centers)
        nearer = distances[:, 1] < distances[:, 0]
        if nearer.all() or not nearer.any():
            return None
        if (nearer == side).all():
            break
        side = nearer
        centers = np.stack([points[~side].mean(axis=0), points[side].mean(axis=0)])
    return side


def cut_partitions(lengths: np.ndarray, most_keys: int) -> np.ndarray:
    """Cuts lists into as few partitions as hold at most a number of keys each, of about equal size.

    Args:
        lengths: int64 [lists], keys of each list, in the spatial order.
        most_keys: Keys of a partition; a list is never cut, so that a longer one is alone.

    Returns:
        int64 [partitions + 1], first list of each, and the number of lists.
    """
    sums = np.cumsum(lengths)
    fewest = len(_filled(sums, most_keys))
    low, high = -(-int(sums[-1]) // fewest), most_keys
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(sums, middle)) == fewest else (middle + 1, high)
    return _filled(sums, high)


def _filled(sums: np.ndarray, most_keys: int) -> np.ndarray:
    """First list of each partition, and the number of lists, if each takes as many lists as fit."""
    cuts = [0]
    while cuts[-1] < len(sums):
        before = int(sums[cuts[-1] - 1]) if cuts[-1] else 0
        end = int(np.searchsorted(sums, before + most_keys, side="right"))
        cuts.append(max(end, cuts[-1] + 1))
    return np.array(cuts, np.int64)


def cut_equally(lengths: np.ndarray, partitions: int) -> np.ndarray:
    """Cuts lists into a number of partitions of about equal size, fewer if there are too few lists.

    Args:
        lengths: int64 [lists], keys of each list, in the spatial order.
        partitions: Number of partitions.

    Returns:
        int64 [partitions + 1], as `cut_partitions`.
    """
    sums = np.cumsum(lengths)
    wanted = sums[-1] * np.arange(1, partitions) / partitions
    inner = np.searchsorted(sums, wanted, side="left") + 1
    return np.unique(np.concatenate([[0], inner[inner < len(lengths)], [len(lengths)]]))


def partition_waves(visits: Sequence[int], most: int | None) -> list[range]:
    """Gathers partitions whose queries are on their way to others at the same time.

    Args:
        visits: For each partition, the bytes of its queries' visits to others.
        most: Bytes at a time; None for no limit.

    Returns:
        Consecutive partitions of each wave: at most `most` bytes, or a single partition.
    """
    waves, first, taken = [], 0, 0
    for number, size in enumerate(visits):
        if most is not None and number > first and taken + size > most:
            waves.append(range(first, number))
            first, taken = number, 0
        taken += size
    return [*waves, range(first, len(visits))]
