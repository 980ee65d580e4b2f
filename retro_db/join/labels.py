"""What the join compares besides distances: documents, their names, and the tokens of chunks."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import xxhash

from retro_db.hashing import hash_rows
from retro_db.index.part_embeddings import in_training_split

# Names of documents without names: keys and queries differ, so that neither excludes the other.
UNNAMED_KEY, UNNAMED_QUERY = 0, 1


def chunk_labels(
    documents: pa.Table, first_id: int, named: Collection[str], unnamed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of a part's chunks by their documents.

    Args:
        documents: The part's documents.
        first_id: Global id of the part's first chunk.
        named: Sources whose records name their documents.
        unnamed: Label of documents of other sources.

    Returns:
        For every chunk the global id of its document's first chunk, and the hash of its document's own id,
        int64 [rows] each; and whether its document is of the training split, bool [rows].
    """
    counts = documents["chunk_count"].to_numpy().astype(np.int64)
    pairs = zip(documents["source"].to_pylist(), documents["id"].to_pylist(), strict=True)
    names = [_name_hash(name) if source in named else unnamed for source, name in pairs]
    return (
        np.repeat(documents["first_chunk"].to_numpy() + first_id, counts),
        np.repeat(np.array(names, np.int64), counts),
        in_training_split(documents),
    )


def _name_hash(name: str) -> int:
    """63 bits, none of the labels of documents without names."""
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass")) >> 1 | 2


def token_hashes(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Hashes chunks: equal ones have equal hashes, others differ but for a chance of about 2**-64.

    Args:
        tokens: uint16 or uint32 [n, m].
        lengths: [n], tokens of each chunk.

    Returns:
        uint64 [n].
    """
    words = np.concatenate([tokens, lengths[:, None]], axis=1).astype(np.uint64)
    # Mixed, so that the low bits depend on all.
    sums = hash_rows(words + np.uint64(1))
    sums ^= sums >> np.uint64(32)
    return sums * np.uint64(0x9E3779B97F4A7C15)
