"""Embeds chunks with the frozen BERT."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import ClassVar

from retro_db.corpus.chunking import ChunkedShard
from retro_db.encoder.budget import find_budget, try_budget
from retro_db.encoder.embedded_windows import PIECES, Pieces
from retro_db.encoder.embedding import WINDOW_ROWS, embed_part
from retro_db.encoder.encoder import Encoder
from retro_db.encoder.models import CUDA, EncoderModel, gpu_count, resolve_model
from retro_db.index.drawing import Drawer, Drawing, Drawn
from retro_db.manifest.parts import Part
from retro_db.meter import Meter
from retro_db.reader.opening import open_files
from retro_db.store.contracts import contract
from retro_db.store.folder import FileEntry, Folder, TableEntry
from retro_db.store.serialize import digest
from retro_db.threads import Share, use_tokenizer_threads
from retro_db.tokens.tokenizer import Tokenizer

from ..engine.context import Build
from ..engine.jobs import Job, Placement, Stage, Task, fingerprint
from .chunk import ChunkedCorpus
from .tokenizer import TokenizerFiles

VERSION = 2


@dataclass(frozen=True)
class EmbeddedPart:
    """One part's embeddings.

    Attributes:
        file: The embeddings.
        keyless: Number of chunks without one.
        drawn: Chunks that were drawn for the index at the same time, if any.
    """

    file: TableEntry
    keyless: int
    drawn: Drawn | None = None


@dataclass
class EmbedJob(Job):
    """Embeds one part."""

    stage: ClassVar[str] = "embed"
    encoder: str
    model: EncoderModel
    home: Folder
    cores: Share
    parameters: dict[str, str | int]
    tokenizer: str
    drawing: Drawing | None

    def open(self) -> tuple[Encoder, Tokenizer]:
        encoder = _open_encoder(self.encoder, self.model, self.cores)
        return encoder, Tokenizer.of_database(self.home)

    def run(self, shared: tuple[Encoder, Tokenizer], part: Part, meter: Meter, /) -> EmbeddedPart:
        encoder, tokenizer = shared
        [chunks] = open_files(self.folder, [part.chunks], "chunks", self.parameters)
        path = contract("embeddings").name(part.shard, part.number)
        pieces = self._pieces(part)
        drawer = Drawer(part, self.folder, self.drawing) if self.drawing else None
        file, keyless = embed_part(
            chunks,
            path,
            encoder,
            tokenizer,
            self.folder,
            meter,
            pieces=pieces,
            take=drawer.take if drawer else None,
        )
        return EmbeddedPart(file, keyless, drawer.write(self.folder, file) if drawer else None)

    def done(self, part: Part) -> None:
        self._pieces(part).remove()

    def _pieces(self, part: Part) -> Pieces:
        decides = [VERSION, self.model.decides, self.tokenizer, part.chunks.sha256]
        key = f"{part.name}-{digest(decides)[:16]}"
        return Pieces(self.folder, key, self.model.dimension, WINDOW_ROWS)

    def files(self, result: EmbeddedPart) -> list[FileEntry]:
        return [result.file]


@dataclass(frozen=True)
class Budget:
    """Padded WordPieces of a batch that fit on the workers' GPUs."""

    batch_tokens: int


@dataclass
class ProbeJob(Job):
    """Checks that a worker has a GPU, and which batches fit."""

    stage: ClassVar[str] = "probe"
    part_of: ClassVar[str | None] = "embed"
    encoder: str
    model: EncoderModel

    def open(self) -> Encoder:
        return _open_encoder(self.encoder, self.model, Share(tasks=1))

    def run(self, shared: Encoder, item: None, meter: Meter, /) -> Budget:
        if self.model.batch_tokens is None:
            return Budget(find_budget(shared))
        try_budget(shared, self.model.batch_tokens)
        return Budget(self.model.batch_tokens)


def probe_stage(build: Build, model: EncoderModel) -> EncoderModel:
    """Tries a worker's GPU, before any shard is worked on; a CPU needs no trial.

    Once the embeddings exist, no GPU is needed to go on.

    Returns:
        The model with its `batch_tokens`.

    Raises:
        ModelError: A worker has no CUDA device.
        DeviceMemoryError: The configured batches do not fit.
    """
    if model.device != CUDA:
        return model
    job = ProbeJob(build.folder, build.config.encoder.model, model)
    task = Task("gpu", fingerprint(VERSION, {"encoder": model.decides}), None)
    budget = build.run_task(Stage(job, [task], Budget, "GPUs", 1, _placement(build)))
    return replace(model, batch_tokens=budget.batch_tokens)


@dataclass(frozen=True)
class EmbeddedCorpus:
    """What the stage made of a corpus.

    Attributes:
        shards: What became of the records of every shard.
        parts: All parts in order, with their embeddings.
        keyless: Number of chunks without an embedding, such as those without any WordPiece.
        drawn: What was drawn of each part for the index, if anything.
    """

    shards: list[ChunkedShard]
    parts: list[Part]
    keyless: int
    drawn: list[Drawn | None]

    def below(self, place: str) -> EmbeddedCorpus:
        """The same corpus, its files as the database sees them.

        Args:
            place: Path in the database of the folder that the files are in; empty for the database itself.
        """
        shards = [
            replace(shard, left_out=shard.left_out and shard.left_out.below(place))
            for shard in self.shards
        ]
        return replace(self, shards=shards, parts=[part.below(place) for part in self.parts])


def embed_stage(
    build: Build,
    corpus: ChunkedCorpus,
    tokenizer: TokenizerFiles,
    model: EncoderModel,
    drawing: Drawing | None = None,
) -> EmbeddedCorpus:
    """Embeds the chunks of every part.

    Args:
        build: The build.
        corpus: Parts whose files lie in the folder of the build.
        tokenizer: Tokenizer of the database.
        model: The encoder, with its `batch_tokens`.
        drawing: Which chunks are drawn for the index at the same time; none by default.
    """
    parts = corpus.parts
    config = build.config
    parameters = tokenizer.parameters(config.chunk.tokens)
    cores = build.engine.share(len(parts))
    job = EmbedJob(
        build.folder,
        config.encoder.model,
        model,
        build.home,
        cores,
        parameters,
        tokenizer.sha256,
        drawing,
    )
    decides = {"encoder": model.decides, "tokenizer": tokenizer.sha256}
    tasks = [
        Task(part.name, fingerprint(VERSION, decides | {"chunk": part.chunks.sha256}), part)
        for part in parts
    ]
    total = sum(part.rows for part in parts)
    placement = _placement(build)
    embedded = build.run(Stage(job, tasks, EmbeddedPart, "chunks", total, placement))
    build.action.discard(build.folder, PIECES)
    with_embeddings = [
        replace(part, embeddings=result.file) for part, result in zip(parts, embedded, strict=True)
    ]
    keyless = sum(result.keyless for result in embedded)
    drawn = [result.drawn for result in embedded]
    return EmbeddedCorpus(corpus.shards, with_embeddings, keyless, drawn)


def _placement(build: Build) -> Placement:
    """What a worker must have to embed."""
    config = build.config.encoder
    hints = {
        "accelerator": config.accelerator,
        # Beam takes this number as text alone.
        "max_active_bundles_per_worker": config.max_active_bundles
        and str(config.max_active_bundles),
    }
    return Placement(hints={name: value for name, value in hints.items() if value})


def _open_encoder(encoder: str, model: EncoderModel, cores: Share) -> Encoder:
    use_tokenizer_threads(cores.threads)
    gpu = gpu_of_worker(os.environ.get("WORKER_ID", ""), gpu_count()) if model.device == CUDA else 0
    return Encoder(resolve_model(encoder), model, cores.threads, gpu)


def gpu_of_worker(worker: str, count: int) -> int:
    """The GPU of a worker process among those that it sees: sibling workers take turns.

    Args:
        worker: Beam's id of the process, such as `worker_2` or `sdk-0-1`; its last number counts the
            workers of a machine.
        count: GPUs.

    Returns:
        A number below `count`; 0 if the process has no id.
    """
    numbers = re.findall(r"\d+", worker)
    return int(numbers[-1]) % max(1, count) if numbers else 0
