"""A manifest against itself: settings beside the fields that follow from them, and the index's figures."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import faiss

from retro_db.errors import IndexKeyError
from retro_db.index.keys import parse_key
from retro_db.index.structure import inverted_file
from retro_db.index.training import create_index
from retro_db.manifest.model import POOLINGS, JoinPoint, Manifest, RecallPoint
from retro_db.manifest.sealing import FILE

# Settings of which a field of the same name is the outcome, unless the setting left it open.
_EQUAL = (
    "chunk.tokens",
    "encoder.model",
    "encoder.pooling",
    "encoder.dtype",
    "encoder.device",
    "encoder.max_length",
    "encoder.normalize",
    "encoder.prompt",
    "neighbors.k",
)
_OPEN = (None, "auto")
_KNOWN = {
    "encoder.pooling": POOLINGS,
    "encoder.device": ("cpu", "cuda"),
    "encoder.dtype": ("float32", "bfloat16", "float16"),
}


def check_settings(manifest: Manifest) -> Iterator[str]:
    """Checks the recorded settings against the fields that follow from them.

    Args:
        manifest: The manifest; settings that an older release did not have are passed over.

    Yields:
        A line for each contradiction.
    """
    for setting in _EQUAL:
        stored, value = manifest.setting(setting), operator.attrgetter(setting)(manifest)
        if stored not in _OPEN and stored != value:
            yield f"{FILE}: config.{setting} is {stored!r}, but {setting} is {value!r}"
    for name, known in _KNOWN.items():
        if (value := operator.attrgetter(name)(manifest)) not in known:
            yield f"{FILE}: {name} is {value[:20]!r}, which is none of {', '.join(known)}"
    for setting, value, word in _bounds(manifest):
        stored = manifest.setting(setting)
        if isinstance(stored, int) and value > stored:
            yield f"{FILE}: config.{setting} is {stored}, but {word} is {value}"
    kept = manifest.setting("embeddings.keep")
    if isinstance(kept, bool) and kept != bool(
        manifest.tables.embeddings or not manifest.counts.chunks
    ):
        yield f"{FILE}: config.embeddings.keep is {kept}, but the embeddings say otherwise"
    if manifest.counts.validation_chunks and not manifest.setting("split.validation"):
        yield f"{FILE}: config.split.validation is 0, but there are validation chunks"
    queries = [query.source for query in manifest.queries]
    for setting, sources in (("corpus", manifest.sources), ("queries", queries)):
        stored = manifest.setting(setting) or []
        counted = [(source.name, source.weight) for source in sources]
        if [(source.get("name"), source.get("weight")) for source in stored] != counted:
            yield f"{FILE}: config.{setting} has other names or weights than the sources that are counted"


def _bounds(manifest: Manifest) -> Iterator[tuple[str, int, str]]:
    """Settings that bound a field: the setting, the field's value, and its name."""
    yield "neighbors.rerank", manifest.index.rerank, "index.rerank"
    yield "tokenizer.train.vocab_size", manifest.chunk.vocab_size, "chunk.vocab_size"


def check_search(manifest: Manifest) -> Iterator[str]:
    """Checks how the index is searched against its size and against what was measured.

    Args:
        manifest: The manifest.

    Yields:
        A line for each contradiction.
    """
    info, chunks = manifest.index, manifest.counts.chunks
    if not 1 <= info.nprobe <= info.lists:
        yield f"{FILE}: index.nprobe is {info.nprobe}, of {info.lists} lists"
    if info.rerank < 1:
        yield f"{FILE}: index.rerank is {info.rerank}"
    if info.recall_queries > chunks:
        yield f"{FILE}: index.recall_queries is {info.recall_queries}, of {chunks} chunks"
    yield from _check_curve("index", info.recall, info.lists)
    if info.recall and _settings(info.recall[-1]) != (info.nprobe, info.rerank, info.ef_search):
        yield f"{FILE}: index.recall does not end with nprobe, rerank and ef_search of the index"


def check_join(manifest: Manifest) -> Iterator[str]:
    """Checks how neighbors were found against the size of the index and against what was measured.

    Args:
        manifest: The manifest.

    Yields:
        A line for each contradiction.
    """
    info, lists = manifest.neighbors, manifest.index.lists
    if info.nprobe > lists:
        yield f"{FILE}: neighbors.nprobe is {info.nprobe}, of {lists} lists"
    yield from _check_curve("neighbors", info.recall, lists)
    if info.recall and info.recall[-1].nprobe != info.nprobe:
        yield f"{FILE}: neighbors.recall does not end with neighbors.nprobe"


def _check_curve(
    section: str, curve: Sequence[RecallPoint | JoinPoint], lists: int
) -> Iterator[str]:
    for number, point in enumerate(curve):
        where = f"{FILE}: {section}.recall[{number}]"
        bounded = point.recall if point.distinct_recall is None else point.distinct_recall
        if not 0 <= point.lower_bound <= bounded <= 1 or not 0 <= point.recall <= 1:
            yield f"{where}: {point.lower_bound:g} bounds {bounded:g}"
        if not 1 <= point.nprobe <= lists:
            yield f"{where}.nprobe is {point.nprobe}, of {lists} lists"


def _settings(point: RecallPoint) -> tuple[int, int, int | None]:
    return point.nprobe, point.rerank, point.ef_search


def check_key(manifest: Manifest, trained: faiss.IndexIVF) -> Iterator[str]:
    """Checks the index key against the trained index.

    Args:
        manifest: The manifest.
        trained: Inverted file of the trained index.

    Yields:
        A line for each contradiction.
    """
    text, where = manifest.index.key, f"{FILE}: index.key {manifest.index.key[:100]}"
    try:
        key = parse_key(text, manifest.encoder.dimension)
        index = create_index(key, manifest.encoder.dimension)
    except IndexKeyError as error:
        yield f"{FILE}: {error}"
        return
    if key.lists != manifest.index.lists:
        yield f"{where} has {key.lists} lists, but index.lists is {manifest.index.lists}"
    expected = inverted_file(index)
    for what in ("d", "code_size", "metric_type"):
        wanted, actual = getattr(expected, what), getattr(trained, what)
        if wanted != actual:
            yield f"{where} means {what} {wanted}, but the trained index has {actual}"
    graphs = [
        isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexHNSW)
        for ivf in (expected, trained)
    ]
    if graphs[0] != graphs[1]:
        yield f"{where} and the trained index do not agree on a graph of centroids"
    if (manifest.index.ef_search is not None) != graphs[1]:
        yield f"{FILE}: index.ef_search is {manifest.index.ef_search}, but the centroids say otherwise"
