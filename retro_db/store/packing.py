"""Numbers packed into text that is short in JSON: records and descriptors hold thousands of them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np


def pack_numbers(numbers: Sequence[int] | np.ndarray) -> str:
    """Packs integers: zlib of little-endian int64, in base 85."""
    return base64.b85encode(zlib.compress(np.array(numbers, "<i8").tobytes())).decode("ascii")


def unpack_numbers(packed: str) -> np.ndarray:
    """Unpacks the text of `pack_numbers`: int64 [n]."""
    return np.frombuffer(zlib.decompress(base64.b85decode(packed)), "<i8")
