"""A second, finer code of every embedding, which re-ranks if a database keeps no embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retro_db.index.structure import faiss, read_index, widen
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.store.gathering import ColumnReader
from retro_db.store.tables import TableFile
from retro_db.store.writing import TableWriter
from retro_db.threads import use_faiss_threads

FINE_PATH = "index/fine.faissindex"


def train_fine(code: str, points: np.ndarray) -> faiss.Index:
    """Trains the quantizer of a scalar code.

    Args:
        code: SQ8, SQ6 or SQ4 in Faiss's factory language, with 8, 6 or 4 bits a dimension.
        points: float32 [n, d].

    Returns:
        A trained index without vectors.
    """
    quantizer = faiss.index_factory(points.shape[1], code, faiss.METRIC_L2)
    quantizer.train(points)
    return quantizer


def fine_size(code: str, dimension: int) -> int:
    """Returns the bytes of one fine code."""
    return int(faiss.index_factory(dimension, code).sa_code_size())


def refine_part(
    embeddings: TableFile,
    path: str,
    quantizer: faiss.Index,
    folder: Folder,
) -> TableEntry:
    """Writes the fine codes of one part's embeddings, row for row.

    Args:
        embeddings: The part's embeddings.
        path: Path of the fine codes, relative to the folder.
        quantizer: The trained quantizer.
        folder: The database.

    Returns:
        The file of fine codes.
    """
    use_faiss_threads(1)
    table = contract("fine")
    schema = table.schema(fine_size=quantizer.sa_code_size())
    with folder.writing(path) as temporary:
        with TableWriter(temporary, schema, table.batch_rows) as writer:
            for start in range(0, embeddings.rows, table.batch_rows):
                vectors = embeddings.read("vector", start, start + table.batch_rows)
                writer.append({"code": quantizer.sa_encode(widen(vectors))})
        return describe(temporary, path, writer.rows)


class FineEmbeddings:
    """Embeddings decoded from their fine codes, by global chunk id.

    Args:
        quantizer: File of the trained quantizer.
        codes: The codes of all chunks.

    Raises:
        DamagedFileError: The quantizer cannot be read.
    """

    def __init__(self, quantizer: Path, codes: ColumnReader) -> None:
        self._quantizer = read_index(quantizer)
        self._codes = codes

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """Decodes the embeddings of chunks: int64 [n] to float32 [n, d]."""
        use_faiss_threads(1)
        return self._quantizer.sa_decode(np.ascontiguousarray(self._codes[ids]))
