"""Stage 3: documents to chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from retro_db.config import Config
from retro_db.corpus.chunking import ChunkedShard, chunk_shard
from retro_db.corpus.planning import Shard
from retro_db.corpus.verdicts import read_verdicts
from retro_db.errors import CorpusError
from retro_db.manifest.parts import Part
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.serialize import to_json
from retro_db.threads import Share, use_tokenizer_threads
from retro_db.tokens.tokenizer import Tokenizer

from ..engine.jobs import Task, fingerprint
from ..engine.resume import Build, run_stage
from .screen import read_settings
from .tokenizer import TokenizerFiles

VERSION = 3
REJECTS = "report/rejects.jsonl"


@dataclass
class ChunkJob:
    """Chunks one planned shard."""

    config: Config
    folder: Folder
    home: Folder
    cores: Share
    stage: str = field(default="chunk", init=False)

    def open(self) -> Tokenizer:
        """The language model's tokenizer."""
        use_tokenizer_threads(self.cores.threads)
        return Tokenizer.of_database(self.home)

    def run(
        self,
        shared: Tokenizer,
        item: tuple[Shard, TableEntry | None],
        report: Callable[[int], None],
    ) -> ChunkedShard:
        """Writes chunks and documents."""
        shard, screened = item
        found = read_verdicts(self.folder, screened) if screened else []
        verdicts = {verdict.number: verdict for verdict in found}
        return chunk_shard(shard, self.config, shared, self.folder, verdicts, report)

    def files(self, result: ChunkedShard) -> list[FileEntry]:
        """Every part's two files, and the table of what was left out."""
        files: list[FileEntry] = [
            file for part in result.parts for file in (part.chunks, part.documents)
        ]
        return [*files, result.left_out] if result.left_out else files


def chunk_stage(
    build: Build, tokenizer: TokenizerFiles, screened: Sequence[TableEntry | None]
) -> tuple[list[ChunkedShard], list[Part]]:
    """Runs the stage, and stops where a source has too many bad records.

    Args:
        build: The build.
        tokenizer: Of the database.
        screened: The verdicts on every shard, if it was screened.

    Returns:
        What became of every shard, and all parts in order.

    Raises:
        CorpusError: A source exceeds its `max_bad`, or nothing is left.
    """
    config = build.config
    job = ChunkJob(config, build.folder, build.home, build.engine.share(len(build.shards)))
    keys = ("chunk.tokens", "chunk.part_rows", "split.validation", "seed", "leakage.names")
    decides = config.settings(*keys) | {
        "tokenizer": [tokenizer.sha256, tokenizer.pad_id, tokenizer.end_id]
    }
    tasks = []
    for shard, verdicts in zip(build.shards, screened, strict=True):
        own = read_settings(config, shard) | {"screen": verdicts.sha256 if verdicts else None}
        mark = fingerprint(VERSION, decides | own)
        tasks.append(Task(f"shard-{shard.number:07d}", mark, (shard, verdicts), shard))
    size = sum(shard.bytes for shard in build.shards)
    chunked = run_stage(build, job, tasks, ChunkedShard, "bytes", size)
    if build.dry_run:
        return chunked, parts_of(chunked)
    _check_rejects(build, chunked)
    if not any(part.chunks.rows for shard in chunked for part in shard.parts):
        raise CorpusError(
            f"{build.config_field}: no document with a token in it; check paths and text fields"
        )
    return chunked, parts_of(chunked)


def parts_of(chunked: list[ChunkedShard]) -> list[Part]:
    """All parts in order, each with the global id of its first chunk."""
    parts: list[Part] = []
    first_id = 0
    for shard in chunked:
        for roll_over, written in enumerate(shard.parts):
            parts.append(Part(shard.number, roll_over, first_id, written.chunks, written.documents))
            first_id += written.chunks.rows
    return parts


def _check_rejects(build: Build, chunked: list[ChunkedShard]) -> None:
    lines = [
        orjson.dumps({"source": shard.source} | to_json(reject)) + b"\n"
        for shard in chunked
        for reject in shard.rejects
    ]
    if lines:
        build.folder.write(REJECTS, b"".join(lines))
    else:
        build.folder.remove(REJECTS)
    for source, name in zip(build.config.corpus, build.source_fields, strict=True):
        own = [shard for shard in chunked if shard.source == source.name]
        read = sum(shard.read for shard in own)
        rejected = sum(count for shard in own for count in shard.rejected.values())
        if rejected > source.max_bad * read:
            first = next(reject for shard in own for reject in shard.rejects)
            raise CorpusError(
                f"{name}: {rejected:,} of {read:,} records of {source.name} are bad, more "
                f"than max_bad {source.max_bad:g}; the first: {first}; mend the file "
                f"or raise max_bad (more of them in {build.folder.url}/{REJECTS})"
            )
