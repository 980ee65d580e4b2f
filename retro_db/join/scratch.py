"""Memory that is used again: new memory takes longer than most work that is done in it."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import DTypeLike

_OF_THREAD = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of this thread with any content; the next one of the same name takes its place.

    Args:
        name: What it is for.
        shape: Shape of the array.
        dtype: Type of the array.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = _OF_THREAD.__dict__.get(name)
    if memory is None or len(memory) < size:
        memory = _OF_THREAD.__dict__[name] = np.empty(size, np.uint8)
    return memory[:size].view(dtype).reshape(shape)
