"""How large the files of an index become, known before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

from retro_db.index.keys import IndexKey
from retro_db.index.structure import faiss, inverted_file
from retro_db.index.training import create_index

# Faiss's graph keeps, for every centroid, its level and the position of its first link.
_LEVEL_BYTES, _OFFSET_BYTES, _LINK_BYTES = 4, 8, 4
_LENGTH_BYTES = 8
ID_BYTES = 8


@dataclass(frozen=True)
class IndexSizes:
    """Bytes of what the files of an index are made of.

    Attributes:
        fixed: Bytes of transforms, code books and headers, which every file repeats.
        centroid: Bytes of one list's centroid, float32 [d'] after the transforms.
        links: Bytes of one centroid's links in the graph that joins the centroids, which the trained
            index alone holds; 0 without a graph.
        entry: Bytes of one chunk: its code, and its id of 8 bytes.
    """

    fixed: int
    centroid: int
    links: float
    entry: int

    def template(self, lists: int) -> int:
        """Bytes of the trained index: fixed + lists (centroid + links)."""
        return self.fixed + round(lists * (self.centroid + self.links))

    def partition(self, lists: int, entries: int) -> int:
        """Bytes of a partition: fixed + lists (centroid + 8, the list's length) + entries x entry."""
        return self.fixed + lists * (self.centroid + _LENGTH_BYTES) + entries * self.entry


def index_sizes(key: IndexKey, dimension: int) -> IndexSizes:
    """Computes sizes from the untrained index, and from the matrices that training will add.

    Args:
        key: The parsed index key.
        dimension: d of the vectors.

    Raises:
        IndexKeyError: Faiss does not know the key, or it cannot be divided into partitions.
    """
    index = create_index(key, dimension)
    ivf = inverted_file(index)
    matrices = 0
    if isinstance(index, faiss.IndexPreTransform):
        chain = [
            faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())
        ]
        matrices = sum(_matrix_bytes(step) for step in chain)
    return IndexSizes(
        fixed=len(faiss.serialize_index(index)) + matrices,
        centroid=4 * int(ivf.d),
        links=_link_bytes(faiss.downcast_index(ivf.quantizer)),
        entry=int(ivf.code_size) + ID_BYTES,
    )


def _matrix_bytes(step: faiss.VectorTransform) -> int:
    """Bytes that training adds to a transform.

    A matrix float32 [d_out, d_in], and a PCA's statistics float32 [d_in, d_in + 2].
    """
    if not isinstance(step, faiss.LinearTransform):
        return 0
    width = step.d_out + (step.d_in + 2 if isinstance(step, faiss.PCAMatrix) else 0)
    return 4 * width * step.d_in


def _link_bytes(quantizer: faiss.Index) -> float:
    """Bytes of a centroid's level, offset and links.

    A centroid has 2 M links on level 0, and M on each level that it reaches by chance.
    """
    if not isinstance(quantizer, faiss.IndexHNSW):
        return 0.0
    graph = quantizer.hnsw
    shares = faiss.vector_to_array(graph.assign_probas)
    links = sum(share * graph.cum_nb_neighbors(top + 1) for top, share in enumerate(shares))
    return _LEVEL_BYTES + _OFFSET_BYTES + _LINK_BYTES * float(links)
