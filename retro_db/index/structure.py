"""Faiss indices taken apart: the transforms before the lists, the coarse quantizer, the codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retro_db.errors import DamagedFileError
from retro_db.threads import use_torch_threads  # sets OpenMP's wait policy before Faiss loads

import faiss  # isort: skip


def read_index(path: Path, flags: int = 0) -> faiss.Index:
    """Reads an index file.

    Args:
        path: Local file.
        flags: Faiss's, such as `faiss.IO_FLAG_MMAP`.

    Returns:
        The index, of its own class.

    Raises:
        DamagedFileError: Faiss cannot read it.
    """
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DamagedFileError(f"{path}: not a readable index ({reason}); run verify") from error


def inverted_file(index: faiss.Index) -> faiss.IndexIVF:
    """The part of an index that has the inverted lists."""
    return faiss.downcast_index(faiss.extract_index_ivf(index))


def transform(index: faiss.Index, x: np.ndarray) -> np.ndarray:
    """Applies the transforms before the lists, such as OPQ: float32 [n, d] to float32 [n, d'].

    Args:
        index: Any index with inverted lists.
        x: float32 [n, d].

    Returns:
        float32 [n, d'], `x` itself where there are no transforms.
    """
    if isinstance(index, faiss.IndexPreTransform):
        for position in range(index.chain.size()):
            x = faiss.downcast_VectorTransform(index.chain.at(position)).apply(x)
    return x


def widen(keys: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """float32 of float16 keys, [n, d], by torch's vector instructions: NumPy takes 20 times as long.

    Args:
        keys: float16 [n, d], or float32, which stays as it is.
        out: float32 [n, d] to fill; memory that is new takes longer than the work.

    Returns:
        float32 [n, d].
    """
    import torch

    use_torch_threads(1)
    if out is None:
        if keys.dtype == np.float32:
            return keys
        out = np.empty(keys.shape, np.float32)
    given = keys if keys.flags.writeable else keys.copy()
    torch.from_numpy(out).copy_(torch.from_numpy(given))
    return out


def keyed(keys: np.ndarray) -> np.ndarray:
    """Which of float16 keys [n, d] are one: bool [n]. All zeros stand for a chunk without WordPiece.

    NumPy looks at halves as integers 15 times as fast.
    """
    return keys.view(np.uint16).any(axis=1)


def list_ids(lists: faiss.InvertedLists, number: int) -> np.ndarray:
    """A copy of one list's ids, int64 [n].

    Args:
        lists: Of an index.
        number: Which list.

    Returns:
        int64 [n].
    """
    size = lists.list_size(number)
    if size == 0:
        return np.empty(0, np.int64)
    held = lists.get_ids(number)
    try:
        return faiss.rev_swig_ptr(held, size).copy()
    finally:
        lists.release_ids(number, held)


def list_codes(lists: faiss.InvertedLists, number: int) -> np.ndarray:
    """A copy of one list's codes, uint8 [n, code_size].

    Args:
        lists: Of an index.
        number: Which list.

    Returns:
        uint8 [n, code_size].
    """
    size = lists.list_size(number)
    if size == 0:
        return np.empty((0, lists.code_size), np.uint8)
    held = lists.get_codes(number)
    try:
        flat = faiss.rev_swig_ptr(held, size * lists.code_size).copy()
    finally:
        lists.release_codes(number, held)
    return flat.reshape(size, lists.code_size)
