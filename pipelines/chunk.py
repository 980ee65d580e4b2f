"""Stage 2: documents to chunks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from retro_db.chunking import ChunkedShard, chunk_shard
from retro_db.config import Config
from retro_db.corpus.planning import Shard
from retro_db.errors import CorpusError
from retro_db.parts import Part
from retro_db.store.folder import FileEntry, Folder
from retro_db.tokenizer import Tokenizer

from .shards import Task, fingerprint
from .stage import Build, run_stage
from .tokenizer import TokenizerFiles

VERSION = 1


@dataclass
class ChunkJob:
    """Chunks one planned shard."""

    config: Config
    folder: Folder
    stage: str = field(default="chunk", init=False)

    def open(self) -> Tokenizer:
        """The language model's tokenizer."""
        return Tokenizer.of_database(self.folder)

    def run(self, shared: Tokenizer, shard: Shard, report: Callable[[int], None]) -> ChunkedShard:
        """Writes chunks and documents."""
        return chunk_shard(shard, self.config, shared, self.folder, report)

    def files(self, result: ChunkedShard) -> list[FileEntry]:
        """Every part's two files."""
        return [file for part in result.parts for file in (part.chunks, part.documents)]


def chunk_stage(build: Build, tokenizer: TokenizerFiles) -> tuple[list[ChunkedShard], list[Part]]:
    """Runs the stage, and stops where a source has too many bad records.

    Returns:
        What became of every shard, and all parts in order.

    Raises:
        CorpusError: A source exceeds its `max_bad`, or nothing is left.
    """
    config = build.config
    job = ChunkJob(config, build.folder)
    settings = [
        config.chunk.model_dump(mode="json"),
        config.split.validation,
        config.seed,
        tokenizer.sha256,
        tokenizer.pad_id,
    ]
    sources = {source.name: source for source in config.corpus}
    tasks = []
    for shard in build.shards:
        source = sources[shard.source].model_dump(
            mode="json", include={"text", "id", "max_document"}
        )
        mark = fingerprint(job.stage, VERSION, *settings, source, shard.identity)
        tasks.append(Task(f"shard-{shard.number:07d}", mark, shard))
    size = sum(shard.bytes for shard in build.shards)
    chunked = run_stage(build, job, tasks, ChunkedShard, "bytes", size)
    _check_rejects(build, chunked)
    if not any(part.chunks.rows for shard in chunked for part in shard.parts):
        raise CorpusError("corpus: no document with a token in it; check paths and text fields")
    return chunked, parts_of(chunked)


def parts_of(chunked: list[ChunkedShard]) -> list[Part]:
    """All parts in order, each with the global id of its first chunk."""
    parts: list[Part] = []
    first_id = 0
    for number, shard in enumerate(chunked):
        for roll_over, written in enumerate(shard.parts):
            parts.append(Part(number, roll_over, first_id, written.chunks, written.documents))
            first_id += written.chunks.rows or 0
    return parts


def _check_rejects(build: Build, chunked: list[ChunkedShard]) -> None:
    rejects = [reject for shard in chunked for reject in shard.rejects]
    if rejects:
        lines = b"".join(
            orjson.dumps(reject, option=orjson.OPT_APPEND_NEWLINE) for reject in rejects
        )
        build.folder.write("report/rejects.jsonl", lines)
    for position, source in enumerate(build.config.corpus):
        own = [shard for shard in chunked if shard.source == source.name]
        rejected, read = sum(s.rejected for s in own), sum(s.read for s in own)
        if rejected > source.max_bad * read:
            first = next(reject for shard in own for reject in shard.rejects)
            raise CorpusError(
                f"corpus.{position}: {rejected:,} of {read:,} records of {source.name} are bad, more "
                f"than max_bad {source.max_bad:g}; the first: {first.file}, record {first.position}, "
                f"{first.reason}; mend the file or raise max_bad"
            )


if __name__ == "__main__":
    # The classes above must be pickled under their module's name, so the command imports them anew.
    from .cli import end_process, run, stage_command

    end_process(run(sys.argv[1:], stage_command("chunk")))
