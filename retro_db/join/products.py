"""Products of queries and keys whose sign says whether a key lies within a query's bound.

Let q and k be a query and a key, q' and k' their roundings to the type of the products, e = |q - q'| and
f = |k - k'|. If |q - k|^2 <= b then, with B = sqrt(b) + e, the triangle inequality gives |q' - k'| <= B + f:

    s = q'.k' + (f^2 - |k'|^2) / 2 + B f + (B^2 - |q'|^2) / 2 >= 0.

That is one product of d + 7 terms: beside k' stand its constant (f^2 - |k'|^2) / 2, three ones, and f;
beside q' three ones, its constant (B^2 - |q'|^2) / 2, and B. Each constant is split into three terms of the
products' type, so that 24 bits of it count; f and B are rounded up.

Products add up in float32, whether their factors are float32 or bfloat16. The terms' absolute values sum
to at most |q'|^2 + |k'|^2 + B^2 + f^2 = M, and so n terms in any order err by at most n 2^-24 M, but for
terms of higher order. Twice that share, `_slack`, is added to the constants: **no key within the bound has a
product of 0 or less**. Rounding the sum to bfloat16 keeps its sign. How far within the bound a key lies is
known from the product to 2^-7 of it, from which `QueryMatrix.distances` brackets the distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from retro_db.encoder.devices import multiplies_bfloat16
from retro_db.index.structure import widen
from retro_db.join.multiplying import COLUMN_STEP, padded_columns, sum_in_float32

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Columns behind the vector's: three terms of the key's constant, three of the query's, one of their product.
_OF_KEY, _OF_QUERY, _OF_BOTH = slice(0, 3), slice(3, 6), 6
# Bytes that rows end at a multiple of: kernels read whole vector registers.
_WIDTH_BYTES = 32
_SLAB_ROWS = 512
# Of a product 16 bits are kept, seven of them of the mantissa.
_KEPT = 2.0**-7


def precision_of(products: str, device: torch.device) -> torch.dtype:
    """The type of products: `neighbors.products`, or for auto bfloat16 where it is multiplied natively."""
    if products != "auto":
        return _PRECISIONS[products]
    native = device.type == "cuda" or multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _slack(dimension: int) -> float:
    """Twice the largest error of a product as a share of M."""
    return 2.0 * (dimension + _WIDTH_BYTES) * 2.0**-24


def _split(values: torch.Tensor, precision: torch.dtype) -> list[torch.Tensor]:
    """Splits float32 [n] into three terms of a type."""
    terms = []
    for _ in range(3):
        terms.append(values.to(precision))
        values = values - terms[-1].float()
    return terms


def _rounded_up(values: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    """Numbers of a type that are at least float32 [n], none of them negative."""
    return values if precision == torch.float32 else (values * (1 + _KEPT)).to(precision)


def _width(dimension: int, precision: torch.dtype) -> int:
    step = _WIDTH_BYTES // precision.itemsize
    return -(-(dimension + _OF_BOTH + 1) // step) * step


@dataclass(frozen=True)
class _Rounded:
    """Vectors as the products see them.

    Attributes:
        vectors: [n, d] of the products' type.
        squares: float32 [n], their squared lengths.
        errors: float32 [n], how far each lies from the vector that was rounded.
    """

    vectors: torch.Tensor
    squares: torch.Tensor
    errors: torch.Tensor

    @classmethod
    def of(cls, vectors: torch.Tensor, precision: torch.dtype) -> _Rounded:
        """Rounds float32 [n, d]."""
        rounded = vectors.to(precision)
        back = rounded.float()
        squares = back.square().sum(1)
        if precision == torch.float32:
            return cls(rounded, squares, torch.zeros(len(vectors)))
        # Rounded up: the sum of squares itself errs in its last bits.
        errors = (vectors - back).square_().sum(1).sqrt_() * (1 + _KEPT)
        return cls(rounded, squares, errors)


class KeyMatrix:
    """Keys as factors of products.

    Args:
        read: Function of first and last that reads keys first to last - 1, float16 [last - first, d].
        count: Number of keys, n.
        dimension: d.
        precision: Type of the products.
        device: Device that multiplies.

    Attributes:
        squares: float32 [n], squared lengths of the rounded keys.
        errors: float32 [n], upper bounds of the distance between a key and its rounding.
    """

    def __init__(
        self,
        read: Callable[[int, int], np.ndarray],
        count: int,
        dimension: int,
        precision: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dimension = dimension
        if device.type == "cuda":
            sum_in_float32()
        self.precision = precision
        self.device = device
        self.squares, self.errors = np.empty(count, np.float32), np.empty(count, np.float32)
        width = _width(dimension, precision)
        self._matrix = torch.zeros(count + COLUMN_STEP, width, dtype=precision, device=device)
        for start in range(0, count, _SLAB_ROWS):
            stop = min(start + _SLAB_ROWS, count)
            slab = _Rounded.of(torch.from_numpy(widen(read(start, stop))), precision)
            self.squares[start:stop] = slab.squares.numpy()
            self.errors[start:stop] = _rounded_up(slab.errors, precision).float().numpy()
            factors = torch.zeros(stop - start, width, dtype=precision)
            factors[:, : self.dimension] = slab.vectors
            self._append_constants(factors, start, stop)
            self._matrix[start:stop] = factors.to(device)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Factors of keys start to stop - 1: [at least stop - start, width]; rows behind are not theirs."""
        return self._matrix[start : start + padded_columns(stop - start)]

    def _append_constants(self, factors: torch.Tensor, start: int, stop: int) -> None:
        squares = torch.from_numpy(self.squares[start:stop])
        errors = torch.from_numpy(self.errors[start:stop])
        slack = _slack(self.dimension) * (squares + errors.square())
        constants = (errors.square() - squares) / 2 + slack
        beside = factors[:, self.dimension :]
        beside[:, _OF_KEY] = torch.stack(_split(constants, self.precision), 1)
        beside[:, _OF_QUERY] = 1
        beside[:, _OF_BOTH] = errors.to(self.precision)


class QueryMatrix:
    """Queries as factors of products, each with its bound.

    Args:
        vectors: float32 [n, d].
        keys: The keys that they are multiplied with.

    Attributes:
        factors: [n, width] of the products' type, on the keys' device.
    """

    def __init__(self, vectors: np.ndarray, keys: KeyMatrix) -> None:
        self._keys = keys
        count, width = len(vectors), _width(keys.dimension, keys.precision)
        self._squares, self._errors, self._reach = np.empty((3, count), np.float32)
        factors = torch.zeros(count, width, dtype=keys.precision)
        factors[:, keys.dimension :][:, _OF_KEY] = 1
        for start in range(0, count, _SLAB_ROWS):
            rows = slice(start, start + _SLAB_ROWS)
            rounded = _Rounded.of(torch.from_numpy(vectors[rows]), keys.precision)
            self._squares[rows] = rounded.squares.numpy()
            self._errors[rows] = rounded.errors.numpy()
            factors[rows, : keys.dimension] = rounded.vectors
        self.factors = factors.to(keys.device)
        self._farthest = 2 * np.sqrt(float(keys.squares.max(initial=0)))

    def bound(self, rows: np.ndarray | slice, bounds: np.ndarray) -> None:
        """Sets the bounds of some rows.

        Args:
            rows: int64 [r].
            bounds: float32 [r], squared distances; infinity if every key is within the bound.
        """
        squares = self._squares[rows]
        everything = self._farthest + 2 * np.sqrt(squares) + 1
        reach = np.where(np.isinf(bounds), everything, np.sqrt(bounds) + self._errors[rows])
        precision = self._keys.precision
        rounded = _rounded_up(torch.from_numpy(reach.astype(np.float32)), precision)
        self._reach[rows] = reach = rounded.float().numpy()
        slack = _slack(self._keys.dimension) * (squares + reach**2)
        constants = torch.from_numpy((reach**2 - squares) / 2 + slack)
        terms = torch.stack([*_split(constants, precision), rounded], 1).to(self.factors.device)
        first = self._keys.dimension + _OF_QUERY.start
        self.factors[rows, first : first + 4] = terms

    def distances(
        self, rows: np.ndarray, keys: np.ndarray, products: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Brackets the distances of keys within the bounds.

        Args:
            rows: int64 [p], queries.
            keys: int64 [p], keys.
            products: float32 [p], their products, cut to 16 bits.

        Returns:
            Lower and upper bounds of the distances (not squared), float32 [p] each.
        """
        reach, errors = self._reach[rows], self._keys.errors[keys]
        most = reach**2 + errors**2 + self._squares[rows] + self._keys.squares[keys]
        slack = 4 * _slack(self._keys.dimension) * most
        limit = reach**2 + 2 * reach * errors + errors**2
        far = np.sqrt(np.maximum(limit - 2 * products * (1 - _KEPT) + slack, 0))
        near = np.sqrt(np.maximum(limit - 2 * products * (1 + 2 * _KEPT) - slack, 0))
        around = errors + self._errors[rows]
        return near - around, far + around
