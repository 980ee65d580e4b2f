"""Stage 4: chunks to keys, by the frozen BERT."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from retro_db.config import EncoderConfig
from retro_db.database import open_table
from retro_db.encoder import Encoder, EncoderModel, embed_part
from retro_db.parts import Part
from retro_db.serialize import to_json
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder
from retro_db.threads import use_tokenizer_threads
from retro_db.tokenizer import Tokenizer

from .shards import Task, fingerprint
from .stage import Build, run_stage
from .tokenizer import TokenizerFiles

VERSION = 1


@dataclass(frozen=True)
class EmbeddedPart:
    """One part's keys, and how many chunks have none."""

    file: FileEntry
    keyless: int


@dataclass
class EmbedJob:
    """Embeds one part."""

    config: EncoderConfig
    folder: Folder
    threads: int
    parameters: dict[str, str | int]
    stage: str = field(default="embed", init=False)

    def open(self) -> tuple[Encoder, Tokenizer]:
        """The model, and what turns ids back into text."""
        use_tokenizer_threads(self.threads)
        return Encoder(self.config, self.threads), Tokenizer.of_database(self.folder)

    def run(
        self, shared: tuple[Encoder, Tokenizer], part: Part, report: Callable[[int], None]
    ) -> EmbeddedPart:
        """Writes the embeddings file."""
        encoder, tokenizer = shared
        [chunks] = open_table(self.folder, [part.chunks], "chunks", self.parameters)
        path = contract("embeddings").name(part.shard, part.number)
        return EmbeddedPart(*embed_part(chunks, path, encoder, tokenizer, self.folder, report))

    def files(self, result: EmbeddedPart) -> list[FileEntry]:
        """The embeddings file."""
        return [result.file]


def embed_stage(
    build: Build, parts: list[Part], tokenizer: TokenizerFiles, model: EncoderModel
) -> tuple[list[Part], int]:
    """Runs the stage.

    Returns:
        The parts with their embeddings, and how many chunks have no key.
    """
    config = build.config
    parameters: dict[str, str | int] = {
        "token_type": tokenizer.token_type,
        "chunk_tokens": config.chunk.tokens,
    }
    # What auto stands for was resolved where the build started; a worker without it fails.
    encoder = config.encoder.model_copy(update={"device": model.device, "dtype": model.dtype})
    job = EmbedJob(encoder, build.folder, build.engine.threads, parameters)
    tasks = [
        Task(
            part.name,
            fingerprint(job.stage, VERSION, to_json(model), tokenizer.sha256, part.chunks.sha256),
            part,
        )
        for part in parts
    ]
    total = sum(part.rows for part in parts)
    embedded = run_stage(build, job, tasks, EmbeddedPart, "chunks", total)
    held = [replace(part, embeddings=e.file) for part, e in zip(parts, embedded, strict=True)]
    return held, sum(e.keyless for e in embedded)


if __name__ == "__main__":
    # The classes above must be pickled under their module's name, so the command imports them anew.
    from .cli import end_process, run, stage_command

    end_process(run(sys.argv[1:], stage_command("embed")))
