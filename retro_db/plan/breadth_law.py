"""How many lists a chunk visits in a database that nobody has built, extrapolated from nested samples.

Two laws are fitted to what was measured in a sample of N chunks and in smaller ones within it:

    nprobe = A (lists / sqrt(n))^c          to the whole sample,
    nprobe = A (lists / sqrt(n))^c n^b      to all samples.

The first is the prediction: what small samples add to it, growing or shrinking, did not go on where more keys
were measured (docs/scale.md). But nobody can say what holds at thousands of times the sample: so the range is
as wide, to both sides, as the laws lie apart, and as the second errs. Samples so small that a quarter of
their lists must be visited are left out: there the whole sample bounds what is visited.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.errors import SampleError

# Samples are left out where more of their lists must be visited.
_MOST_SHARE = 0.25
# 90% of a normal deviation lies within so many standard deviations.
_Z90 = 1.645


@dataclass(frozen=True)
class MeasuredBreadth:
    """The lists that a recall takes in one sample.

    Attributes:
        chunks: Chunks of the sample.
        lists: Lists that they were divided into.
        nprobe: Lists to visit, between whole numbers where the recall lies between theirs.
    """

    chunks: int
    lists: int
    nprobe: float


@dataclass(frozen=True)
class PredictedBreadth:
    """The lists that a recall takes at full size, and between which numbers that is uncertain.

    Attributes:
        recall: Recall@10 among other documents.
        nprobe: Lists to visit.
        least: Lower end of its range.
        most: Upper end of its range.
    """

    recall: float
    nprobe: int
    least: int
    most: int


class BreadthLaw:
    """The lists that one recall takes, by the number of chunks and of lists.

    Args:
        recall: The recall.
        measured: What it takes in nested samples.

    Raises:
        SampleError: They are too small to say anything of larger ones.
    """

    def __init__(self, recall: float, measured: Sequence[MeasuredBreadth]) -> None:
        self._recall = recall
        largest = max(point.chunks for point in measured)
        points = [point for point in measured if point.nprobe <= _MOST_SHARE * point.lists]
        whole = [point for point in points if point.chunks == largest]
        if len(whole) < 2 or len(points) < len(whole) + 2:
            raise SampleError(
                f"recall {recall} takes more than a quarter of the lists of {largest:,} chunks, too many to "
                "say what it takes in more; give a database of more chunks"
            )
        self._at_whole = _Fit.of(whole, by_chunks=False)
        self._over_all = _Fit.of(points, by_chunks=True)

    def predict(self, chunks: int, lists: int) -> PredictedBreadth:
        """Predicts the lists to visit.

        Args:
            chunks: Number of chunks, N.
            lists: Number of lists.
        """
        power, _ = self._at_whole.at(chunks, lists)
        growing, error = self._over_all.at(chunks, lists)
        aside = abs(power - growing) + _Z90 * error
        nprobe, least, most = (
            min(lists, max(1, math.ceil(math.exp(end))))
            for end in (power, power - aside, power + aside)
        )
        return PredictedBreadth(self._recall, nprobe, least, most)


@dataclass(frozen=True)
class _Fit:
    """A law in logarithms, fitted by least squares.

    Attributes:
        coefficients: float64 [2 or 3], of 1, log(lists / sqrt(n)) and, if it grows with them, log n.
        covariance: Inverse of the product of the points with themselves.
        deviation: Standard deviation of what the law leaves.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    deviation: float

    @classmethod
    def of(cls, points: Sequence[MeasuredBreadth], *, by_chunks: bool) -> _Fit:
        terms = 3 if by_chunks else 2
        x = np.stack([_terms(point.chunks, point.lists)[:terms] for point in points])
        y = np.log([point.nprobe for point in points])
        coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
        left = y - x @ coefficients
        deviation = math.sqrt((left**2).sum() / max(len(points) - terms, 1))
        return cls(coefficients, np.linalg.pinv(x.T @ x), deviation)

    def at(self, chunks: int, lists: int) -> tuple[float, float]:
        """Logarithm of the lists to visit, and its standard error."""
        x = _terms(chunks, lists)[: len(self.coefficients)]
        error = self.deviation * math.sqrt(1 + x @ self.covariance @ x)
        return float(x @ self.coefficients), error


def _terms(chunks: int, lists: int) -> np.ndarray:
    return np.array([1.0, math.log(lists) - math.log(chunks) / 2, math.log(chunks)])
