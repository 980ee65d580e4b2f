"""The manifest against itself, and its counts against what the tables hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from retro_db.corpus.selection import CONTENT_REASONS
from retro_db.manifest.sealing import FILE
from retro_db.reader.database import Database
from retro_db.tokens.tokenizer import Tokenizer
from retro_db.verify.contradictions import check_join, check_search, check_settings
from retro_db.verify.opened import OpenedCorpus


def check_manifest(database: Database) -> Iterator[str]:
    """Checks hashes and sums of the manifest that reading it does not need."""
    manifest = database.manifest
    yield from check_settings(manifest)
    yield from check_search(manifest)
    yield from check_join(manifest)
    if manifest.template_file.sha256 != manifest.index.template_sha256:
        yield f"{FILE}: template_sha256 is not the hash of {manifest.template_file.path}"
    for query in manifest.queries:
        if query.tables.removed or query.tables.renumbered:
            yield f"{FILE}: {query.source.name}: documents of a query corpus cannot be removed"
    for source in (*manifest.sources, *(query.source for query in manifest.queries)):
        if source.read != source.documents + source.dropped + source.rejected:
            yield f"{FILE}: source {source.name}: read is not kept + dropped + rejected"
        if source.dropped_by and sum(source.dropped_by.values()) != source.dropped:
            yield f"{FILE}: source {source.name}: dropped is not the sum of its reasons"
        if source.rejected_by and sum(source.rejected_by.values()) != source.rejected:
            yield f"{FILE}: source {source.name}: rejected is not the sum of its reasons"


def check_dropped(corpus: OpenedCorpus) -> Iterator[str]:
    """Checks that the table of documents dropped for their content has as many as the manifest counts."""
    counted = Counter[tuple[str, str]]()
    for source in corpus.sources:
        for reason in CONTENT_REASONS:
            counted[source.name, reason] += source.dropped_by.get(reason, 0)
    for entry in corpus.reader.tables.dropped:
        table = corpus.read_parquet(entry, "source", "reason")
        counted.subtract(zip(*(column.to_pylist() for column in table.columns), strict=True))
    for (name, reason), missing in counted.items():
        if missing:
            yield (
                f"{FILE}: source {name}: {corpus.name}dropped has {-missing:+,} rows for {reason} "
                "than are counted"
            )


def check_tokenizer(database: Database) -> Iterator[str]:
    """Checks that the tokenizer is the one that the manifest names."""
    tokenizer = Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)
    info = database.manifest.chunk
    if tokenizer.sha256 != database.manifest.tokenizer.sha256:
        yield f"{tokenizer.file}: not the tokenizer that {FILE} names"
    if (tokenizer.vocab_size, tokenizer.pad_id) != (info.vocab_size, info.pad_id):
        yield f"{tokenizer.file}: vocabulary or pad id differ from {FILE}"
    if info.token_type != tokenizer.token_type:
        yield f"{FILE}: token_type {info.token_type} is not the tokenizer's {tokenizer.token_type}"


def check_totals(corpus: OpenedCorpus) -> Iterator[str]:
    """Checks that the parts have as much of each source as the manifest counts."""
    expected = Counter[tuple[str, ...]]()
    for source in corpus.sources:
        for what in ("documents", "chunks", "tokens"):
            expected[what, source.name] += getattr(source, what)
    names = dict.fromkeys([*expected, *(name for name in corpus.counted if len(name) == 2)])
    for name in names:
        what, title = name
        if expected[name] != corpus.counted[name]:
            yield (
                f"{FILE}: source {title}: {expected[name]} {what}, "
                f"{corpus.name}{what} has {corpus.counted[name]}"
            )
    if not corpus.is_queries:
        yield from _check_counts(corpus)
    if corpus.has_embeddings and (empty := corpus.counted[("keyless",)]) != corpus.keyless:
        yield (
            f"{corpus.name}embeddings: {empty} chunks without an embedding, {FILE} says {corpus.keyless}"
        )
    # A chunk without an embedding has no neighbors, so it is among the rows that lack some.
    if (lacking := corpus.counted[("lacking",)]) != corpus.short_rows + corpus.keyless:
        yield (
            f"{corpus.name}neighbors: {lacking} rows are not full, {FILE} counts {corpus.short_rows} "
            f"short ones and {corpus.keyless} without an embedding"
        )


def _check_counts(corpus: OpenedCorpus) -> Iterator[str]:
    """Checks the totals over all sources, except the rows, which reading the manifest has checked."""
    counts = corpus.database.manifest.counts
    tokens = sum(count for name, count in corpus.counted.items() if name[0] == "tokens")
    if tokens != counts.tokens:
        yield f"{FILE}: the count of tokens is {counts.tokens}, the tables have {tokens}"
    if (held_out := int(corpus.held_out.sum())) != counts.validation_chunks:
        yield f"documents: {held_out} validation chunks, {FILE} says {counts.validation_chunks}"
