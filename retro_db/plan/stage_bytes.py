"""The bytes that each stage reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retro_db.config import Config
from retro_db.manifest.model import query_path
from retro_db.plan.corpus_facts import Corpus, Facts
from retro_db.plan.join_plan import JoinPlan
from retro_db.plan.manifests import Files
from retro_db.store.folder import FileEntry


@dataclass(frozen=True)
class Moved:
    """Bytes that a stage reads and writes, records and other small files apart."""

    read: int
    written: int


def moved_bytes(
    config: Config,
    facts: Facts,
    files: Sequence[Files],
    index_files: Sequence[FileEntry],
    codes: int,
    join: JoinPlan,
) -> dict[str, Moved]:
    """Reckons the bytes of all stages that read or write tables.

    Args:
        config: Configuration of the build.
        facts: Corpora, encoder and tokenizer to build from.
        files: Files of the corpus and of each query corpus, by table.
        index_files: The trained index and the partitions.
        codes: Bytes of the codes.
        join: The join of the corpus with itself.

    Returns:
        By the name of the stage.
    """
    embeddings, index = _size(files[0]["embeddings"]), _size(index_files)
    trained = index_files[0].bytes
    moved = _of_corpus("", facts.corpus, files[0], config, join, 1.0) | {
        "train": Moved(embeddings, trained),
        "encode": Moved(embeddings + trained, codes),
        "assemble": Moved(codes, index - trained),
        "sample": Moved(embeddings, 0),
        "truth": Moved(embeddings, 0),
        "tune": Moved(index, 0),
    }
    for query, by_table in zip(facts.queries, files[1:], strict=True):
        share = _rows(by_table) / max(_rows(files[0]), 1)
        moved |= _of_corpus(f"{query_path(query.name)}/", query, by_table, config, join, share)
    return moved


def _of_corpus(
    folder: str, corpus: Corpus, files: Files, config: Config, join: JoinPlan, share: float
) -> dict[str, Moved]:
    """The stages that a corpus and a query corpus have, whose chunks are a share of the corpus's."""
    chunks, embeddings, neighbors = (
        _size(files[table]) for table in ("chunks", "embeddings", "neighbors")
    )
    compared = chunks if config.neighbors.drop_duplicates else 0
    routed, visits, near_home, near_visits = (
        round(share * size)
        for size in (join.routed_bytes, join.visits_bytes, join.home_bytes, join.found_bytes)
    )
    keys = join.routed_bytes
    # The corpus's queries are its keys.
    queries = routed if folder else 0
    read = sum(shard.bytes for shard in corpus.shards)
    return {
        f"{folder}chunk": Moved(read, chunks + _size(files["documents"])),
        f"{folder}embed": Moved(chunks, embeddings),
        f"{folder}route": Moved(embeddings + compared, routed),
        f"{folder}home": Moved(keys + queries, visits + near_home),
        f"{folder}visit": Moved(join.waves * keys + visits, near_visits),
        f"{folder}neighbors": Moved(near_home + near_visits + embeddings, neighbors),
    }


def _size(files: Sequence[FileEntry]) -> int:
    return sum(file.bytes for file in files)


def _rows(files: Files) -> int:
    return sum(file.rows for file in files["chunks"])
