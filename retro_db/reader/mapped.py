"""Arrays in files without a name, so that memory does not grow with them."""

from __future__ import annotations

import math
import tempfile

import numpy as np


def mapped_zeros(kind: type[np.generic], *shape: int) -> np.ndarray:
    """An array of zeros in a temporary file, which is removed with the array.

    Args:
        kind: Type of the elements.
        *shape: Shape of the array; any length may be 0.
    """
    size = math.prod(shape)
    with tempfile.TemporaryFile(prefix="retro-db-") as file:
        # A file of no bytes cannot be mapped. A plain array is shuffled far faster than a memmap.
        array = np.asarray(np.memmap(file, kind, "w+", shape=max(size, 1)))
    return array[:size].reshape(shape)
