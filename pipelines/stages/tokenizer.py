"""Loads or trains the tokenizer, and keeps it in the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from retro_db.config import Config
from retro_db.corpus.documents import Document
from retro_db.corpus.reading import read_shard
from retro_db.corpus.selection import is_kept
from retro_db.corpus.sharding import Shard, expansion_of
from retro_db.hashing import fraction_of
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, describe
from retro_db.tokens.tokenizer import Tokenizer
from retro_db.tokens.tokenizer_training import train_tokenizer

from ..engine.context import Build
from ..engine.jobs import Job, Stage, Task, fingerprint

VERSION = 4


@dataclass(frozen=True)
class TokenizerFiles:
    """What was written, and what later stages need to know about it."""

    files: list[FileEntry]
    sha256: str
    vocab_size: int
    token_type: str
    pad_id: int
    end_id: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, files: list[FileEntry]) -> TokenizerFiles:
        """Describes a tokenizer and the files that hold it."""
        return cls(
            files=files,
            sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            token_type=tokenizer.token_type.name,
            pad_id=tokenizer.pad_id,
            end_id=tokenizer.end_id,
        )

    def parameters(self, chunk_tokens: int) -> dict[str, str | int]:
        """Parameters of the contracts' types that are known once there is a tokenizer.

        Args:
            chunk_tokens: Tokens of a chunk.
        """
        return {"token_type": self.token_type, "chunk_tokens": chunk_tokens}


@dataclass
class TokenizerJob(Job):
    """Trains or loads the tokenizer."""

    stage: ClassVar[str] = "tokenizer"
    config: Config

    def run(self, shared: None, shards: list[Shard], meter: Meter, /) -> TokenizerFiles:
        settings = self.config.tokenizer
        if settings.train is None:
            tokenizer = Tokenizer.load(str(settings.path))
        else:
            texts = sample_texts(shards, self.config, int(settings.train.sample), meter)
            tokenizer = train_tokenizer(texts, settings.train)
        entries = []
        for name, data in tokenizer.files.items():
            path = f"tokenizer/{name}"
            with self.folder.writing(path) as temporary:
                temporary.write_bytes(data)
                entries.append(describe(temporary, path))
        return TokenizerFiles.of(tokenizer, entries)

    def files(self, result: TokenizerFiles) -> list[FileEntry]:
        return result.files


def sample_texts(
    shards: list[Shard], config: Config, wanted: int, report: Callable[[int], None]
) -> Iterator[str]:
    """Texts of a hashed sample of documents, out of a hashed sample of shards.

    Args:
        shards: The plan.
        config: Configuration of the build.
        wanted: Bytes of text, about; a smaller corpus is taken whole.
        report: Called with the number of bytes read since the last call.
    """
    order = sorted(shards, key=lambda shard: fraction_of("train", config.seed, *_names(shard)))
    chosen, size = [], 0
    for shard in order:
        if size >= 4 * wanted:
            break
        chosen.append(shard)
        text = (piece.bytes * expansion_of(piece.file.name, shard.format) for piece in shard.pieces)
        size += round(sum(text) * shard.fraction)
    share = min(1.0, wanted / max(size, 1))
    sources = {source.name: source for source in config.corpus}
    for shard in chosen:
        for record in read_shard(shard, sources[shard.source], report):
            if (
                isinstance(record, Document)
                and record.text is not None
                and is_kept(record, shard.source, shard.fraction, config.seed)
                and fraction_of("train", config.seed, shard.source, record.identity) < share
            ):
                yield record.text


def _names(shard: Shard) -> list[str]:
    """What identifies a shard on every machine, whatever its path and time of change."""
    begins = (str(piece.range.begin if piece.range else 0) for piece in shard.pieces)
    return [shard.source, *(piece.file.name for piece in shard.pieces), *begins]


def tokenizer_stage(build: Build) -> TokenizerFiles:
    """Loads or trains the tokenizer."""
    settings = build.config.tokenizer
    if settings.train is None:
        shards = []
        loaded = Tokenizer.load(str(settings.path)).files
        decides: dict[str, object] = {
            "tokenizer.path": [
                loaded[name].decode("utf-8", "backslashreplace") for name in sorted(loaded)
            ]
        }
    else:
        shards = build.shards
        sources = [source.model_dump(mode="json") for source in build.config.corpus]
        decides = build.config.settings("tokenizer.train", "seed") | {
            "corpus": sources,
            "input": [[shard.identity, shard.stamp] for shard in shards],
        }
    job = TokenizerJob(build.folder, build.config)
    task = Task("tokenizer", fingerprint(VERSION, decides), shards)
    size = sum(shard.bytes for shard in shards)
    return build.run_task(Stage(job, [task], TokenizerFiles, "bytes", size))
