"""Faiss indices taken apart: the transforms before the lists, the coarse quantizer, the codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retro_db.errors import DamagedFileError
from retro_db.threads import use_torch_threads  # sets OpenMP's wait policy before Faiss loads

import faiss  # isort: skip


# Reads no tables that speed a search up: they take up to 2 GB, which routing and encoding have no use for.
WITHOUT_TABLES = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE


def read_index(path: Path, flags: int = WITHOUT_TABLES) -> faiss.Index:
    """Reads an index file.

    Args:
        path: Local file.
        flags: Faiss's flags, such as `faiss.IO_FLAG_MMAP`; 0 for an index that is searched.

    Returns:
        The index, as an object of its actual class.

    Raises:
        DamagedFileError: Faiss cannot read it.
    """
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DamagedFileError(f"{path}: not a readable index ({reason}); run verify") from error


def inverted_file(index: faiss.Index) -> faiss.IndexIVF:
    """Returns the piece of an index that holds the inverted lists."""
    return faiss.downcast_index(faiss.extract_index_ivf(index))


def transform(index: faiss.Index, x: np.ndarray) -> np.ndarray:
    """Applies the transforms before the lists, such as OPQ: float32 [n, d] to float32 [n, d'].

    Args:
        index: Any index with inverted lists.
        x: float32 [n, d].

    Returns:
        float32 [n, d'], `x` itself if the index has no transforms.
    """
    if isinstance(index, faiss.IndexPreTransform):
        for position in range(index.chain.size()):
            x = faiss.downcast_VectorTransform(index.chain.at(position)).apply(x)
    return x


def widen(embeddings: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Widens float16 [n, d] to float32 by torch's vector instructions: NumPy takes 20 times as long.

    Args:
        embeddings: float16 [n, d], or float32, which is returned unchanged.
        out: float32 [n, d] to fill; memory that is new takes longer than the work.

    Returns:
        float32 [n, d].
    """
    import torch

    use_torch_threads(1)
    if out is None:
        if embeddings.dtype == np.float32:
            return embeddings
        out = np.empty(embeddings.shape, np.float32)
    writeable = embeddings if embeddings.flags.writeable else embeddings.copy()
    torch.from_numpy(out).copy_(torch.from_numpy(writeable))
    return out


def list_ids(lists: faiss.InvertedLists, number: int) -> np.ndarray:
    """Copies one list's ids.

    Args:
        lists: The inverted lists of an index.
        number: Number of the list.

    Returns:
        int64 [n].
    """
    size = lists.list_size(number)
    if size == 0:
        return np.empty(0, np.int64)
    pointer = lists.get_ids(number)
    try:
        return faiss.rev_swig_ptr(pointer, size).copy()
    finally:
        lists.release_ids(number, pointer)


def list_codes(lists: faiss.InvertedLists, number: int) -> np.ndarray:
    """Copies one list's codes.

    Args:
        lists: The inverted lists of an index.
        number: Number of the list.

    Returns:
        uint8 [n, code_size].
    """
    size = lists.list_size(number)
    if size == 0:
        return np.empty((0, lists.code_size), np.uint8)
    pointer = lists.get_codes(number)
    try:
        flat = faiss.rev_swig_ptr(pointer, size * lists.code_size).copy()
    finally:
        lists.release_codes(number, pointer)
    return flat.reshape(size, lists.code_size)
