"""The tables against the files of the corpus that they were made of, where those are at hand."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from retro_db.config import Config
from retro_db.corpus.documents import Document
from retro_db.corpus.reading import read_shard
from retro_db.corpus.selection import Tally, select
from retro_db.corpus.sharding import Shard, plan_shards
from retro_db.manifest.model import Manifest
from retro_db.store.records import StageRecords, mark_of
from retro_db.tokens.tokenizer import Tokenizer
from retro_db.verify.opened import OpenedCorpus, OpenedPart
from retro_db.verify.sampling import Sample

_FIRST_GENERATION = re.compile(r"chunks/part-(\d+)-\d+\.arrow")


class Inputs:
    """The shards of a configuration, and the parts of the database that each of them became.

    Args:
        home: The database.
        config: The configuration that it was built from.
        sample: Choice among the shards; of those without any chosen one, the first is.

    Raises:
        InputError: A path of the corpus cannot be listed.

    Attributes:
        shards: The shards that are compared.
        notes: Lines that say what is not.
    """

    def __init__(self, home: OpenedCorpus, config: Config, sample: Sample) -> None:
        self._config = config
        self._home = home
        database = home.database
        self._tokenizer = Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)
        self._parts: defaultdict[int, list[OpenedPart]] = defaultdict(list)
        for part in home.parts():
            if name := _FIRST_GENERATION.fullmatch(part.files.chunks.path):
                self._parts[int(name[1])].append(part)
        self._records = StageRecords(database.folder, "chunk").load()
        self.notes = list(_not_compared(database.manifest))
        planned = [shard for shard in plan_shards(config) if self._is_built_from(shard)]
        if not planned or database.manifest.tables.renumbered:
            self.notes.append("no shard was compared with its files: none is as it was built from")
            planned = []
        taken = sample.takes(np.arange(len(planned)))
        self.shards = [shard for shard, is_taken in zip(planned, taken, strict=True) if is_taken]
        self.shards = self.shards or planned[:1]

    def _is_built_from(self, shard: Shard) -> bool:
        """Whether the build's record of a shard names the same files."""
        record = self._records.get(shard.task_name)
        return record is not None and record.depends.get("input") == mark_of(shard.identity)

    def check(self, shard: Shard) -> Iterator[str]:
        """Checks that the documents of a shard are those of its files, in their order.

        Documents that were left out for their content may be missing from the tables.

        Yields:
            A line for each part with another document, and for tokens that are not those of the text.
        """
        documents = self._documents(shard)
        for part in self._parts[shard.number]:
            stored = part.read_documents("source", "id", "first_chunk", "chunk_count").to_pylist()
            for row in stored:
                if problem := self._missing(documents, shard, part, row):
                    yield problem
                    return

    def _missing(
        self, documents: Iterator[Document], shard: Shard, part: OpenedPart, row: dict[str, Any]
    ) -> str | None:
        """Goes on to a stored document; says what is wrong if it does not come."""
        tokens, is_named = _stored_tokens(part, row), False
        for document in documents:
            if (shard.source, document.id) == (row["source"], row["id"]):
                # Others of the same name may have been left out before it.
                if np.array_equal(self._tokens(document), tokens):
                    return None
                is_named = True
        if is_named:
            return f"{part.files.chunks.path}: the tokens of {row['id']} are not its text's"
        return (
            f"{part.files.documents.path}: {row['source']}/{row['id']} does not stand there in "
            f"{shard.pieces[0].file.name}, or in another order"
        )

    def _documents(self, shard: Shard) -> Iterator[Document]:
        records = read_shard(shard, self._config.source(shard.source))
        for _, document in select(records, shard, self._config, self._tokenizer, Tally()):
            yield document

    def _tokens(self, document: Document) -> np.ndarray:
        if document.text is None:
            return np.asarray(document.tokens)
        return self._tokenizer.encode([document.text])[0]


def _stored_tokens(part: OpenedPart, row: dict[str, Any]) -> np.ndarray:
    first, end = row["first_chunk"], row["first_chunk"] + row["chunk_count"]
    file = part.open("chunks", part.files.chunks)
    tokens, lengths = (file.read(name, first, end) for name in ("tokens", "length"))
    return tokens[np.arange(tokens.shape[1]) < lengths[:, None]]


def _not_compared(manifest: Manifest) -> Iterator[str]:
    if any(not _FIRST_GENERATION.fullmatch(entry.path) for entry in manifest.tables.chunks):
        yield "documents that were appended were not compared with their files"
    if manifest.queries:
        yield "documents of query corpora were not compared with their files"
