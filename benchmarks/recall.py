"""Recall of a database's stored neighbors against exact search over other documents.

    python benchmarks/recall.py DB [--at 10]

The exact search is straightforward NumPy in float32 over all kept embeddings, independent of the
library's own measurement; quadratic, so meant for databases of up to some 100,000 chunks.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import retro_db

BLOCK = 256


def main() -> None:
    """Prints recall, and the rate of exact search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database")
    parser.add_argument("--at", type=int, default=10)
    arguments = parser.parse_args()
    db = retro_db.open(arguments.database)
    ids = np.arange(len(db))
    embeddings = db.embeddings[ids].astype(np.float32)
    documents = db.chunks.documents(ids)
    training = np.array(db.documents["split"].to_pylist())[documents] == "train"
    embedded = embeddings.any(axis=1)
    norms = (embeddings**2).sum(axis=1)
    shares = []
    start = time.perf_counter()
    for block in range(0, len(db), BLOCK):
        rows = ids[block : block + BLOCK]
        exact = norms[rows, None] + norms - 2 * embeddings[rows] @ embeddings.T
        same_document = documents[rows, None] == documents
        exact[same_document | ~(training & embedded)] = np.inf
        truth = np.argpartition(exact, arguments.at, axis=1)[:, : arguments.at]
        neighbors = db.neighbors[rows][:, : arguments.at]
        shares += [
            np.isin(near, stored).mean()
            for near, stored, is_query in zip(truth, neighbors, embedded[rows], strict=True)
            if is_query
        ]
    seconds = time.perf_counter() - start
    index = db.manifest.index
    print(f"{len(shares):,} chunks with a key, {index.key}, nprobe {index.nprobe} of {index.lists}")
    print(f"recall@{arguments.at} against exact search over other documents: {np.mean(shares):.4f}")
    print(f"exact search: {len(db) / seconds:,.0f} chunks/s")


if __name__ == "__main__":
    main()
