"""One peer's index, built and searched for `benchmarks/index.py` in the peer's environment.

    python index_search.py NAME EMBEDDINGS.npy QUERIES.npy LISTS [NEIGHBORS]

Reads `BREADTH RERANK RESULT.npy` from standard input, a line for each search of all queries; writes the
nearest NEIGHBORS ids there, 20 by default, and prints the seconds. The first line that it prints is the
seconds of building.
"""

import sys
import time

import numpy as np

NEIGHBORS = 20


def scann_search(embeddings, lists, neighbors):
    """ScaNN: a tree, asymmetric hashing of pairs of dimensions, exact reordering; on all cores."""
    import scann

    builder = scann.scann_ops_pybind.builder(embeddings, neighbors, "squared_l2")
    sample = min(len(embeddings), 256 * lists)
    tree = builder.tree(lists, num_leaves_to_search=lists // 4, training_sample_size=sample)
    index = tree.score_ah(2).reorder(200).build()

    def search(queries, breadth, rerank):
        return index.search_batched_parallel(
            queries,
            final_num_neighbors=min(neighbors, rerank),
            leaves_to_search=breadth,
            pre_reorder_num_neighbors=rerank,
        )[0]

    return search


def hnswlib_search(embeddings, lists, neighbors):
    """The graph of hnswlib; `breadth` is its ef, and distances are exact without re-ranking."""
    import hnswlib

    index = hnswlib.Index(space="l2", dim=embeddings.shape[1])
    index.init_index(max_elements=len(embeddings), ef_construction=200, M=16)
    index.add_items(embeddings, num_threads=2)
    index.set_num_threads(2)

    def search(queries, breadth, rerank):
        index.set_ef(max(breadth, neighbors))
        return index.knn_query(queries, k=neighbors, num_threads=2)[0]

    return search


def main():
    """Builds, then searches until the input ends."""
    name, embeddings, queries, lists, *count = sys.argv[1:]
    neighbors = int(count[0]) if count else NEIGHBORS
    start = time.perf_counter()
    build = {"scann": scann_search, "hnswlib": hnswlib_search}[name]
    search = build(np.load(embeddings).astype(np.float32), int(lists), neighbors)
    queries = np.load(queries).astype(np.float32)
    print(f"built {time.perf_counter() - start}", flush=True)
    for line in sys.stdin:
        breadth, rerank, result = line.split()
        start = time.perf_counter()
        ids = search(queries, int(breadth), int(rerank))
        seconds = time.perf_counter() - start
        np.save(result, np.asarray(ids, np.int64))
        print(f"took {seconds}", flush=True)


if __name__ == "__main__":
    main()
