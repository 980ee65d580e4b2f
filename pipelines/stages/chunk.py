"""Cuts documents into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import orjson

from retro_db.config import Config, SourceConfig
from retro_db.corpus.chunking import ChunkedShard, chunk_shard
from retro_db.corpus.selection import NO_TOKEN
from retro_db.corpus.sharding import Shard
from retro_db.corpus.verdicts import read_verdicts
from retro_db.errors import CorpusError
from retro_db.manifest.parts import Part
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.serialize import to_json
from retro_db.threads import Share, use_tokenizer_threads
from retro_db.tokens.tokenizer import Tokenizer

from ..engine.completing import read_again
from ..engine.context import Build
from ..engine.inputs import read_settings
from ..engine.jobs import Job, Stage, Task, fingerprint
from .screen import Screened, ScreenJob
from .tokenizer import TokenizerFiles

VERSION = 4
REJECTS = "report/rejects.jsonl"


@dataclass
class ChunkJob(Job):
    """Chunks one planned shard."""

    stage: ClassVar[str] = "chunk"
    config: Config
    home: Folder
    cores: Share

    def open(self) -> Tokenizer:
        use_tokenizer_threads(self.cores.threads)
        return Tokenizer.of_database(self.home)

    def run(
        self,
        shared: Tokenizer,
        item: tuple[Shard, TableEntry | None],
        meter: Meter,
        /,
    ) -> ChunkedShard:
        shard, screened = item
        stored = read_verdicts(self.folder, screened) if screened else []
        verdicts = {verdict.number: verdict for verdict in stored}
        return chunk_shard(shard, self.config, shared, self.folder, verdicts, meter)

    def files(self, result: ChunkedShard) -> list[FileEntry]:
        files: list[FileEntry] = [
            file for part in result.parts for file in (part.chunks, part.documents)
        ]
        return [*files, result.left_out] if result.left_out else files


@dataclass(frozen=True)
class ChunkedCorpus:
    """What the stage made of a corpus.

    Attributes:
        shards: What became of the records of every shard.
        parts: All parts in order.
    """

    shards: list[ChunkedShard]
    parts: list[Part]


def chunk_stage(
    build: Build, tokenizer: TokenizerFiles, screened: Sequence[Screened | None]
) -> ChunkedCorpus:
    """Cuts the documents of every shard into chunks.

    Args:
        build: The build.
        tokenizer: Tokenizer of the database.
        screened: Verdicts on every shard; None for shards that were not screened.

    Raises:
        CorpusError: A source exceeds its `max_bad`, nothing is left, or a file is not what was screened.
    """
    config = build.config
    job = ChunkJob(build.folder, config, build.home, build.engine.share(len(build.shards)))
    keys = ("chunk.tokens", "chunk.part_rows", "split.validation", "seed", "leakage.names")
    decides = config.settings(*keys) | {
        "tokenizer": [tokenizer.sha256, tokenizer.pad_id, tokenizer.end_id]
    }
    tasks = []
    for shard, decided in zip(build.shards, screened, strict=True):
        verdicts = decided.verdicts if decided else None
        own = read_settings(config, shard) | {"screen": verdicts.sha256 if verdicts else None}
        mark = fingerprint(VERSION, decides | own)
        tasks.append(Task(shard.task_name, mark, (shard, verdicts), shard))
    size = sum(shard.bytes for shard in build.shards)
    chunked = build.run(Stage(job, tasks, ChunkedShard, "bytes", size))
    _expect_screened(build, chunked, screened)
    _expect_untouched(build, chunked)
    _check_rejects(build, chunked)
    if not any(part.chunks.rows for shard in chunked for part in shard.parts):
        raise CorpusError(
            f"{build.config_field}: no document with a token in it; check paths and text fields"
        )
    return ChunkedCorpus(chunked, parts_of(chunked))


def parts_of(chunked: list[ChunkedShard]) -> list[Part]:
    """All parts in order, each with the global id of its first chunk."""
    parts: list[Part] = []
    first_id = 0
    for shard in chunked:
        for roll_over, written in enumerate(shard.parts):
            parts.append(Part(shard.number, roll_over, first_id, written.chunks, written.documents))
            first_id += written.chunks.rows
    return parts


def _expect_screened(
    build: Build, chunked: Sequence[ChunkedShard], screened: Sequence[Screened | None]
) -> None:
    """Refuses shards that held other records when they were screened; both stages will read them again."""
    for planned, shard, decided in zip(build.shards, chunked, screened, strict=True):
        if decided and decided.content != shard.content:
            raise _changed(build, planned, "screened")


def _expect_untouched(build: Build, chunked: Sequence[ChunkedShard]) -> None:
    """Reads files again that were touched while they were read, and refuses other content.

    Sizes and times of change may have been put back; ranges of one file are read by several tasks.
    """
    files = {piece.file for shard in build.shards for piece in shard.pieces}
    touched = {file for file in files if file.touched_now != file.touched}
    doubtful = [
        (planned, shard)
        for planned, shard in zip(build.shards, chunked, strict=True)
        if any(piece.file in touched for piece in planned.pieces)
    ]
    contents = read_again(build, [planned for planned, _ in doubtful])
    for (planned, shard), content in zip(doubtful, contents, strict=True):
        if content != shard.content:
            raise _changed(build, planned, "read")


def _changed(build: Build, shard: Shard, what: str) -> CorpusError:
    """The error for a shard that has changed; both stages will read it again."""
    for stage in (ScreenJob.stage, ChunkJob.stage):
        build.action.forget(build.folder, stage, shard.task_name)
    files = shard.pieces
    more = f" (or one of {len(files) - 1:,} more)" if len(files) > 1 else ""
    return CorpusError(
        f"{files[0].file.url}{more}: changed since it was {what}; run the same command again, and leave the "
        "files of the corpus as they are meanwhile"
    )


def _check_rejects(build: Build, chunked: list[ChunkedShard]) -> None:
    lines = [
        orjson.dumps({"source": shard.source} | to_json(reject)) + b"\n"
        for shard in chunked
        for reject in shard.rejects
    ]
    build.action.report(build.folder, REJECTS, b"".join(lines))
    for source, name in zip(build.config.corpus, build.source_fields, strict=True):
        own = [shard for shard in chunked if shard.source == source.name]
        read = sum(shard.read for shard in own)
        _check_tokens(build, source, name, own)
        rejected = sum(count for shard in own for count in shard.rejected.values())
        if rejected > source.max_bad * read:
            first = next(reject for shard in own for reject in shard.rejects if reject.count)
            raise CorpusError(
                f"{name}: {rejected:,} of {read:,} records of {source.name} are bad, more "
                f"than max_bad {source.max_bad:g}; the first: {first}; mend the file "
                f"or raise max_bad (more of them in {build.folder.url}/{REJECTS})"
            )


def _check_tokens(
    build: Build, source: SourceConfig, field: str, shards: Sequence[ChunkedShard]
) -> None:
    """Refuses a source of which the tokenizer loses more characters than its records may be bad."""
    characters = sum(shard.characters for shard in shards)
    lacking = sum(shard.lacking for shard in shards)
    if lacking > source.max_bad * characters:
        lost = (reject for shard in shards for reject in shard.rejects)
        first = next((reject for reject in lost if reject.reason == NO_TOKEN), None)
        raise CorpusError(
            f"{field}: the tokenizer has no token for {lacking:,} of {characters:,} characters of "
            f"{source.name}, more than max_bad {source.max_bad:g}"
            f"{f'; the first: {first}' if first else ''}; name another in tokenizer.path, or raise max_bad "
            f"(more of them in {build.folder.url}/{REJECTS})"
        )
