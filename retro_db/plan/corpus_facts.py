"""What a plan starts from: documents and tokens, estimated or given, and the shards that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retro_db.config import Config
from retro_db.corpus.documents import Document
from retro_db.corpus.estimating import (
    CHARACTERS_PER_TOKEN,
    SampledDocument,
    estimate_corpus,
    expected_chunks,
)
from retro_db.corpus.listing import InputFile
from retro_db.corpus.sharding import Shard, pack_files, plan_shards
from retro_db.encoder.models import CUDA, describe_model
from retro_db.errors import CorpusError
from retro_db.store.contracts import contract
from retro_db.tokens.tokenizer import Tokenizer

# Stands for a hash that only a build can know.
UNKNOWN_SHA256 = "0" * 64
# RETRO's corpus with books at 4%: 1.74 trillion tokens in 1.77 billion documents (paper, table 8).
TOKENS_PER_DOCUMENT = 1000
# About what tokenizer.json with byte-pair merges takes.
_BYTES_PER_ENTRY, _BYTES_OF_SETTINGS = 29, 80


@dataclass(frozen=True)
class Corpus:
    """What is known of a corpus before it is read.

    Attributes:
        name: Name of a query corpus; empty for the indexed corpus.
        documents: About how many documents are kept.
        tokens: About how many tokens these documents have.
        shards: Shards, as a build plans them.
        sample: Some documents of the corpus.
    """

    name: str
    documents: int
    tokens: int
    shards: list[Shard]
    sample: list[SampledDocument]

    def lay_out(self, chunk_tokens: int, part_rows: int) -> Layout:
        """Divides the chunks into parts: no part spans shards, and a shard has as few parts as it can.

        Each shard gets its share, by bytes, of the expected chunks.

        Args:
            chunk_tokens: Tokens of a chunk, m.
            part_rows: Number of chunks after which a shard continues in another part.
        """
        chunks = expected_chunks(self.tokens, self.documents, chunk_tokens)
        sizes = np.array([shard.bytes * shard.fraction for shard in self.shards])
        shard_rows = share_out(chunks, sizes)
        parts = np.maximum(-(-shard_rows // part_rows), 1)
        shards = np.repeat(np.arange(len(parts)), parts)
        turns = np.arange(len(shards)) - (np.cumsum(parts) - parts)[shards]
        rows = shard_rows[shards] // parts[shards] + (turns < shard_rows[shards] % parts[shards])
        return Layout(shards, turns, rows)


@dataclass(frozen=True)
class Layout:
    """The parts of a corpus, in order.

    Attributes:
        shards: Shard of each part, int64 [parts].
        turns: Roll-over number of each part within its shard, int64 [parts].
        rows: Number of chunks of each part, int64 [parts].
    """

    shards: np.ndarray
    turns: np.ndarray
    rows: np.ndarray

    @property
    def chunks(self) -> int:
        """Number of chunks of all parts."""
        return int(self.rows.sum())


def share_out(total: int, weights: np.ndarray) -> np.ndarray:
    """Divides `total` into whole numbers in proportion to weights [n]: int64 [n]."""
    done = np.cumsum(weights, dtype=np.float64)
    whole = done[-1] or 1.0
    return np.diff(np.rint(total * (done / whole)).astype(np.int64), prepend=0)


@dataclass(frozen=True)
class Facts:
    """All that a plan starts from, beside the configuration.

    Attributes:
        corpus: Corpus that is indexed.
        queries: Query corpora, in the order of the configuration.
        dimension: Dimension of the embeddings.
        vocab_size: Vocabulary size of the tokenizer.
        tokenizer_files: Bytes of each file of the tokenizer, by name.
        on_gpu: Whether the encoder runs on a GPU.
        source: Origin of the counts of documents and tokens, in words.
        exist: Whether there is a corpus that can be read, and an encoder.
    """

    corpus: Corpus
    queries: list[Corpus]
    dimension: int
    vocab_size: int
    tokenizer_files: dict[str, int]
    on_gpu: bool
    source: str
    exist: bool


def estimated_facts(config: Config, characters_per_token: float = CHARACTERS_PER_TOKEN) -> Facts:
    """Estimates facts from the first records of a few files, the encoder and the tokenizer.

    Args:
        config: Configuration of the build.
        characters_per_token: Mean number of characters of a token of the corpus.

    Raises:
        CorpusError: A path is missing, a glob matches nothing, a format cannot be detected, or none of the
            records that were read can be used.
        ModelError: The encoder or the tokenizer cannot be found or read.
    """
    model = describe_model(config.encoder)
    if config.tokenizer.train is None:
        tokenizer = Tokenizer.load(str(config.tokenizer.path))
        vocab_size = tokenizer.vocab_size
        files = {name: len(data) for name, data in tokenizer.files.items()}
    else:
        vocab_size = config.tokenizer.train.vocab_size
        files = _tokenizer_files(vocab_size)
    fields = [f"corpus.{position}" for position in range(len(config.corpus))]
    queries = [
        _estimated(
            config.querying(position), source.name, [f"queries.{position}"], characters_per_token
        )
        for position, source in enumerate(config.queries)
    ]
    return Facts(
        corpus=_estimated(config, "", fields, characters_per_token),
        queries=queries,
        dimension=model.dimension,
        vocab_size=vocab_size,
        tokenizer_files=files,
        on_gpu=model.device == CUDA,
        source=f"estimated from the first documents of a few files, {characters_per_token:g} "
        "characters a token",
        exist=True,
    )


def _tokenizer_files(vocab_size: int) -> dict[str, int]:
    """Returns about what the files of a tokenizer that is to be trained take."""
    return {
        "tokenizer.json": _BYTES_PER_ENTRY * vocab_size,
        "tokenizer_config.json": _BYTES_OF_SETTINGS,
    }


def _estimated(config: Config, name: str, fields: list[str], characters_per_token: float) -> Corpus:
    shards = plan_shards(config, fields)
    estimate = estimate_corpus(shards, config)
    estimate.check_usable(fields[0])
    if not estimate.characters:
        raise CorpusError(
            f"{fields[0]}: no text in the first records of a few files; check paths and text"
        )
    tokens = max(1, round(estimate.characters / characters_per_token))
    return Corpus(name, max(1, estimate.documents), tokens, shards, estimate.sample)


def given_facts(
    config: Config,
    tokens: int,
    tokens_per_document: float,
    bytes_per_token: float,
    vocab_size: int,
    dimension: int,
) -> Facts:
    """Returns facts of a corpus that need not exist: JSON lines, which can be divided anywhere, on GPUs.

    Args:
        config: Configuration of the build, whose paths are not read.
        tokens: Number of tokens of the corpus.
        tokens_per_document: Mean length of its documents, whose lengths are distributed exponentially.
        bytes_per_token: Mean bytes of text of a token.
        vocab_size: Vocabulary size of the tokenizer.
        dimension: Dimension of the embeddings.
    """
    documents = max(1, round(tokens / tokens_per_document))
    shard_size, source = int(config.chunk.shard_size), config.corpus[0].name
    whole, rest = divmod(max(1, round(tokens * bytes_per_token)), shard_size)
    files = [
        InputFile(f"{number:07d}.jsonl", f"{number:07d}.jsonl", size, "")
        for number, size in enumerate([shard_size] * whole + [rest] * (rest > 0))
    ]
    packs = pack_files(files, "jsonl", shard_size)
    shards = [Shard(number, source, "jsonl", pieces) for number, pieces in enumerate(packs)]
    count = min(documents, contract("documents").batch_rows)
    sample = _invented(source, files[0].name, count, tokens_per_document * bytes_per_token)
    return Facts(
        corpus=Corpus("", documents, tokens, shards, sample),
        queries=[],
        dimension=dimension,
        vocab_size=vocab_size,
        tokenizer_files=_tokenizer_files(vocab_size),
        on_gpu=True,
        source=f"as given: {tokens_per_document:,g} tokens a document, {bytes_per_token:g} bytes of text "
        "a token",
        exist=False,
    )


def _invented(source: str, file: str, count: int, mean: float) -> list[SampledDocument]:
    """Makes up documents of one file, with the ids of documents that no field names."""
    sizes = np.ceil(np.random.default_rng(0).exponential(mean, count)).astype(np.int64)
    offsets = np.cumsum(sizes) - sizes
    return [
        SampledDocument(source, Document(file, offset, f"{file}:{offset}", f"{offset}"), size)
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True)
    ]
