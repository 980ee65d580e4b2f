"""The tables against the files of the corpus that they were made of, where those are at hand."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from retro_db.config import Config
from retro_db.corpus.documents import Document
from retro_db.corpus.reading import read_shard
from retro_db.corpus.selection import Tally, select
from retro_db.corpus.sharding import Shard, plan_shards
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
        planned = plan_shards(config)
        taken = sample.takes(np.arange(len(planned)))
        self.shards = [shard for shard, is_taken in zip(planned, taken, strict=True) if is_taken]
        self.shards = self.shards or planned[:1]

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
                document = _next_named(documents, shard.source, row)
                if document is None:
                    yield (
                        f"{part.files.documents.path}: {row['source']}/{row['id']} does not stand there in "
                        f"{shard.pieces[0].file.name}, or in another order"
                    )
                    return
                if not np.array_equal(self._tokens(document), _stored_tokens(part, row)):
                    yield f"{part.files.chunks.path}: the tokens of {row['id']} are not its text's"

    def _documents(self, shard: Shard) -> Iterator[Document]:
        records = read_shard(shard, self._config.source(shard.source))
        for _, document in select(records, shard, self._config, self._tokenizer, Tally()):
            yield document

    def _tokens(self, document: Document) -> np.ndarray:
        if document.text is None:
            return np.asarray(document.tokens)
        return self._tokenizer.encode([document.text])[0]


def _next_named(
    documents: Iterator[Document], source: str, row: dict[str, str | int]
) -> Document | None:
    """The next document with a row's name; None if there is none any more."""
    return next((d for d in documents if (source, d.id) == (row["source"], row["id"])), None)


def _stored_tokens(part: OpenedPart, row: dict[str, int]) -> np.ndarray:
    first, end = row["first_chunk"], row["first_chunk"] + row["chunk_count"]
    file = part.open("chunks", part.files.chunks)
    tokens, lengths = (file.read(name, first, end) for name in ("tokens", "length"))
    return tokens[np.arange(tokens.shape[1]) < lengths[:, None]]
